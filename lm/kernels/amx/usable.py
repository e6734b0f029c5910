"""Whether the kernels of this folder run: on a processor with AMX, on one device."""

import functools
from pathlib import Path

import jax

from lm.kernels.native.registered import compiled


def tiled(module: str) -> bool:
    """Return whether the compiled functions of a module that uses AMX run here: also, the mesh has one device.

    XLA does not know how to split what they compute. module: "gemm" or "flash".
    """
    mesh = jax.sharding.get_abstract_mesh()
    return (mesh.empty or mesh.size == 1) and has_tiles() and compiled(f"amx.{module}")


def require(module: str) -> None:
    """Raise ValueError unless the functions of a module are `tiled`."""
    if not tiled(module):
        raise ValueError(f"lm/kernels/amx/{module}.py needs a processor with AMX and a mesh of one device")


@functools.cache
def has_tiles() -> bool:
    """Return whether this process can use AMX: processor, Linux and numba know it."""
    try:
        if "amx_bf16" not in Path("/proc/cpuinfo").read_text():  # before numba, which takes a second to import
            return False
        from lm.kernels.amx.tiles import usable
    except (OSError, ImportError):  # no Linux, or no numba for this platform
        return False
    return usable()
