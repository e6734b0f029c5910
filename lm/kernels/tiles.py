"""Attention of some queries to some keys in tiles, so that their scores never exist at once. Without sharding: for one device.

The axes are those of lm/kernels/ring.py. Tiles that no query sees are left out of the loop; their list is static.
"""

import math
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lm.kernels.attention import MASKED
from lm.kernels.head import softcap_slope, softcapped
from lm.kernels.ops import product
from lm.parallel.arrays import PyTree

TILE = 512  # queries, and keys, of a tile; about
Three: TypeAlias = tuple[jax.Array, jax.Array, jax.Array]


class How(NamedTuple):
    """scale, window, softcap: as in lm.kernels.attention.Scoring. offset: slot of the first query − that of the first key."""

    scale: float
    window: int
    softcap: float
    offset: int


class Keys(NamedTuple):
    """Keys [B, G, S, K], values [B, G, S, V] and segments [B, S] of a device's two chunks, or of one."""

    k: jax.Array
    v: jax.Array
    segments: jax.Array

    def half(self, which: int) -> "Keys":
        return Keys(half_of(self.k, 2, which), half_of(self.v, 2, which), half_of(self.segments, 1, which))


def forward(q_BGRTK: jax.Array, segments_BT: jax.Array, keys: Keys, how: How) -> tuple[jax.Array, jax.Array]:
    """Return out [B, G, R, T, V] and log Z [B, G, R, T], float32. A query that sees no key gets a log Z near MASKED.

    The softmax is computed online (Milakov and Gimelshein 2018): with every tile of keys, sums are rescaled to the largest
    score so far.
    """
    k_BGSK, v_BGSV, key_segments_BS = keys
    T, S = q_BGRTK.shape[3], k_BGSK.shape[2]
    t, s = size(T), size(S)
    q_BGRTK, *of_masks = _together(q_BGRTK, segments_BT, key_segments_BS, pairs(T, S, how))
    segments_BT, key_segments_BS, both = of_masks

    def tile(carry: Three, at: tuple[jax.Array, jax.Array]) -> tuple[Three, None]:
        queries, first_key = at[0] * t, at[1] * s
        q, mine = _of(q_BGRTK, 3, queries, t), _of(segments_BT, 1, queries, t)
        k, v, theirs = (_of(x, axis, first_key, s) for x, axis in ((k_BGSK, 2), (v_BGSV, 2), (key_segments_BS, 1)))
        scores = jnp.where(_mask(mine, theirs, queries, first_key, how), _scores(q, k, how), MASKED)
        out, top, z = (_of(x, 3, queries, t) for x in carry)
        new = jnp.maximum(top, jnp.max(scores, axis=-1))
        p, kept = jnp.exp(scores - new[..., None]), jnp.exp(top - new)
        out = out * kept[..., None] + product("bgrts,bgsv->bgrtv", p.astype(v.dtype), v)
        z = z * kept + jnp.sum(p, axis=-1)
        out, new, z = (_put(x, 3, queries, y) for x, y in zip(carry, (out, new, z)))
        return (out, new, z), None

    nothing = jnp.zeros_like(q_BGRTK, shape=(*q_BGRTK.shape[:4], v_BGSV.shape[-1]), dtype=jnp.float32)
    begin = nothing, jnp.full_like(nothing[..., 0], 2 * MASKED), jnp.zeros_like(nothing[..., 0])
    (out, top, z), _ = lax.scan(tile, begin, both)
    z = jnp.where(z == 0, 1.0, z)  # queries of no tile
    return out / z[..., None], jnp.maximum(top, MASKED) + jnp.log(z)


