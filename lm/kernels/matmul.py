"""The product of activations with a weight: low-precision operands, float32 accumulation, forward and backward.

With autodiff a bfloat16 product with float32 output gets a float32 cotangent, and both products of the backward pass run in
float32. Here the cotangent is cast first. Weights are cast before they are gathered over fsdp, which halves the bytes sent.
Their gradient is reduced onto the weight's own shards in float32.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from lm.kernels import ops
from lm.parallel.arrays import PyTree
from lm.parallel.context import scattered_rows, split_by, whole_rows
from lm.parallel.mesh import embed_axes, free_axes, platform, several, spec, spec_of, token_axes, ways
from lm.parallel.torus import groups_along, rings

LONGEST = 8  # devices of a ring around which products are summed; around longer ones the parts are too thin


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3, 4, 5))
def matmul(
    equation: str, x: jax.Array, w: jax.Array, dtype: DTypeLike, out: tuple[str | None, ...], precision: str = "none"
) -> jax.Array:
    """Compute lm.kernels.ops.matmul for a weight that is an array."""
    return product_of_rows(equation, rounded(x, dtype), gathered(rounded(w, dtype)), spec(*out), dtype=dtype)


def _forward(
    equation: str, x: jax.Array, w: jax.Array, dtype: DTypeLike, out: tuple[str | None, ...], precision: str
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return product_of_rows(equation, rounded(x, dtype), gathered(rounded(w, dtype)), spec(*out), dtype=dtype), (x, w)


def gradients(
    equation: str,
    dtype: DTypeLike,
    out: tuple[str | None, ...],
    precision: str,
    residuals: tuple[jax.Array, jax.Array],
    dy: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Return the gradients of x and w from that of the result, dy, by products in `dtype`. residuals: (x, w)."""
    x, w = residuals
    (x_axes, w_axes), y_axes = _terms(equation)
    of_x, of_w = f"{y_axes},{w_axes}->{x_axes}", f"{x_axes},{y_axes}->{w_axes}"
    x_low, dy, where = rounded(x, dtype), rounded(dy, dtype), spec_of(x)
    if split_by(where) != split_by(spec_of(dy)):
        x_low, dy = whole_rows(x_low), whole_rows(dy)
    dx = product_of_rows(of_x, dy, gathered(rounded(w, dtype)), where, dtype=dtype, result=x.dtype)
    dw = product_reduced(of_w, x_low, dy, spec_of(w), multiply=functools.partial(ops.product, dtype=dtype))
    return dx, dw.astype(w.dtype)


matmul.defvjp(_forward, gradients)


