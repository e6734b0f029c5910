"""The matrix product of training with int8 or float8 operands: forward and backward, with float32 weights and results.

An operand is rounded to values · scale. Numbers that a product sums share a scale, their largest size over the largest value
(current scaling), so a scale multiplies the sum. Activations and weights are rounded once, and all three products use them:

  y  = Q(x) · Q(w)                     Q(x): a scale for each row of x, Q(w): one for each output
  dx = Q(dy ⊙ scale of Q(w)) · q(w)ᵀ   q: the values without their scale, which dy has taken over before it is rounded
  dw = q(x)ᵀ · Q(dy ⊙ scale of Q(x))   a scale for each output, over the rows of one device

int8 (Abdolrashidi et al. 2021; MaxText's `quantization=int8`): sums are int32. float8 (Micikevicius et al. 2022): e4m3 for
x and w, e5m2 for gradients, sums are float32. Rounding is to the nearest value. Weights are gathered over fsdp as values, half
the bytes of bfloat16.
"""

import functools
import math
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from lm.kernels.matmul import gathered, product_reduced
from lm.kernels.saved import saved
from lm.parallel.context import whole_rows
from lm.parallel.mesh import reshard, spec, spec_of


class Kind(NamedTuple):
    """Dtypes. values: of x and w. gradients: of dy."""

    values: jnp.dtype
    gradients: jnp.dtype


KINDS = {
    "int8": Kind(jnp.dtype(jnp.int8), jnp.dtype(jnp.int8)),
    "float8": Kind(jnp.dtype(jnp.float8_e4m3fn), jnp.dtype(jnp.float8_e5m2)),
}

MIN = 1e-30  # of the largest number that a scale is computed from: zeros need a scale too


class Scaled(NamedTuple):
    """values · scale. The float32 scale has the rank of the values, and size 1 along the axes that a product sums; None: 1."""

    values: jax.Array
    scale: jax.Array | None


Residuals: TypeAlias = tuple[Scaled, jax.Array, jax.Array, jax.Array]  # Q(x), w, its scale, a number of x's dtype


def matmul(
    equation: str, x: jax.Array, w: jax.Array, *, dtype: DTypeLike, out: tuple[str | None, ...], precision: str
) -> jax.Array:
    """Compute lm.kernels.ops.matmul with operands in low precision, and so both products of its gradient.

    In `equation` x has rows and inputs, w inputs and outputs, y rows and outputs, in this order. What is not finite stays so.
    """
    whole = tuple("length" if axis == "sequence" else axis for axis in out)
    y = _matmul(equation, precision, jnp.dtype(dtype), spec(*whole), whole_rows(x), w)
    return y if whole == out else reshard(y, *out)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _matmul(
    equation: str, kind: str, dtype: jnp.dtype, out_spec: PartitionSpec | None, x: jax.Array, w: jax.Array
) -> jax.Array:
    return _forward(equation, kind, dtype, out_spec, x, w)[0]


def _forward(
    equation: str, kind: str, dtype: jnp.dtype, out_spec: PartitionSpec | None, x: jax.Array, w: jax.Array
) -> tuple[jax.Array, Residuals]:
    (x_axes, w_axes), _ = _terms(equation)
    values = KINDS[kind].values
    q_x = rounded(x, _indices(x_axes, w_axes), values)
    # A scale over inputs that are split over devices needs messages between them, so it is kept; the values are not.
    scale = saved(scale_of(w, _indices(w_axes, x_axes), values))
    q_w = Scaled(gathered(round_to(w, scale, values)), gathered(scale))
    return scaled_product(equation, q_x, q_w, out_spec).astype(dtype), (q_x, w, scale, jnp.zeros((), x.dtype))


