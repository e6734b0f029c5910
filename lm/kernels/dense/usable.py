"""Whether the kernels of this folder run: on one device, on an x86 processor that multiplies numbers of a dtype fast."""

import functools

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from lm.kernels.native.registered import compiled
from lm.parallel.mesh import platform


def usable(module: str, dtype: DTypeLike) -> bool:
    """Return whether the compiled functions of a module multiply numbers of a dtype here.

    The mesh must have one device, since XLA does not know how to split what they compute. module: "gemm", "flash" or "rows".
    """
    mesh = jax.sharding.get_abstract_mesh()
    alone = platform() == "cpu" and (mesh.empty or mesh.size == 1)
    simple = module == "rows" and jnp.dtype(dtype) == jnp.float32  # as fast as XLA's on any processor
    return alone and (simple or jnp.dtype(dtype).name in multiplied()) and compiled(f"dense.{module}")


def require(module: str, dtype: DTypeLike) -> None:
    """Raise ValueError unless a module is `usable` for a dtype."""
    if not usable(module, dtype):
        raise ValueError(f"lm/kernels/dense/{module}.py needs a processor that multiplies {dtype} and a mesh of one device")


@functools.cache
def multiplied() -> tuple[str, ...]:
    """Return the dtypes that this processor multiplies fast: float32 with AVX2, bfloat16 with AVX-512 BF16 and with AMX."""
    try:
        from lm.kernels.native.vectors import has  # here, because numba takes a second to import
    except ImportError:  # numba has no wheel for this platform
        return ()
    floats = ("float32",) if has("avx2") and has("fma") else ()
    return (*floats, "bfloat16") if floats and has("avx512bf16") else floats
