"""Arrays as small integers and scales, and the product of activations with such a weight.

Integers are symmetric about zero and a scale maps the largest of them to the largest magnitude that shares the scale:
w ≈ q · s with s = max|w| / (2^(bits−1) − 1), and |w − q·s| ≤ s/2. Scales are bfloat16, and q is rounded by the scale as it
is stored, so that the bound holds for what is read back. int4 lies two to a byte, since XLA gives each a byte of its own on
a CPU.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from lm.errors import UserError
from lm.kernels.matmul import gathered, product, spec_of
from lm.parallel.mesh import spec

LARGEST = {8: 127, 4: 7}


def quantize(w: jax.Array, axes: Sequence[int], *, bits: int, group: int = 0) -> tuple[jax.Array, jax.Array]:
    """(integers, scale) of a weight; every position on the other axes has scales of its own.

    Args:
      axes: the axes that a product contracts, adjacent and ascending; on a mesh they must be whole on every device.
      group: how many consecutive elements along `axes` share a scale; 0: all.
    Returns: int8 like w, or with 4 bits uint8 of half the size along the last of `axes`; and bfloat16 scales of w's rank,
      where each of `axes` is as long as there are groups along it.
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


def dequantize(integers: jax.Array, scale: jax.Array, axis: int, dtype=jnp.float32) -> jax.Array:
    """q · s, multiplied in float32. axis: the last that products contract, along which int4 is packed."""
    integers = _unpacked(integers, axis)
    return (integers.astype(jnp.float32) * _spread(scale.astype(jnp.float32), integers.shape)).astype(dtype)


def quantize_rows(x: jax.Array, axis: int = -1) -> tuple[jax.Array, jax.Array]:
    """int8 like x, and a bfloat16 scale for each row along `axis`, which it keeps with length 1."""
    x32 = x.astype(jnp.float32)
    scale = _scale(jnp.max(jnp.abs(x32), axis=axis, keepdims=True), 8)
    return _round(x32, scale, 8), scale


def dequantize_rows(integers: jax.Array, scale: jax.Array) -> jax.Array:
    """float32 of what `quantize_rows` made."""
    return integers.astype(jnp.float32) * scale.astype(jnp.float32)


def quantized_matmul(
    equation: str, x: jax.Array, integers: jax.Array, scale: jax.Array, *, dtype, out: tuple[str | None, ...]
) -> jax.Array:
    """`matmul` (lm/kernels/matmul.py) with q · s as its weight, of which only x has a gradient.

    One scale an output multiplies what the product of x and q gives: x·(q·s) = (x·q)·s, and the integers are exact in `dtype`.
    Otherwise q · s is made first, here and again for the gradient, so that it is never kept.
    """
    return _quantized_matmul(equation, jnp.dtype(dtype), spec(*out), x, integers, scale)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _quantized_matmul(equation, dtype, out_spec, x, integers, scale):
    return _forward(equation, dtype, out_spec, x, integers, scale)[0]


def _forward(equation, dtype, out_spec, x, integers, scale):
    weight, scale_after = _operands(equation, dtype, integers, scale)
    y = product(equation, x.astype(dtype), weight, out_spec)
    y = y if scale_after is None else y * scale_after
    # Of x the gradient needs the dtype and where it lies, and an empty array says both.
    return y.astype(dtype), (x[..., :0], integers, scale)


def _backward(equation, dtype, out_spec, residuals, dy):
    like_x, integers, scale = residuals
    weight, scale_after = _operands(equation, dtype, integers, scale)
    dy = dy if scale_after is None else dy * scale_after
    x_axes, w_axes, y_axes = _terms(equation)
    dx = product(f"{y_axes},{w_axes}->{x_axes}", dy.astype(dtype), weight, spec_of(like_x))
    return dx.astype(like_x.dtype), None, None


_quantized_matmul.defvjp(_forward, _backward)


def _operands(equation, dtype, integers, scale):
    """The weight to multiply with, and what then multiplies the product, or None."""
    x_axes, w_axes, y_axes = _terms(equation)
    inputs = sum(axis in x_axes for axis in w_axes)
    integers, scale = gathered(integers), gathered(scale)
    if math.prod(scale.shape[:inputs]) > 1:
        return dequantize(integers, scale, inputs - 1, dtype), None
    assert y_axes.endswith(w_axes[inputs:])
    return _unpacked(integers, inputs - 1).astype(dtype), jnp.squeeze(scale, range(inputs)).astype(jnp.float32)


def _terms(equation):
    return equation.replace("->", ",").split(",")


def _tile(shape, axes, group):
    """How far, along each axis of a weight, a scale reaches: `group` elements of `axes`, counted from the last of them."""
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


def _split(x, axis, size):
    """An axis, whole on every device, as two of which the second has this size."""
    shape, parts = (*x.shape[:axis], x.shape[axis] // size, size, *x.shape[axis + 1 :]), spec_of(x)
    if parts is not None:
        parts = PartitionSpec(*parts[:axis], None, None, *parts[axis + 1 :])
    return lax.reshape(x, shape, out_sharding=parts)


def _scale(largest, bits):
    return jnp.maximum(largest / LARGEST[bits], jnp.finfo(jnp.bfloat16).tiny).astype(jnp.bfloat16)


def _round(x32, scale, bits):
    return jnp.clip(jnp.round(x32 / scale.astype(jnp.float32)), -LARGEST[bits], LARGEST[bits]).astype(jnp.int8)


def _spread(scale, shape):
    """Scales repeated over their groups. An axis of one scale is left to broadcasting."""
    for axis, (groups, size) in enumerate(zip(scale.shape, shape)):
        if 1 < groups < size:
            scale = jnp.repeat(scale, size // groups, axis=axis)
    return scale


def _unpacked(integers, axis):
    """int8 of either kind."""
    if integers.dtype == jnp.int8:
        return integers
    axis %= integers.ndim
    packed = lax.bitcast_convert_type(integers, jnp.int8)
    pairs = jnp.stack((packed << 4 >> 4, packed >> 4), axis=axis + 1)  # a shift to the right keeps the sign
    shape = (*packed.shape[:axis], 2 * packed.shape[axis], *packed.shape[axis + 1 :])
    return lax.reshape(pairs, shape, out_sharding=spec_of(integers))