def _backward(
    equation: str, kind: str, dtype: jnp.dtype, out_spec: PartitionSpec | None, residuals: Residuals, dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    q_x, w, scale, like_x = residuals
    (x_axes, w_axes), y_axes = _terms(equation)
    of = KINDS[kind]
    for_x = rounded(dy * in_result(gathered(scale), w_axes, y_axes), _indices(y_axes, w_axes), of.gradients)
    q_w = Scaled(gathered(round_to(w, scale, of.values)), None)
    dx = scaled_product(f"{y_axes},{w_axes}->{x_axes}", for_x, q_w, spec_of(q_x.values))

    def on_device(q_x: Scaled, dy: jax.Array) -> tuple[Scaled, Scaled]:
        dy = dy * in_result(q_x.scale, x_axes, y_axes)
        return Scaled(q_x.values, None), rounded(dy, _indices(y_axes, x_axes), of.gradients)

    into = f"{x_axes},{y_axes}->{w_axes}"
    dw = product_reduced(into, q_x, dy, spec_of(w), prepare=on_device, multiply=scaled_product)
    return dx.astype(like_x.dtype), dw.astype(w.dtype)


_matmul.defvjp(_forward, _backward)


def rounded(x: jax.Array, axes: tuple[int, ...], dtype: jnp.dtype) -> Scaled:
    """Return x in `dtype` with a scale for all numbers along `axes`, those that a product will sum."""
    scale = scale_of(x, axes, dtype)
    return Scaled(round_to(x, scale, dtype), scale)


def scale_of(x: jax.Array, axes: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """Return max|x| over the largest value of `dtype`, float32, with size 1 along `axes`."""
    largest = jnp.max(jnp.abs(x.astype(jnp.float32)), axis=axes, keepdims=True)
    return jnp.maximum(largest, MIN) / _largest_value(dtype, math.prod(x.shape[axis] for axis in axes))


def round_to(x: jax.Array, scale: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Return the values of `dtype` nearest to x / scale."""
    x = x.astype(jnp.float32) * (1 / scale)
    return (jnp.round(x) if jnp.issubdtype(dtype, jnp.integer) else x).astype(dtype)


def scaled_product(equation: str, a: Scaled, b: Scaled, out_spec: PartitionSpec | None = None) -> jax.Array:
    """Return the float32 einsum of two operands. Integers are summed in int32, floats in float32, before they are scaled."""
    (a_axes, b_axes), y_axes = _terms(equation)
    sums = jnp.int32 if jnp.issubdtype(a.values.dtype, jnp.integer) else jnp.float32
    y = jnp.einsum(equation, a.values, b.values, preferred_element_type=sums, out_sharding=out_spec).astype(jnp.float32)
    for scale, axes in ((a.scale, a_axes), (b.scale, b_axes)):
        y = y if scale is None else y * in_result(scale, axes, y_axes)
    return y


def in_result(scale: jax.Array | None, axes: str, y_axes: str) -> jax.Array | float:
    """Return the scale of an operand with these axes in the layout of a result, where the other axes have size 1."""
    if scale is None:
        return 1.0
    kept = [axis for axis in axes if axis in y_axes]
    assert kept == [axis for axis in y_axes if axis in axes], "an operand's axes keep their order"
    scale = jnp.squeeze(scale, tuple(n for n, axis in enumerate(axes) if axis not in y_axes))
    return jnp.expand_dims(scale, tuple(n for n, axis in enumerate(y_axes) if axis not in axes))


def _largest_value(dtype: jnp.dtype, count: int) -> float:
    """Return the largest value of `dtype`; of integers the largest that cannot overflow a sum of `count` products in int32."""
    if not jnp.issubdtype(dtype, jnp.integer):
        return float(jnp.finfo(dtype).max)
    most = jnp.iinfo(dtype).max
    return float(max(1, min(most, (2**31 - 1) // (most * max(1, count)))))


def _terms(equation: str) -> tuple[list[str], str]:
    inputs, output = equation.split("->")
    return inputs.split(","), output


def _indices(axes: str, shared: str) -> tuple[int, ...]:
    """Return the positions of those axes that are in `shared`."""
    return tuple(n for n, axis in enumerate(axes) if axis in shared)
