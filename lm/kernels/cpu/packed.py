"""Weights packed for a CPU, and their product with activations.

A block holds 64 outputs, adjacent for each input, so that vectors run over outputs and memory is read in one stream. An output
is a sum over the inputs in ascending order, however many rows there are: a row of a product does not depend on the other rows,
to the bit. The compiled products (lm/kernels/cpu/products.py) are called through XLA's foreign function interface.
Everywhere else, and without numba, the plain twin runs: the weight is unpacked, and XLA multiplies.

Axes: M rows, K inputs, N outputs, V vocabulary, D model, T tokens.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from lm.kernels.cpu.registered import compiled
from lm.kernels.matmul import product

BLOCK = 64  # outputs of a block
STORED = {32: "float32", 16: "bfloat16"}


@functools.partial(jax.tree_util.register_dataclass, data_fields=("blocks",), meta_fields=("inputs", "outputs"))
@dataclasses.dataclass(frozen=True)
class Packed:
    """A weight of K inputs and N outputs. It is a pytree, so jit, donation and device_put take it.

    blocks: float32 or bfloat16 [⌈N/64⌉, K, 64]; the last block is filled with zeros.
    """

    blocks: jax.Array
    inputs: int
    outputs: int


def pack(w_KN: jax.Array, bits: int = 16) -> Packed:
    """Return the weight packed. bits: 32 for float32, 16 for bfloat16.

    Products of one input (query, key and value; gate and up) are faster as one: concatenate their weights along N.
    """
    K, N = w_KN.shape
    w = jnp.pad(w_KN.astype(STORED[bits]), ((0, 0), (0, -N % BLOCK)))
    return Packed(jnp.swapaxes(w.reshape(K, -1, BLOCK), 0, 1), K, N)


def unpack(packed: Packed, dtype=jnp.float32) -> jax.Array:
    """Return the weight [K, N]; the inverse of `pack`."""
    w_KN = jnp.swapaxes(packed.blocks, 0, 1).reshape(packed.inputs, -1)
    return w_KN[:, : packed.outputs].astype(dtype)


def rows(packed: Packed, ids_T: jax.Array, dtype=jnp.float32) -> jax.Array:
    """Return the weights [T, K] of some outputs. For a tied head, packed from its transpose [D, V], these are embeddings."""
    return packed.blocks[ids_T // BLOCK, :, ids_T % BLOCK].astype(dtype)


def packed_matmul(x_MK: jax.Array, packed: Packed, dtype=jnp.float32) -> jax.Array:
    """Return x · w [M, N], accumulated in float32. x: any float dtype; dtype: of the result."""
    if not compiled():
        return packed_matmul_reference(x_MK, packed, dtype)
    M, blocks = x_MK.shape[0], packed.blocks.shape[0]
    y = jax.ShapeDtypeStruct((M, blocks * BLOCK), jnp.float32)
    call = jax.ffi.ffi_call("lm_matmul", y)
    return call(x_MK.astype(jnp.float32), packed.blocks)[:, : packed.outputs].astype(dtype)


def packed_matmul_reference(x_MK: jax.Array, packed: Packed, dtype=jnp.float32) -> jax.Array:
    """Plain twin of `packed_matmul`: XLA's product with the unpacked weight. Its bits may depend on M."""
    return product("mk,kn->mn", x_MK.astype(jnp.float32), unpack(packed)).astype(dtype)
