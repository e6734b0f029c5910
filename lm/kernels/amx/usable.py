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
    return (mesh.empty or mesh.size == 1) and _has_tiles() and compiled(f"amx.{module}")


@functools.cache
def _has_tiles() -> bool:
    try:
        if "amx_bf16" not in Path("/proc/cpuinfo").read_text():  # before numba, which takes a second to import
            return False
        from lm.kernels.amx.tiles import usable
    except (OSError, ImportError):  # no Linux, or no numba for this platform
        return False
    return usable()
