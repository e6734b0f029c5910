"""Every test sees eight fake CPU devices, and code that takes XLA and LLVM little time: there is more to compile than to run.

Without fusion emitters, XLA writes each fusion as one plain loop, which takes a third less time than their passes over MLIR.
The flags must stand before jax is imported. Runs of the verbs take none of them.
"""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # of verbs that a test starts: nothing is written into the user's home
FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}"


def pytest_collection_modifyitems(items):
    """The files that take longest go first, so that no worker is left with one of them at the end."""
    items.sort(key=lambda item: "verbs" not in item.path.parts)
