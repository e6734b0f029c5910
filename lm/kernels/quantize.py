"""Quantization of arrays to int8 or int4 with scales, and the product of activations with a quantized weight.

Integers are symmetric about zero: w ≈ q · s with s = max|w| / (2^(bits−1) − 1), the maximum over all weights that share the
scale. So |w − q·s| ≤ s/2. Scales are stored in bfloat16, and q is computed from the stored scale, so that the bound holds for
the dequantized weight. Two int4 share a byte, because XLA on a CPU would give each its own byte.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from lm.errors import UserError
from lm.kernels.matmul import gathered, product_of_rows, rounded
from lm.parallel.mesh import spec, spec_of

LARGEST = {8: 127, 4: 7}


def quantize(w: jax.Array, axes: Sequence[int], *, bits: int, group: int = 0) -> tuple[jax.Array, jax.Array]:
    """Quantize a weight. Return (integers, scale); every position on the other axes has its own scales.

    Args:
      axes: the axes that a product contracts, adjacent and ascending; on a mesh they must not be sharded.
      group: how many consecutive elements along `axes` share a scale; 0: all.
    Returns: int8 of w's shape, or for 4 bits uint8 of half the size along the last of `axes`; and bfloat16 scales of w's rank.
      The size of a scale along each of `axes` is the number of groups.
    """
    last = axes[-1] % w.ndim
    tile = _tile(w.shape, axes, group)
    w32 = w.astype(jnp.float32)
    largest = jnp.abs(w32)
    for axis, size in enumerate(tile):
        if size > 1:
            largest = jnp.max(_split(largest, axis, size), axis=axis + 1)
    scale = _scale(largest, bits)
    integers = _round(w32, _spread(scale, w.shape), bits)
    if bits == 8:
        return integers, scale
    if w.shape[last] % 2:
        raise UserError(f"quantization.bits=4 packs pairs of inputs, and a weight of shape {w.shape} has an odd number of them")
    pairs = jnp.moveaxis(_split(integers, last, 2), last + 1, 0).astype(jnp.uint8)
    return pairs[0] & 15 | pairs[1] << 4, scale


def dequantize(integers: jax.Array, scale: jax.Array, axis: int, dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Return q · s, multiplied in float32. axis: the last contracted axis, along which int4 is packed."""
    integers = unpacked(integers, axis)
    return (integers.astype(jnp.float32) * _spread(scale.astype(jnp.float32), integers.shape)).astype(dtype)


def quantize_rows(x: jax.Array, axis: int = -1) -> tuple[jax.Array, jax.Array]:
    """Return int8 of x's shape, and a bfloat16 scale per row; the scale has length 1 along `axis`."""
    x32 = x.astype(jnp.float32)
    scale = _scale(jnp.max(jnp.abs(x32), axis=axis, keepdims=True), 8)
    return _round(x32, scale, 8), scale


def dequantize_rows(integers: jax.Array, scale: jax.Array) -> jax.Array:
    """Return float32 values; the inverse of `quantize_rows`."""
    return integers.astype(jnp.float32) * scale.astype(jnp.float32)


class Integers(NamedTuple):
    """A weight of `quantize`: integers q, int8 or two int4 in a uint8, and their scales s, bfloat16."""

    integers: jax.Array
    scale: jax.Array

    @property
    def stored(self) -> str:
        """What lm/kernels/ops.py knows the weight by."""
        return "integers"


def matmul(
    equation: str, x: jax.Array, w: Integers, *, dtype: DTypeLike, out: tuple[str | None, ...], precision: str = "none"
) -> jax.Array:
    """Compute lm.kernels.ops.matmul with q · s as its weight. Only x has a gradient.

    If there is one scale per output, x·(q·s) = (x·q)·s: the scale multiplies the product, and the integers are exact in
    `dtype`. Otherwise q · s is computed first, and again for the gradient, so that it is never kept.
    """
    return _quantized_matmul(equation, jnp.dtype(dtype), spec(*out), x, *w)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _quantized_matmul(
    equation: str, dtype: jnp.dtype, out_spec: PartitionSpec | None, x: jax.Array, integers: jax.Array, scale: jax.Array
) -> jax.Array:
    return _forward(equation, dtype, out_spec, x, integers, scale)[0]


