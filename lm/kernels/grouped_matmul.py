"""Grouped matrix product: rows sorted by group, one matrix per group. Expert layers are built from it.

As in lm/kernels/matmul.py, operands have the compute dtype and sums are float32, forward and backward.

Axes: N rows, E groups, D inputs, F outputs.
"""

import functools
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from lm.kernels.ops import product

Over: TypeAlias = tuple[str | tuple[str, ...] | None, int]  # mesh axes, and the axis of a weight that they split
Residuals: TypeAlias = tuple[jax.Array, jax.Array, jax.Array | None]  # x, w, sizes


def grouped_matmul(
    x: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array | None = None, *, dtype: DTypeLike, over: Over | None = None
) -> jax.Array:
    """Multiply each row of group e by w[e].

    Args:
      x: [N, D]; the first sizes[0] rows belong to group 0, the next sizes[1] to group 1, and so on. Rows after the last group
        give unspecified results and no gradient to w. Without sizes: [E, C, D], C rows per group.
      w_EDF: float32. sizes_E: int32, sum at most N.
      dtype: of the operands and of the result.
      over: (mesh axis or axes, axis of w) if w is split within a shard_map. w is gathered after the cast to `dtype`; its
        gradient is reduce-scattered in float32.
    Returns: [N, F] or [E, C, F] in `dtype`; gradients are `x.dtype` for x and `w.dtype` for w.
    """
    return _grouped(jnp.dtype(dtype), over, x, w_EDF, sizes_E)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _grouped(dtype: jnp.dtype, over: Over | None, x: jax.Array, w: jax.Array, sizes: jax.Array | None) -> jax.Array:
    return _forward(dtype, over, x, w, sizes)[0]


def _forward(
    dtype: jnp.dtype, over: Over | None, x: jax.Array, w: jax.Array, sizes: jax.Array | None
) -> tuple[jax.Array, Residuals]:
    return _times(x.astype(dtype), _gathered(w, dtype, over), sizes, transposed=False), (x, w, sizes)


def _backward(dtype: jnp.dtype, over: Over | None, residuals: Residuals, dy: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    x, w, sizes = residuals
    dy = dy.astype(dtype)
    dx = _times(dy, _gathered(w, dtype, over), sizes, transposed=True)
    dw = _outer(x.astype(dtype), dy, sizes)
    if over:
        dw = lax.psum_scatter(dw, over[0], scatter_dimension=over[1], tiled=True)
    return dx.astype(x.dtype), dw.astype(w.dtype), None


_grouped.defvjp(_forward, _backward)


def _gathered(w: jax.Array, dtype: jnp.dtype, over: Over | None) -> jax.Array:
    return lax.all_gather(w.astype(dtype), over[0], axis=over[1], tiled=True) if over else w


def _times(x: jax.Array, w: jax.Array, sizes: jax.Array | None, *, transposed: bool) -> jax.Array:
    """Return x · w[group], or x · w[group]ᵀ, rounded once to x's dtype."""
    if sizes is None:
        return product("ecf,edf->ecd" if transposed else "ecd,edf->ecf", x, w.astype(x.dtype)).astype(x.dtype)
    by_block = functools.partial(_times_by_block, transposed=transposed)
    ragged = functools.partial(_times_ragged, transposed=transposed)
    return lax.platform_dependent(x, w, sizes, cpu=by_block, default=ragged)


def _outer(x: jax.Array, dy: jax.Array, sizes: jax.Array | None) -> jax.Array:
    """Return xᵀ · dy summed over the rows of each group, float32 [E, D, F]."""
    if sizes is None:
        return product("ecd,ecf->edf", x, dy)
    return lax.platform_dependent(x, dy, sizes, cpu=_outer_by_block, default=_outer_ragged)


def _times_ragged(x: jax.Array, w: jax.Array, sizes: jax.Array, *, transposed: bool) -> jax.Array:
    numbers = lax.RaggedDotDimensionNumbers((((1,), (2 if transposed else 1,)), ((), ())), [0], [0])
    return lax.ragged_dot_general(x, w.astype(x.dtype), sizes, numbers, preferred_element_type=jnp.float32).astype(x.dtype)


def _outer_ragged(x: jax.Array, dy: jax.Array, sizes: jax.Array) -> jax.Array:
    numbers = lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), [0], [])
    return lax.ragged_dot_general(x, dy, sizes, numbers, preferred_element_type=jnp.float32)


