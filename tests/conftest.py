"""Every test sees eight fake CPU devices, and code that XLA and LLVM compile fast: tests compile more than they compute.

Compiled programs stay in the user's cache (tests/compiled.py), so that the next run compiles only what has changed since.

Without fusion emitters, XLA writes each fusion as one plain loop, which takes a third less time than their passes over MLIR.
Each program stays one module for LLVM, and PyTorch has one thread: the workers keep all cores busy anyway.
The flags must be set before jax is imported. The verbs that tests start compile in the same way (tests/verbs/runs.py).
"""

import gc
import os
import signal
from importlib.metadata import version
from pathlib import Path

import pytest

from tests import compiled

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"  # programs without places in the source are lowered faster
os.environ |= compiled.variables()
FAST_TO_COMPILE = (
    "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1 --xla_llvm_disable_expensive_passes=true"
)
if tuple(map(int, version("jaxlib").split(".")[:3])) < (0, 11, 2):  # XLA ends the process at a flag that it no longer knows
    FAST_TO_COMPILE += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8 {FAST_TO_COMPILE}"

# Shells start background jobs with SIGINT ignored, and children inherit that; tests send it to children.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


MAPS = 15_000  # memory maps of a process: each compiled program has several. So many hold 4 GB, and the kernel allows 65,530.


@pytest.fixture(autouse=True, scope="module")
def room_for_programs():
    """Forget the compiled programs of earlier modules before they fill the memory."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MAPS:
        import jax

        jax.clear_caches()
        gc.collect()


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Spare the garbage collector what is imported now, and let it look seldom: tracing makes many objects and few cycles."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(50_000, 10, 10)
        gc.enable()


def pytest_sessionstart(session):
    compiled.leave_out_several_devices()
    if not hasattr(session.config, "workerinput"):  # once, before pytest-xdist starts its workers
        compiled.sweep()


def pytest_collection_modifyitems(items):
    """The files that take longest go first, so that no worker is left with one of them at the end."""
    items.sort(key=lambda item: "verbs" not in item.path.parts)
