"""The matrix product of the whole codebase: low-precision operands, float32 accumulation, forward and backward.

With autodiff a bfloat16 product with float32 output gets a float32 cotangent, and both products of the backward pass run in
float32. Here the cotangent is cast first. Weights are cast before they are gathered over fsdp, which halves the bytes sent.
Their gradient is reduced onto the weight's own shards in float32.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from lm.parallel.mesh import spec


def matmul(equation: str, x: jax.Array, w: jax.Array, *, dtype, out: tuple[str | None, ...]) -> jax.Array:
    """Return einsum(equation, x, w) with operands cast to `dtype` and float32 accumulation.

    Args:
      equation: `x,w->y`, such as "btd,df->btf". Every letter is in two of the three terms, once in each.
      x: activations, any float dtype.
      w: float32 weight with the sharding of its declaration.
      dtype: of the operands and of the result.
      out: logical axes of the result.
    Returns: the product in `dtype`; gradients are `x.dtype` for x and `w.dtype` for w.
    """
    return _matmul(equation, jnp.dtype(dtype), spec(*out), x, w)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _matmul(equation, dtype, out_spec, x, w):
    return _forward(equation, dtype, out_spec, x, w)[0]


def _forward(equation, dtype, out_spec, x, w):
    y = product(equation, x.astype(dtype), gathered(w.astype(dtype)), out_spec).astype(dtype)
    return y, (x, w)


def _backward(equation, dtype, out_spec, residuals, dy):
    x, w = residuals
    (x_axes, w_axes), y_axes = _terms(equation)
    dy = dy.astype(dtype)
    dx = product(f"{y_axes},{w_axes}->{x_axes}", dy, gathered(w.astype(dtype)), spec_of(x))
    dw = product_over_rows(f"{x_axes},{y_axes}->{w_axes}", x.astype(dtype), dy, spec_of(w))
    return dx.astype(x.dtype), dw.astype(w.dtype)


_matmul.defvjp(_forward, _backward)


def product(equation: str, a: jax.Array, b: jax.Array, out_spec: PartitionSpec | None = None) -> jax.Array:
    """Return the einsum with float32 accumulation and float32 result; with `out_spec` None JAX infers the partition."""
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32, out_sharding=out_spec)


def product_over_rows(equation: str, a: jax.Array, b: jax.Array, out_spec: PartitionSpec | None = None) -> jax.Array:
    """Return the `product` of operands that hold the summed axes as rows, as for the gradient of a weight.

    A CPU first transposes the operand of the leading result axes. Here that is the smaller operand; the result, which is
    smaller still, is transposed instead. Without the barrier XLA would turn both around again.
    """
    (a_axes, b_axes), y_axes = _terms(equation)
    if jax.default_backend() != "cpu" or a.size <= b.size:
        return product(equation, a, b, out_spec)
    both = [axis for axis in y_axes if axis in a_axes and axis in b_axes]
    turned = "".join(both + [axis for term in (b_axes, a_axes) for axis in term if axis in y_axes and axis not in both])
    where = out_spec and PartitionSpec(*(out_spec[y_axes.index(axis)] for axis in turned))
    y = lax.optimization_barrier(product(f"{b_axes},{a_axes}->{turned}", b, a, where))
    return jnp.transpose(y, [turned.index(axis) for axis in y_axes])


def _terms(equation):
    inputs, output = equation.split("->")
    return inputs.split(","), output


def spec_of(x):
    return None if jax.sharding.get_abstract_mesh().empty else jax.typeof(x).sharding.spec


def gathered(w):
    """Gather the weight over the devices that split its model dimension; it stays split over tensor."""
    current = spec_of(w)
    if current is None:
        return w
    embed = spec("embed")[0]
    return jax.sharding.reshard(w, PartitionSpec(*(None if axis == embed else axis for axis in current)))