def backward(
    q_BGRTK: jax.Array,
    segments_BT: jax.Array,
    keys: Keys,
    dout_BGRTV: jax.Array,
    logz_BGRT: jax.Array,
    delta_BGRT: jax.Array,
    how: How,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return dq, dk, dv, float32, from log Z over all keys and delta = rowsum(dO·O); see lm/kernels/attention.py."""
    k_BGSK, v_BGSV, key_segments_BS = keys
    T, S, dtype = q_BGRTK.shape[3], k_BGSK.shape[2], q_BGRTK.dtype
    t, s = size(T), size(S)
    q_BGRTK, *of_masks = _together(q_BGRTK, segments_BT, key_segments_BS, pairs(T, S, how))
    segments_BT, key_segments_BS, both = of_masks

    def tile(carry: Three, at: tuple[jax.Array, jax.Array]) -> tuple[Three, None]:
        queries, first_key = at[0] * t, at[1] * s
        q, dout, logz, delta = (_of(x, 3, queries, t) for x in (q_BGRTK, dout_BGRTV, logz_BGRT, delta_BGRT))
        k, v, theirs = (_of(x, axis, first_key, s) for x, axis in ((k_BGSK, 2), (v_BGSV, 2), (key_segments_BS, 1)))
        scores = _scores(q, k, how)
        seen = _mask(_of(segments_BT, 1, queries, t), theirs, queries, first_key, how)
        p = jnp.exp(jnp.where(seen, scores, MASKED) - logz[..., None])
        ds = p * (product("bgrtv,bgsv->bgrts", dout, v) - delta[..., None]) * how.scale
        if how.softcap:
            ds *= softcap_slope(scores, how.softcap)
        p, ds = p.astype(dtype), ds.astype(dtype)
        dq, dk, dv = carry
        return (
            _put(dq, 3, queries, _of(dq, 3, queries, t) + product("bgrts,bgsk->bgrtk", ds, k)),
            _put(dk, 2, first_key, _of(dk, 2, first_key, s) + product("bgrts,bgrtk->bgsk", ds, q)),
            _put(dv, 2, first_key, _of(dv, 2, first_key, s) + product("bgrts,bgrtv->bgsv", p, dout)),
        ), None

    dq, dk, dv = (jnp.zeros_like(x, dtype=jnp.float32) for x in (q_BGRTK, k_BGSK, v_BGSV))
    return lax.scan(tile, (dq, dk, dv), both)[0]


def size(T: int) -> int:
    """Return the divisor of T that is nearest to TILE, by ratio."""
    return min((d for d in range(1, T + 1) if T % d == 0), key=lambda d: abs(math.log(d / TILE)))


def pairs(T: int, S: int, how: How) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of query tiles and of key tiles, int32, of all pairs of tiles in which some query may see a key."""
    t, s = size(T), size(S)
    nearest = how.offset + (np.arange(T // t) * t)[:, None] - (np.arange(S // s) * s + s - 1)  # of the first query
    farthest = nearest + t - 1 + s - 1
    some = farthest >= 0
    if how.window:
        some &= nearest < how.window
    queries, keys = np.nonzero(some)
    return queries.astype(np.int32), keys.astype(np.int32)


def _together(q: jax.Array, *of_masks: PyTree) -> PyTree:
    """Return all of it, such that masks depend on the queries.

    They depend on segments and places alone. Otherwise those of all tiles would be computed before the loop over the layers.
    """
    return lax.optimization_barrier((q, *of_masks))


def _scores(q: jax.Array, k: jax.Array, how: How) -> jax.Array:
    return softcapped(how.scale * product("bgrtk,bgsk->bgrts", q, k), how.softcap)


def _mask(segments_Bt: jax.Array, key_segments_Bs: jax.Array, queries: jax.Array, keys: jax.Array, how: How) -> jax.Array:
    """Return bool [B, 1, 1, t, s]: where a query of a tile sees a key; their first ones are `queries` and `keys`."""
    (_, t), (_, s) = segments_Bt.shape, key_segments_Bs.shape
    distance = how.offset + queries - keys + jnp.arange(t)[:, None] - jnp.arange(s)
    seen = distance >= 0
    if how.window:
        seen &= distance < how.window
    return (seen & (segments_Bt[:, :, None] == key_segments_Bs[:, None, :]))[:, None, None]


def _of(x: jax.Array, axis: int, begin: jax.Array, length: int) -> jax.Array:
    return lax.dynamic_slice_in_dim(x, begin, length, axis)


def _put(x: jax.Array, axis: int, begin: jax.Array, part: jax.Array) -> jax.Array:
    return lax.dynamic_update_slice_in_dim(x, part, begin, axis)


def half_of(x: jax.Array, axis: int, which: int) -> jax.Array:
    """Return the low half (0) or the high half (1) of an array along an axis."""
    C = x.shape[axis] // 2
    return lax.slice_in_dim(x, which * C, which * C + C, axis=axis)
