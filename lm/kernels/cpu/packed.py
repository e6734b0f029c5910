"""Weights packed for a CPU, and their product with activations.

A block holds 64 outputs, adjacent for each input, so that vectors run over outputs and memory is read in one stream. An output
is a sum over the inputs in ascending order, however many rows there are: a row of a product does not depend on the other rows,
to the bit, if it is compiled (lm/kernels/cpu/packed_product.py).

Integer weights are those of lm/kernels/quantize.py. The compiled products round activations to 16 bits for them: each chunk of
a row, at most 512 inputs, has a scale of max|x| / 32767, so the sum of a chunk is exact in int32. With `activations=8` they are
rounded to 8 bits, with a scale of max|x| / 127 for each 128 inputs (the tiles of DeepSeek-V3, §3.3.2): twice the products a
cycle where the processor multiplies bytes (AVX-512 VNNI).

Axes: M rows, K inputs, N outputs, V vocabulary, D model, T tokens.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from lm.errors import UserError
from lm.kernels.ops import packed_product
from lm.kernels.quantize import quantize, unpacked
from lm.parallel.mesh import reshard

BLOCK = 64  # outputs of a block
W8A8 = 88  # `kind` of a compiled product with 8-bit activations; of others the bits of a weight
FLOATS = {32: jnp.float32, 16: jnp.bfloat16}


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("blocks", "scales"), meta_fields=("inputs", "outputs", "shape", "result")
)
@dataclass(frozen=True)
class Packed:
    """A weight of K inputs and N outputs. It is a pytree, so jit, donation and device_put take it.

    blocks: float32 or bfloat16 [⌈N/64⌉, K, 64]; int8 [⌈N/64⌉, K'/2, 64, 2], two inputs adjacent; int4 uint8
      [⌈N/64⌉, K'/4, 64, 2], inputs k and k + 1 in the low halves of two bytes, k + 2 and k + 3 in the high ones; int8 for 8-bit
      activations uint8 [⌈N/64⌉, K'/4, 64, 4], w + 128 of four inputs adjacent.
      Outputs are filled up with zeros to a multiple of 64, inputs of integers to K', a multiple of 4.
    scales: for integers bfloat16 [⌈N/64⌉, groups, 64], else None.
    shape: of the outputs, whose product is N, such as (heads, head size); (): (N,).
    result: dtype of `matmul`, or "" for the one that is asked for. Logits stay float32.
    """

    blocks: jax.Array
    scales: jax.Array | None
    inputs: int
    outputs: int
    shape: tuple[int, ...] = ()
    result: str = ""

    stored: ClassVar[str] = "packed"

    @property
    def bits(self) -> int:
        if self.has_bytes:
            return 8
        return {"float32": 32, "bfloat16": 16, "int8": 8, "uint8": 4}[str(self.blocks.dtype)]

    @property
    def has_bytes(self) -> bool:
        """Return whether activations are rounded to 8 bits."""
        return self.blocks.ndim == 4 and self.blocks.shape[3] == 4


def pack(w_KN: jax.Array, bits: int = 16, group: int = 0, activations: int = 16) -> Packed:
    """Return the weight packed.

    bits: 32 (float32), 16 (bfloat16), 8 or 4. group: how many inputs share a scale of integers; 0: all. activations: 16, or 8
    if `bits` is: what they are rounded to.
    Products of one input (query, key and value; gate and up) are faster as one: concatenate their weights along N.
    """
    K, N = w_KN.shape
    w_KN = reshard(w_KN, None, None)
    if bits in FLOATS:
        w = jnp.pad(w_KN.astype(FLOATS[bits]), ((0, 0), (0, -N % BLOCK)))
        return Packed(jnp.swapaxes(w.reshape(K, -1, BLOCK), 0, 1), None, K, N)
    w = jnp.pad(w_KN, ((0, -K % math.lcm(4, group or 1)), (0, 0)))
    return pack_integers(*quantize(w, (0,), bits=bits, group=group), inputs=K, activations=activations)


def pack_integers(integers: jax.Array, scale: jax.Array, inputs: int = 0, activations: int = 16) -> Packed:
    """Return a weight of lm/kernels/quantize.py packed. integers: int8 [K, N], or int4 as uint8 [K/2, N]; scale: [groups, N].

    inputs: K, if the weight was filled up with zeros; 0: all. activations: as in `pack`. Raises UserError if there are several
    groups and their size is not a multiple of 4.
    """
    if not can_pack(integers, scale):
        group = -(-integers.shape[0] * (1 if integers.dtype == jnp.int8 else 2) // scale.shape[0])
        raise UserError(f"quantization.group={group}: a CPU multiplies groups whose size is a multiple of 4")
    bits = 8 if integers.dtype == jnp.int8 else 4
    w_KN, scale = reshard(unpacked(integers, 0), None, None), reshard(scale, None, None)
    K, N = w_KN.shape
    groups = scale.shape[0]
    w = jnp.pad(w_KN, ((0, -K % 4), (0, -N % BLOCK)))
    scales = jnp.swapaxes(jnp.pad(scale, ((0, 0), (0, -N % BLOCK))).reshape(groups, -1, BLOCK), 0, 1)
    if bits == 8 and activations == 8:
        fours = (w.astype(jnp.int16) + 128).astype(jnp.uint8).reshape(-1, 4, w.shape[1] // BLOCK, BLOCK)
        return Packed(fours.transpose(2, 0, 3, 1), scales, inputs or K, N)
    if bits == 8:
        return Packed(w.reshape(-1, 2, w.shape[1] // BLOCK, BLOCK).transpose(2, 0, 3, 1), scales, inputs or K, N)
    pairs = w.reshape(-1, 2, 2, w.shape[1] // BLOCK, BLOCK).astype(jnp.uint8)
    return Packed((pairs[:, 0] & 15 | pairs[:, 1] << 4).transpose(2, 0, 3, 1), scales, inputs or K, N)


def join(parts: Sequence[Packed]) -> Packed | None:
    """Return weights of the same inputs as one, with the outputs of the first one first; None if their blocks do not fit."""
    kinds = {(p.bits, p.has_bytes, p.inputs, p.outputs % BLOCK, p.scales is not None and p.scales.shape[1]) for p in parts}
    if len(kinds) > 1 or parts[0].outputs % BLOCK:
        return None
    blocks, scales = jnp.concatenate([p.blocks for p in parts]), [p.scales for p in parts if p.scales is not None]
    return Packed(blocks, jnp.concatenate(scales) if scales else None, parts[0].inputs, sum(p.outputs for p in parts))


def can_pack(integers: jax.Array, scale: jax.Array) -> bool:
    """Return whether `pack_integers` takes a weight: it has one group, or groups of equal sizes that are multiples of 4."""
    K, groups = integers.shape[0] * (1 if integers.dtype == jnp.int8 else 2), scale.shape[0]
    return groups == 1 or (K % groups == 0 and K // groups % 4 == 0)


def unpack(packed: Packed, dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Return the weight [K, N]; the inverse of `pack`. Integers are multiplied by their scales in float32."""
    return rows(packed, jnp.arange(packed.outputs), dtype).T


def rows(packed: Packed, ids_T: jax.Array, dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Return the weights [T, K] of some outputs. For a tied head, packed from its transpose [D, V], these are embeddings."""
    T, block, lane = ids_T.shape[0], ids_T // BLOCK, ids_T % BLOCK
    w = packed.blocks[block, :, lane]
    if packed.scales is not None:
        if packed.has_bytes:
            w = w.astype(jnp.int16) - 128
        elif packed.bits == 4:
            signed = lax.bitcast_convert_type(w, jnp.int8)
            w = jnp.stack((signed << 4 >> 4, signed >> 4), axis=2)  # a shift to the right keeps the sign
        scale = packed.scales[block, :, lane].astype(jnp.float32)
        w = (w.reshape(T, scale.shape[1], -1).astype(jnp.float32) * scale[..., None]).reshape(T, -1)[:, : packed.inputs]
    return w.astype(dtype)


def matmul(
    equation: str,
    x: jax.Array,
    w: Packed,
    *,
    dtype: DTypeLike,
    out: tuple[str | None, ...] | None = None,
    precision: str = "none",
) -> jax.Array:
    """Compute lm.kernels.ops.matmul for a packed weight, whose inputs are the last axes of x."""
    x_axes, w_axes = equation.split("->")[0].split(",")
    rows = x.shape[: sum(axis not in w_axes for axis in x_axes)]
    y = packed_product(x.reshape(math.prod(rows), w.inputs), w, jnp.dtype(w.result or dtype))
    return y.reshape(*rows, *(w.shape or (w.outputs,)))


def embedding(table: Packed, tokens_BT: jax.Array, dtype: DTypeLike, axis: str = "length") -> jax.Array:
    """Compute lm.kernels.ops.embedding for a table that is packed as a head."""
    return rows(table, tokens_BT.reshape(-1), dtype).reshape(*tokens_BT.shape, table.inputs)
