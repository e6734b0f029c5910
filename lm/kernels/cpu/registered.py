"""The compiled functions, made known to XLA once in a process."""

import functools
import importlib
from pathlib import Path

import jax

from lm.parallel.mesh import platform


def compiled(module: str) -> bool:
    """Return whether a module's compiled functions run here: on a CPU, with numba. module: "products", "attention" or "sums".

    The first call compiles them, or loads them from numba's cache, and registers them with XLA. Whoever runs a stored
    program without tracing it must call this before.
    """
    return platform() == "cpu" and _registered(module)


def tiled(module: str) -> bool:
    """Return whether the compiled functions of a module that uses AMX run here: also, the mesh has one device.

    XLA does not know how to split what they compute. module: "gemm" or "flash".
    """
    mesh = jax.sharding.get_abstract_mesh()
    return (mesh.empty or mesh.size == 1) and _has_tiles() and compiled(module)


@functools.cache
def _has_tiles() -> bool:
    try:
        if "amx_bf16" not in Path("/proc/cpuinfo").read_text():  # before numba, which takes a second to import
            return False
        from lm.kernels.cpu.amx import usable
    except (OSError, ImportError):
        return False
    return usable()


@functools.cache
def _registered(module: str) -> bool:
    try:
        kernels = importlib.import_module(f"lm.kernels.cpu.{module}")
    except ImportError:  # numba has no wheel for this platform
        return False
    kernels.register()
    return True
