"""Attention of queries to a cache of keys and values, whose earlier parts several rows may share.

Axes as in lm/kernels/attention.py; P rows of a shared part.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from lm.kernels.attention import Scoring, Visible, by_group, by_head, by_token, exponentials, mask_bias
from lm.kernels.head import softcapped
from lm.kernels.ops import product
from lm.parallel.arrays import AnyArray
from lm.parallel.mesh import reshard, spec_of

BLOCK = 128  # queries whose scores exist at once


def cached_attention(
    q_BTHK: jax.Array,
    parts: Sequence[tuple[jax.Array, jax.Array]],
    visible: Visible,
    scoring: Scoring,
    sinks_H: jax.Array | None = None,
) -> jax.Array:
    """Compute lm.kernels.ops.cached_attention.

    Many queries are processed in blocks, each against all keys; the gradient recomputes the scores of each block.
    """
    (B, T, H, _), G = q_BTHK.shape, parts[0][0].shape[1]
    q_BGRTK, dtype = by_head(q_BTHK, G).astype(parts[0][0].dtype), q_BTHK.dtype
    sinks = None if sinks_H is None else by_group(reshard(sinks_H, "heads"), G)
    ends = np.cumsum([k.shape[2] for k, _ in parts])

    def some(q_BGRTK: jax.Array, queries: Visible) -> jax.Array:
        of_parts = [_of_rows("bgrtk,bgsk->bgrts", q_BGRTK, k) for k, _ in parts]
        scores = of_parts[0] if len(parts) == 1 else jnp.concatenate(of_parts, axis=-1)
        scores = softcapped(scoring.scale * scores, scoring.softcap)
        p, z, _ = exponentials(scores + mask_bias(queries.mask(scoring.window)[:, None, None]), sinks)
        split_p = jnp.split(p.astype(parts[0][1].dtype), ends[:-1], axis=-1)
        out_BGRTV = sum(_of_rows("bgrts,bgsv->bgrtv", part, v) for part, (_, v) in zip(split_p, parts)) / z
        return by_token(out_BGRTV.astype(dtype))

    if T <= 2 * BLOCK:
        return some(q_BGRTK, visible)
    blocks = -(-T // BLOCK)

    def split(x: AnyArray, axis: int) -> jax.Array:
        x = jnp.pad(x, [(0, blocks * BLOCK - T if n == axis else 0) for n in range(x.ndim)])
        return jnp.moveaxis(x.reshape(*x.shape[:axis], blocks, BLOCK, *x.shape[axis + 1 :]), axis, 0)

    branches = visible.branches

    @jax.checkpoint
    def block(inputs: tuple[jax.Array, jax.Array, jax.Array, jax.Array | None, jax.Array | None]) -> jax.Array:
        q_BGRTK, segments_BT, slots_T, places_BT, chosen_BTS = inputs
        within = None if branches is None or places_BT is None else branches._replace(places_BT=places_BT)
        return some(q_BGRTK, Visible(segments_BT, visible.key_segments_BS, slots_T, within, chosen_BTS))

    places = branches and split(branches.places_BT, 1)
    chosen = None if visible.chosen_BTS is None else split(visible.chosen_BTS, 1)
    out = lax.map(block, (split(q_BGRTK, 3), split(visible.segments_BT, 1), split(visible.slots_T, 0), places, chosen))
    return jnp.moveaxis(out, 0, 1).reshape(B, blocks * BLOCK, H, out.shape[-1])[:, :T]


def _of_rows(equation: str, x: jax.Array, kept: jax.Array) -> jax.Array:
    """Return the einsum of rows x [B, …] and cached rows [P, …], of which each serves B / P rows; b is the row axis of both."""
    B, P = x.shape[0], kept.shape[0]
    if B == P:
        return product(equation, x, kept)
    where = spec_of(x)
    where = where and PartitionSpec(where[0], None, *where[1:])
    apart = lax.reshape(x, (P, B // P, *x.shape[1:]), out_sharding=where)
    y = product(equation.replace("b", "be", 1).replace(">b", ">be"), apart, kept)
    where = spec_of(y)
    return lax.reshape(y, (B, *y.shape[2:]), out_sharding=where and PartitionSpec(where[0], *where[2:]))