def rounded(x: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Return x in `dtype` where it may be sent between devices. On one device the product itself rounds, which can be free."""
    mesh = jax.sharding.get_abstract_mesh()
    return x if mesh.empty or mesh.size == 1 else x.astype(dtype)


def product_of_rows(
    equation: str,
    x: jax.Array,
    w: jax.Array,
    out_spec: PartitionSpec | None,
    *,
    dtype: DTypeLike,
    result: DTypeLike | None = None,
) -> jax.Array:
    """Return the `product` of an activation [B, T, …] and a gathered weight, with the partition `out_spec`.

    dtype: of the operands. result: of the result; None: `dtype`.
    Where only x splits T over tensor, T is gathered first. Where only the result does and the product sums over tensor, the
    sum is scattered along T (lm/parallel/context.py). Then the devices' products are rounded to x's dtype before they are
    sent, which halves the bytes, and so is the result.
    """
    if not split_by(out_spec):
        return ops.product(equation, whole_rows(x), w, out_spec, dtype=dtype, result=result or dtype)
    if split_by(spec_of(x)) or "tensor" not in (spec_of(w) or ()):
        return ops.product(equation, x, w, out_spec, dtype=dtype, result=result or dtype)

    def on_device(x: jax.Array, w: jax.Array) -> jax.Array:
        return scattered_rows(ops.product(equation, x, w, dtype=dtype, result=dtype))

    specs = spec_of(x), spec_of(w)
    y = jax.shard_map(on_device, in_specs=specs, out_specs=out_spec, check_vma=False, axis_names=free_axes())(x, w)
    return y.astype(result or dtype)


def product(
    equation: str,
    a: jax.Array,
    b: jax.Array,
    out_spec: PartitionSpec | None = None,
    *,
    dtype: DTypeLike | None = None,
    result: DTypeLike = jnp.float32,
    total: jax.Array | None = None,
) -> jax.Array:
    """Compute lm.kernels.ops.product by XLA."""
    a, b = (a, b) if dtype is None else (a.astype(dtype), b.astype(dtype))
    y = jnp.einsum(equation, a, b, preferred_element_type=jnp.float32, out_sharding=out_spec).astype(result)
    return y if total is None else total + y


def _terms(equation: str) -> tuple[list[str], str]:
    inputs, output = equation.split("->")
    return inputs.split(","), output


def gathered(w: jax.Array) -> jax.Array:
    """Gather the weight over the devices that split its model dimension; it stays split over tensor."""
    current, embed = spec_of(w), spec("embed")
    if current is None or embed is None:
        return w
    return jax.sharding.reshard(w, PartitionSpec(*[None if axis == embed[0] else axis for axis in current]))


def partial_spec(where: PartitionSpec | None) -> PartitionSpec | None:
    """Return the partition of a weight's gradient before it is summed over devices; the weight's own partition is `where`.

    The gradient is whole over fsdp, split over tensor like the weight, and unreduced over the axes that split tokens.
    """
    if where is None or ways("rows") == 1:
        return where
    embed = embed_axes()
    return PartitionSpec(*(None if axis == embed else axis for axis in where), unreduced=frozenset(token_axes()))


def product_reduced(
    equation: str,
    a: PyTree,
    b: PyTree,
    where: PartitionSpec | None,
    *,
    prepare: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]] | None = None,
    multiply: Callable[..., jax.Array] = ops.product,
) -> jax.Array:
    """Return the float32 `product` with the partition `where`: each device multiplies its own rows, then sums are scattered.

    prepare, multiply: for operands in low precision, which are tuples of arrays (lm/kernels/low_precision.py). A device calls
    prepare(a, b) for its rows, then multiply(equation, a, b) for these operands or slices of them.
    """
    if where is None or ways("rows") == 1:
        a, b = prepare(a, b) if prepare else (a, b)
        return multiply(equation, a, b, where)

    def on_device(a: PyTree, b: PyTree) -> jax.Array:
        sizes, (a, b) = rings("fsdp"), prepare(a, b) if prepare else (a, b)
        if platform() == "tpu" and "fsdp" in where and 1 < sizes[0] <= LONGEST:
            part = product_around_ring(equation, a, b, "fsdp", where.index("fsdp"), sizes, multiply)
            return scattered(part, where, over, first=1)
        return scattered(multiply(equation, a, b), where, over)

    over = token_axes()
    if split_by(spec_of(jax.tree.leaves(a)[0])):
        over += ("tensor",)
    specs = jax.tree.map(spec_of, (a, b))
    return jax.shard_map(on_device, in_specs=specs, out_specs=where, check_vma=False, axis_names=free_axes())(a, b)


def scattered(x: jax.Array, where: PartitionSpec, over: tuple[str, ...], first: int = 0) -> jax.Array:
    """Within a shard_map, return this device's part of the sum of x over the axes `over`; `where`: partition of the sum.

    It is scattered over fsdp first: then the sums over the other axes are smaller by the size of fsdp. An axis that winds
    through several rings of a torus is scattered ring by ring, because a TPU's compiler would sum everything on every device.
    first: the ring to begin with, if x is summed over outer ones.
    """
    rest = set(over)
    for dimension, axis in enumerate(where):
        if axis is None or not rest.issuperset(several(axis)):
            continue
        rest -= set(several(axis))
        sizes = rings(axis)
        for n in range(first, len(sizes)):
            groups = None if len(sizes) == 1 else groups_along(sizes, n)
            x = lax.psum_scatter(x, axis, scatter_dimension=dimension, tiled=True, axis_index_groups=groups)
    return lax.psum(x, tuple([axis for axis in over if axis in rest]))


def product_around_ring(
    equation: str,
    a: PyTree,
    b: PyTree,
    axis: str,
    dimension: int,
    sizes: tuple[int, ...],
    multiply: Callable[..., jax.Array] = ops.product,
) -> jax.Array:
    """Within a shard_map, return the product, scattered along `dimension` over the outermost ring of an axis.

    sizes: of its rings. a, b, multiply: as in `product_reduced`; all arrays of an operand have the same axes. The part of the
    result for each device of the ring travels around it, and every device adds its own product just before it sends it on (a
    collective matmul, Wang et al. 2023). Half of each part goes one way and half the other. A TPU sends in the background while
    it multiplies; it would not put a reduce-scatter there.
    """
    (a_axes, b_axes), y_axes = _terms(equation)
    letter, size = y_axes[dimension], sizes[0]
    if letter in b_axes:
        a, b, a_axes, b_axes = b, a, b_axes, a_axes
    places = np.arange(math.prod(sizes)).reshape(sizes)
    mine = lax.axis_index(axis) // math.prod(sizes[1:])
    at = a_axes.index(letter)
    a = jax.tree.map(lambda a: jnp.moveaxis(a.reshape(*a.shape[:at], size, -1, *a.shape[at + 1 :]), at, 0), a)
    # What is halved is an axis of the other operand, so that each product stays as wide as it can.
    halved = next(other for other in b_axes if other in y_axes)
    along = b_axes.index(halved)
    parts = 2 if jax.tree.leaves(b)[0].shape[along] % 2 == 0 else 1

    def own(half: PyTree, way: int, step: int) -> jax.Array:
        index = functools.partial(lax.dynamic_index_in_dim, index=(mine - way * step) % size, keepdims=False)
        return multiply(f"{a_axes},{b_axes}->{y_axes}", jax.tree.map(index, a), half)

    sums = []
    halves = [jax.tree.map(lambda b, n=n: jnp.split(b, parts, axis=along)[n], b) for n in range(parts)]
    for way, half in zip((1, -1), halves):
        pairs = list(zip(places.ravel().tolist(), np.roll(places, -way, axis=0).ravel().tolist()))
        total = own(half, way, 1)
        for step in range(2, size + 1):
            total = lax.ppermute(total, axis, pairs) + own(half, way, step)
        sums.append(total)
    return jnp.concatenate(sums, axis=y_axes.index(halved))


def reduced(partial: jax.Array, where: PartitionSpec | None) -> jax.Array:
    """Return the sum over devices of an array with partition `partial_spec(where)`, with the partition `where`."""
    if where is None or ways("rows") == 1:
        return partial
    # Scatter over fsdp first: then the sums over the other axes are smaller by the size of fsdp.
    rest = frozenset(token_axes()) - {name for axis in where if axis for name in several(axis)}
    return jax.sharding.reshard(jax.sharding.reshard(partial, PartitionSpec(*where, unreduced=rest)), where)