def _forward(
    equation: str, dtype: jnp.dtype, out_spec: PartitionSpec | None, x: jax.Array, integers: jax.Array, scale: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    weight, scale_after = _operands(equation, dtype, integers, scale)
    y = product_of_rows(equation, rounded(x, dtype), weight, out_spec, dtype=dtype, result=jnp.float32)
    y = y if scale_after is None else y * scale_after
    # The gradient needs only x's dtype and sharding; an empty array has both.
    return y.astype(dtype), (x[..., :0], integers, scale)


def _backward(
    equation: str, dtype: jnp.dtype, out_spec: PartitionSpec | None, residuals: tuple[jax.Array, ...], dy: jax.Array
) -> tuple[jax.Array, None, None]:
    like_x, integers, scale = residuals
    weight, scale_after = _operands(equation, dtype, integers, scale)
    dy = dy if scale_after is None else dy * scale_after
    x_axes, w_axes, y_axes = _terms(equation)
    of_x = f"{y_axes},{w_axes}->{x_axes}"
    return product_of_rows(of_x, dy.astype(dtype), weight, spec_of(like_x), dtype=dtype, result=like_x.dtype), None, None


_quantized_matmul.defvjp(_forward, _backward)


def _operands(equation: str, dtype: jnp.dtype, integers: jax.Array, scale: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    """Return the weight to multiply with, and the scale to apply to the product afterwards, or None."""
    x_axes, w_axes, y_axes = _terms(equation)
    inputs = sum(axis in x_axes for axis in w_axes)
    integers, scale = gathered(integers), gathered(scale)
    if math.prod(scale.shape[:inputs]) > 1:
        return dequantize(integers, scale, inputs - 1, dtype), None
    assert y_axes.endswith(w_axes[inputs:])
    return unpacked(integers, inputs - 1).astype(dtype), jnp.squeeze(scale, range(inputs)).astype(jnp.float32)


def _terms(equation: str) -> list[str]:
    return equation.replace("->", ",").split(",")


def _tile(shape: tuple[int, ...], axes: Sequence[int], group: int) -> tuple[int, ...]:
    """Return the size of a group along each axis: `group` elements of `axes`, filled from the last axis on."""
    tile, left = [1] * len(shape), group
    for axis in sorted((axis % len(shape) for axis in axes), reverse=True):
        size = shape[axis]
        part = size if group == 0 else min(size, left)
        if size % part or (group and left % part):
            left = 0
            break
        tile[axis], left = part, left // part
    if group and left != 1:
        sizes = " × ".join(str(shape[axis]) for axis in axes)
        raise UserError(f"quantization.group={group} does not divide the {sizes} inputs of a weight of shape {tuple(shape)}")
    return tuple(tile)


def _split(x: jax.Array, axis: int, size: int) -> jax.Array:
    """Split an unsharded axis into two; the second has this size."""
    shape, parts = (*x.shape[:axis], x.shape[axis] // size, size, *x.shape[axis + 1 :]), spec_of(x)
    if parts is not None:
        parts = PartitionSpec(*parts[:axis], None, None, *parts[axis + 1 :])
    return lax.reshape(x, shape, out_sharding=parts)


def _scale(largest: jax.Array, bits: int) -> jax.Array:
    return jnp.maximum(largest / LARGEST[bits], jnp.finfo(jnp.bfloat16).tiny).astype(jnp.bfloat16)


def _round(x32: jax.Array, scale: jax.Array, bits: int) -> jax.Array:
    return jnp.clip(jnp.round(x32 / scale.astype(jnp.float32)), -LARGEST[bits], LARGEST[bits]).astype(jnp.int8)


def _spread(scale: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Repeat scales over their groups. An axis with one scale is left to broadcasting."""
    for axis, (groups, size) in enumerate(zip(scale.shape, shape)):
        if 1 < groups < size:
            scale = jnp.repeat(scale, size // groups, axis=axis)
    return scale


def unpacked(integers: jax.Array, axis: int) -> jax.Array:
    """Return int8 values of int8 or packed int4."""
    if integers.dtype == jnp.int8:
        return integers
    axis %= integers.ndim
    packed = lax.bitcast_convert_type(integers, jnp.int8)
    pairs = jnp.stack((packed << 4 >> 4, packed >> 4), axis=axis + 1)  # a shift to the right keeps the sign
    shape = (*packed.shape[:axis], 2 * packed.shape[axis], *packed.shape[axis + 1 :])
    return lax.reshape(pairs, shape, out_sharding=spec_of(integers))
