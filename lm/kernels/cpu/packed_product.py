"""Products of activations with packed weights, compiled by numba and called through XLA's foreign function interface.

lm/kernels/cpu/products.py has the kernels.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from lm.kernels.cpu.packed import BLOCK, W8A8, Packed
from lm.kernels.native.registered import compiled

LARGEST_CHUNK = 512  # 512 · 127 · 32767 < 2³¹
BYTES_CHUNK = 128  # of 8-bit activations


def takes(*arguments: object) -> bool:
    """Return whether the products are compiled here."""
    return compiled("cpu.products")


def packed_product(x_MK: jax.Array, packed: Packed, dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Compute lm.kernels.ops.packed_product."""
    y = jax.ShapeDtypeStruct((x_MK.shape[0], packed.blocks.shape[0] * BLOCK), jnp.float32)
    scales = jnp.zeros((0, 0), jnp.bfloat16) if packed.scales is None else packed.scales
    call = jax.ffi.ffi_call("lm_matmul", y)
    kind = np.int32(W8A8 if packed.has_bytes else packed.bits)
    y_MN = call(x_MK.astype(jnp.float32), packed.blocks, scales, chunk=np.int32(_chunk(packed)), kind=kind)
    return y_MN[:, : packed.outputs].astype(dtype)


def _chunk(packed: Packed) -> int:
    """Return how many inputs of a row share a scale of activations: a divisor of the weight's groups."""
    if packed.scales is None:
        return 0
    groups, most = packed.scales.shape[1], BYTES_CHUNK if packed.has_bytes else LARGEST_CHUNK
    if groups == 1:
        return min(most, LARGEST_CHUNK // 2)
    size = packed.blocks.shape[1] * (2 if packed.blocks.dtype == jnp.int8 else 4) // groups
    return max(chunk for chunk in range(4, most + 1, 4) if size % chunk == 0)
