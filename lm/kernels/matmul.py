"""The matrix product of the whole codebase: low-precision operands, float32 accumulation, forward and backward.

With autodiff a bfloat16 product with float32 output gets a float32 cotangent, and both products of the backward pass run in
float32. Here the cotangent is cast first. Weights are cast before they are gathered over fsdp, which halves the bytes sent.
Their gradient is reduced onto the weight's own shards in float32.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from lm.parallel.mesh import RULES, platform, row_ways, spec
from lm.parallel.torus import rings


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
    dw = product_reduced(f"{x_axes},{y_axes}->{w_axes}", x.astype(dtype), dy, spec_of(w))
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
    if platform() != "cpu" or a.size <= b.size:
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
    """Gather the weight over fsdp; it stays split over tensor."""
    current = spec_of(w)
    if current is None:
        return w
    return jax.sharding.reshard(w, PartitionSpec(*(None if axis == "fsdp" else axis for axis in current)))


def partial_spec(where: PartitionSpec | None) -> PartitionSpec | None:
    """Return the partition of a weight's gradient before it is summed over devices; the weight's own partition is `where`.

    The gradient is whole over fsdp, split over tensor like the weight, and unreduced over the axes that split rows.
    """
    if where is None or row_ways() == 1:
        return where
    return PartitionSpec(*(None if axis in RULES["batch"] else axis for axis in where), unreduced=frozenset(RULES["batch"]))


def product_reduced(equation: str, a: jax.Array, b: jax.Array, where: PartitionSpec | None) -> jax.Array:
    """Return `product_over_rows` with the partition `where`: each device multiplies its own rows, then sums are scattered."""
    if where is None or row_ways() == 1:
        return product_over_rows(equation, a, b, where)

    def on_device(a, b):
        return scattered(product_over_rows(equation, a, b), where)

    return jax.shard_map(on_device, in_specs=(spec_of(a), spec_of(b)), out_specs=where, check_vma=False)(a, b)


def scattered(x: jax.Array, where: PartitionSpec) -> jax.Array:
    """Within a shard_map, return this device's part of the sum of x over the axes that split rows; `where`: of the sum.

    It is scattered over fsdp first: then the sums over the other axes are smaller by the size of fsdp.
    """
    left = list(RULES["batch"])
    for dimension, axis in enumerate(where):
        if axis in left:
            left.remove(axis)
            if platform() == "tpu":
                x = scattered_by_rings(x, axis, dimension, rings(axis))
            else:
                x = lax.psum_scatter(x, axis, scatter_dimension=dimension, tiled=True)
    return lax.psum(x, tuple(left))


def scattered_by_rings(x: jax.Array, axis: str, dimension: int, sizes: tuple[int, ...]) -> jax.Array:
    """Within a shard_map, return the same as psum_scatter(x, axis, dimension, tiled), by sending parts of sums from device to
    device around each ring of the torus, half of them one way and half the other.

    A TPU sends in the background while it computes, but its compiler does not put a reduce-scatter in the background, and for
    an axis of several rings it makes it a sum of everything on every device. sizes: of the rings, outermost first.
    """
    places = np.arange(math.prod(sizes)).reshape(sizes)
    here = lax.axis_index(axis)
    for n, size in enumerate(sizes):
        if size == 1:
            continue
        mine = here // math.prod(sizes[n + 1 :]) % size
        x = jnp.moveaxis(x, dimension, 0)
        halves = jnp.split(x.reshape(size, x.shape[0] // size, *x.shape[1:]), 2 if x.shape[0] // size % 2 == 0 else 1, axis=1)
        sums = []
        for way, chunks in zip((1, -1), halves):
            pairs = list(zip(places.ravel().tolist(), np.roll(places, -way, axis=n).ravel().tolist()))
            part = lax.dynamic_index_in_dim(chunks, (mine - way) % size, keepdims=False)
            for step in range(2, size + 1):
                own = lax.dynamic_index_in_dim(chunks, (mine - way * step) % size, keepdims=False)
                part = lax.ppermute(part, axis, pairs) + own
            sums.append(part)
        x = jnp.moveaxis(jnp.concatenate(sums, axis=0), 0, dimension)
    return x


def reduced(partial: jax.Array, where: PartitionSpec | None) -> jax.Array:
    """Return the sum over devices of an array with partition `partial_spec(where)`, with the partition `where`."""
    if where is None or row_ways() == 1:
        return partial
    # Scatter over fsdp first: then the sums over the other axes are smaller by the size of fsdp.
    rest = frozenset(RULES["batch"]) - {axis for axis in where if axis}
    return jax.sharding.reshard(jax.sharding.reshard(partial, PartitionSpec(*where, unreduced=rest)), where)
