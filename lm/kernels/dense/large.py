"""Products of large matrices on an x86 processor, in bfloat16 where it multiplies that, and in float32.

They are the products of training: of one device, since XLA does not know how to split them. Operands of bfloat16 products may
be float32; they are rounded while they are brought into tiles (lm/kernels/dense/gemm.py), which saves passes over memory.
Sums are float32.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from lm.kernels.dense.usable import multiplied, require, usable

SMALLEST = 2**24  # products of numbers; below, the call itself takes as long as XLA
THINNEST = 16  # rows, columns and inputs: what a tile has
PAIR = 32  # rows and columns are filled up to a multiple, and inputs to 64 bytes
SIDE = 2048  # of a panel of the shorter operand: longer sums, and longer sides, are computed one panel after the other
FLOATS = (jnp.bfloat16, jnp.float32)


class Form(NamedTuple):
    """How an einsum is a product of matrices: M, N, K; whether the inputs of each lie side by side; operands swapped."""

    sizes: tuple[int, int, int]
    adjacent: tuple[bool, bool]
    swapped: bool


def takes(
    equation: str,
    a: jax.Array,
    b: jax.Array,
    out_spec: PartitionSpec | None = None,
    *,
    dtype: DTypeLike | None = None,
    result: DTypeLike = jnp.float32,
    total: jax.Array | None = None,
) -> bool:
    """Return whether `product` computes this einsum with operands rounded to `dtype`; None: as they are."""
    dtypes = {a.dtype, b.dtype} if dtype is None else {jnp.dtype(dtype)}
    if len(dtypes) > 1 or a.dtype not in FLOATS or b.dtype not in FLOATS:
        return False
    form = _form(equation, a.shape, b.shape)
    if form is None or math.prod(form.sizes) < SMALLEST or min(form.sizes) < THINNEST:
        return False
    return usable("gemm", *dtypes)


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
    """Compute lm.kernels.ops.product."""
    symmetric = a is b  # if it sums the same axes of both, x · xᵀ: half of it is computed
    dtype = jnp.dtype(a.dtype if dtype is None else dtype)
    if dtype == jnp.float32:
        a, b = a.astype(dtype), b.astype(dtype)
    if total is not None:
        return _called(equation, a, b, dtype, out_spec, jnp.float32, False, total)
    return _multiplied(equation, a, b, dtype, out_spec, result, symmetric)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 3, 4, 5, 6))
def _multiplied(
    equation: str, a: jax.Array, b: jax.Array, dtype: DTypeLike, where: PartitionSpec | None, result: DTypeLike, symmetric: bool
) -> jax.Array:
    """Compute `_called`. Its gradient takes XLA's products; `matmul` has a faster one."""
    return _called(equation, a, b, dtype, where, result, symmetric)


def _called(
    equation: str,
    a: jax.Array,
    b: jax.Array,
    dtype: DTypeLike,
    where: PartitionSpec | None,
    result: DTypeLike,
    symmetric: bool,
    total: jax.Array | None = None,
) -> jax.Array:
    """Return the einsum of operands rounded to `dtype`, added up in float32, in the dtype `result`; `takes` says of which.

    where: partition of the result; None: as JAX infers it. total: see lm.kernels.ops.product.
    Raises ValueError on other processors, and on a mesh of several devices.
    """
    require("gemm", dtype)
    form = _form(equation, a.shape, b.shape)
    assert form is not None  # as `takes` says
    like = jax.eval_shape(functools.partial(jnp.einsum, equation, out_sharding=where), a, b)
    a, b = (b, a) if form.swapped else (a, b)
    M, N, K = form.sizes
    a = lax.reshape(a, (M, K) if form.adjacent[0] else (K, M), out_sharding=_whole())
    b = lax.reshape(b, (N, K) if form.adjacent[1] else (K, N), out_sharding=_whole())
    symmetric = symmetric and form.adjacent[0] == form.adjacent[1]
    side = N if symmetric else min(M, N, SIDE)
    written = result if jnp.dtype(result).name in multiplied() else jnp.float32  # then XLA rounds it
    in_place = jnp.dtype(written) == jnp.float32 and not symmetric  # the sums of one panel go on in the next
    inputs = min(K, SIDE) if in_place else K
    tiles = jax.ShapeDtypeStruct((_padded(side) * _padded(inputs),), dtype)
    sums = () if total is None else (lax.reshape(total, (M, N), out_sharding=_whole()),)
    outputs = jax.ShapeDtypeStruct((M, N), written), tiles
    call = jax.ffi.ffi_call("lm_gemm", outputs, vmap_method="sequential", input_output_aliases={2: 0} if sums else None)
    panel = {"inputs": np.int32(inputs), "panel": np.int32(side)}
    form_bits = form.adjacent[0] + 2 * form.adjacent[1] + 4 * symmetric + 8 * len(sums)
    y, _ = call(a, b, *sums, form=np.int32(form_bits), **panel)
    return lax.reshape(y.astype(result), like.shape, out_sharding=None if _whole() is None else like.sharding.spec)


@_multiplied.defjvp
def _tangent(
    equation: str,
    dtype: DTypeLike,
    where: PartitionSpec | None,
    result: DTypeLike,
    symmetric: bool,
    primals: tuple[jax.Array, jax.Array],
    tangents: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array]:
    (a, b), (da, db) = primals, tangents

    def plain(a: jax.Array, b: jax.Array) -> jax.Array:
        a, b = a.astype(dtype), b.astype(dtype)
        return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32, out_sharding=where)

    return _multiplied(equation, a, b, dtype, where, result, symmetric), (plain(da, b) + plain(a, db)).astype(result)


def _padded(size: int) -> int:
    return -(-size // PAIR) * PAIR


def _whole() -> PartitionSpec | None:
    return None if jax.sharding.get_abstract_mesh().empty else PartitionSpec(None, None)


@functools.cache
def _form(equation: str, a_shape: tuple[int, ...], b_shape: tuple[int, ...]) -> Form | None:
    """Return how the einsum is a product of matrices without a transpose, or None."""
    inputs, y = equation.split("->")
    a, b = inputs.split(",")
    if "." in equation or any(len(set(term)) < len(term) for term in (a, b, y)):
        return None
    sizes = {**dict(zip(a, a_shape)), **dict(zip(b, b_shape))}
    summed = "".join(axis for axis in a if axis in b and axis not in y)
    mine, theirs = ("".join(axis for axis in term if axis not in summed) for term in (a, b))
    swapped = y == theirs + mine
    if not summed or set(mine) & set(theirs) or not (y == mine + theirs or swapped):
        return None
    adjacent = []
    for term, free in ((a, mine), (b, theirs)):
        if term not in (free + summed, summed + free):
            return None
        adjacent.append(term == free + summed)
    M, N, K = (math.prod(sizes[axis] for axis in term) for term in (mine, theirs, summed))
    return Form((N, M, K), (adjacent[1], adjacent[0]), True) if swapped else Form((M, N, K), (adjacent[0], adjacent[1]), False)