# On a CPU XLA computes a ragged product as E masked products of all rows. Here each block of rows is multiplied by its group's
# matrix. The number of blocks depends on the sizes, so the loop has no static length and the gradient is written by hand.
# CPU time on two cores with AMX, bfloat16, 4096 rows in 16 uneven groups, 256 to 512: this 8 ms, a dense product of the same
# FLOPs 3 ms, XLA's ragged product 110 ms. With both gradients 21 ms (dense 9); 8192 rows in 8 groups 35 ms (dense 24).


def _times_by_block(x: jax.Array, w: jax.Array, sizes: jax.Array, *, transposed: bool) -> jax.Array:
    """Return `_times`, block by block. Each group starts a new block; the next group overwrites what is written beyond it."""
    N, F, block = x.shape[0], w.shape[1 if transposed else 2], _block(x.shape[0], sizes.shape[0])
    # With few rows most groups are unused, so do not round the matrices of all groups first.
    w_bits = w if N < w.shape[0] else _bits(w.astype(x.dtype))
    x_bits = _bits(jnp.pad(x, ((0, block), (0, 0))))
    starts = jnp.cumsum(sizes) - sizes
    blocks = (sizes + block - 1) // block
    done = jnp.cumsum(blocks)

    def body(i: jax.Array, y_bits: jax.Array) -> jax.Array:
        e = jnp.sum(done <= i)
        row = starts[e] + (i - done[e] + blocks[e]) * block
        rows = _floats(lax.dynamic_slice_in_dim(x_bits, row, block), x.dtype)
        matrix = _floats(lax.dynamic_index_in_dim(w_bits, e, keepdims=False), x.dtype)
        y = product("nf,df->nd" if transposed else "nd,df->nf", rows, matrix).astype(x.dtype)
        return lax.dynamic_update_slice_in_dim(y_bits, _bits(y), row, axis=0)

    y_bits = lax.fori_loop(0, done[-1], body, jnp.zeros_like(x_bits, shape=(N + block, F)))
    return _floats(y_bits[:N], x.dtype)


def _outer_by_block(x: jax.Array, dy: jax.Array, sizes: jax.Array) -> jax.Array:
    """Return `_outer` block by block. A block with rows of several groups is used once per group, other rows set to 0.

    Blocks start at multiples of the block size, so x can be transposed by blocks first: XLA is slow at products that sum over
    the first axis of their left operand.
    """
    N, block = x.shape[0], _block(x.shape[0], sizes.shape[0])
    x_bits, dy_bits = (_bits(jnp.pad(a, ((0, -N % block), (0, 0)))).reshape(-1, block, a.shape[1]) for a in (x, dy))
    x_bits = x_bits.transpose(0, 2, 1)
    ends = jnp.cumsum(sizes)
    first = (ends - sizes) // block
    blocks = jnp.where(sizes > 0, (ends + block - 1) // block - first, 0)
    done = jnp.cumsum(blocks)

    def body(i: jax.Array, dw: jax.Array) -> jax.Array:
        e = jnp.sum(done <= i)
        at = first[e] + i - done[e] + blocks[e]
        rows = at * block + jnp.arange(block)
        mine = (rows >= ends[e] - sizes[e]) & (rows < ends[e])
        columns = lax.dynamic_index_in_dim(x_bits, at, keepdims=False)
        columns = _floats(jnp.where(mine, columns, jnp.zeros_like(columns)), x.dtype)
        part = product("dn,nf->df", columns, _floats(lax.dynamic_index_in_dim(dy_bits, at, keepdims=False), x.dtype))
        return lax.dynamic_update_index_in_dim(dw, lax.dynamic_index_in_dim(dw, e, keepdims=False) + part, e, axis=0)

    shape = (sizes.shape[0], x.shape[1], dy.shape[1])
    return lax.fori_loop(0, done[-1], body, jnp.zeros_like(x, shape=shape, dtype=jnp.float32))


def _block(N: int, E: int) -> int:
    """Return the rows per block, about half of the mean group: small blocks are slow, large ones waste work."""
    block = 16
    while block < 128 and block * 4 * E <= N:
        block *= 2
    return block


def _bits(x: jax.Array) -> jax.Array:
    """Return bfloat16 as integers: to update a slice, XLA on a CPU would convert the whole array to float32 and back."""
    return lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 else x


def _floats(bits: jax.Array, dtype: jnp.dtype) -> jax.Array:
    return lax.bitcast_convert_type(bits, dtype) if bits.dtype == jnp.uint16 else bits.astype(dtype)
