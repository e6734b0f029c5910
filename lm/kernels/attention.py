"""Causal attention inside segments, one block of queries at a time: grouped keys and values, windows, soft caps, sinks.

First the mask in compact form, then the layouts of heads and the parts of a softmax that other attentions share.

Axes here: B batch, T queries, S keys, G key/value heads, R query heads per key/value head, K head size of queries and keys,
V head size of values; H = G·R.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from lm.kernels.head import softcap_slope, softcapped
from lm.kernels.ops import product
from lm.kernels.saved import saved
from lm.parallel.arrays import AnyArray
from lm.parallel.mesh import platform, reshard, spec, spec_of

# Finite, so that a row without visible keys (padding) gives a uniform average instead of NaN.
MASKED = -1e30


class Scoring(NamedTuple):
    """Constants of an attention.

    scale: multiplies q·k.
    window: if above 0, how many slots (or places) a query sees, its own included.
    softcap: if above 0, scores s become softcap·tanh(s / softcap) before masking (Gemma 2, 2024).
    across: how keys reach queries on other devices of a context axis, "ring" or "all_gather" (lm/kernels/ring.py).
    chunked: pages are seen from the last multiple of `window` on. Elsewhere it has no effect: each chunk is a segment there.
    """

    scale: float
    window: int = 0
    softcap: float = 0.0
    across: str = "ring"
    chunked: bool = False


class Branches(NamedTuple):
    """Branches of a row: several continuations stored one after the other, with one shared prefix. All int32.

    ends_BS: the first slot whose query no longer sees the key. places_BT, key_places_BS: positions of queries and keys in their
    own text. A window counts these positions, because other branches may lie between.
    """

    ends_BS: jax.Array
    places_BT: jax.Array
    key_places_BS: jax.Array


class Visible(NamedTuple):
    """The attention mask in compact form: a mask [B, T, S] would be as large as the scores of a head.

    A query sees the keys of its own segment, at or before its own slot and within the window if there is one.
    segments_BT, key_segments_BS: int32. slots_T: int32, the slot of each query among the keys.
    chosen_BTS: bool, the keys that an indexer has chosen (lm/model/indexer.py); None: all.
    """

    segments_BT: jax.Array
    key_segments_BS: jax.Array
    slots_T: AnyArray
    branches: Branches | None = None
    chosen_BTS: jax.Array | None = None

    def mask(self, window: int = 0, queries: slice = slice(None), keys: slice = slice(0, None)) -> jax.Array:
        """Return a bool mask [B, T, S] for these queries and keys, True where the query sees the key."""
        key_segments_BS, slots_T1 = self.key_segments_BS[:, keys], self.slots_T[queries, None]
        slots_S = keys.start + jnp.arange(key_segments_BS.shape[1])
        seen_BTS = (slots_S <= slots_T1) & (self.segments_BT[:, queries, None] == key_segments_BS[:, None, :])
        if self.chosen_BTS is not None:
            seen_BTS &= self.chosen_BTS[:, queries, keys]
        distance = slots_T1 - slots_S
        if self.branches is not None:
            ends_BS, places_BT, key_places_BS = self.branches
            seen_BTS &= slots_T1 < ends_BS[:, None, keys]
            distance = places_BT[:, queries, None] - key_places_BS[:, None, keys]
        return seen_BTS & (distance < window) if window else seen_BTS


def by_head(x_BTHK: jax.Array, G: int) -> jax.Array:
    """Return [B, G, R, T, K], by the key/value head that queries share. The tokens of a head are contiguous: the scores need no
    transpose."""
    B, T, H, K = x_BTHK.shape
    # An explicit sharding: with G = 1 the reshape alone would leave a tensor axis on R.
    where = spec("batch", "length", "kv_heads", None, None)
    return jnp.moveaxis(lax.reshape(x_BTHK, (B, T, G, H // G, K), out_sharding=where), 1, 3)


def by_token(x_BGRTK: jax.Array) -> jax.Array:
    """Return [B, T, H, K]; the inverse of `by_head`."""
    B, G, R, T, K = x_BGRTK.shape
    return lax.reshape(jnp.moveaxis(x_BGRTK, 3, 1), (B, T, G * R, K), out_sharding=spec("batch", "length", "heads", None))


def by_group(sinks_H: jax.Array, G: int) -> jax.Array:
    """Return the sinks as float32 [G, R, 1, 1], which broadcasts against scores [B, G, R, T, S]."""
    shape = (G, sinks_H.shape[0] // G, 1, 1)
    return lax.reshape(sinks_H.astype(jnp.float32), shape, out_sharding=spec("kv_heads", None, None, None))


def exponentials(scores: jax.Array, sinks: jax.Array | None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return (exp(s − top), their sum, top) with top the largest score of each row. A sink is added to the sum only."""
    top = jnp.max(scores, axis=-1, keepdims=True)
    if sinks is not None:
        top = jnp.maximum(top, sinks)
    p = jnp.exp(scores - top)
    z = jnp.sum(p, axis=-1, keepdims=True)
    if sinks is not None:
        z += jnp.exp(sinks - top)
    return p, z, top


def mask_bias(mask: jax.Array) -> jax.Array:
    """Return what is added to scores: 0 where the query sees the key, MASKED elsewhere, float32.

    XLA computes a cheap mask again in every loop over scores, and on a CPU the comparisons take up to 9 times as long as the
    exponential. It keeps the result of a root, which it counts as expensive. All blocks together are then as large as one
    block's scores of 4.5 heads.
    """
    return MASKED * jnp.sqrt(1 - mask.astype(jnp.float32)) if platform() == "cpu" else jnp.where(mask, 0.0, MASKED)


BLOCK = 128  # smallest number of queries in a block
SCORES = 1 << 29  # bytes of scores on one CPU at a time: XLA keeps those of all blocks at once there
Residuals: TypeAlias = tuple[jax.Array, jax.Array, jax.Array, Visible, jax.Array | None, jax.Array, jax.Array]


def attention(
    q_BTHK: jax.Array,
    k_BSGK: jax.Array,
    v_BSGV: jax.Array,
    visible: Visible,
    scoring: Scoring,
    sinks_H: jax.Array | None = None,
) -> jax.Array:
    """Compute lm.kernels.ops.attention: each block of queries with the keys that it can see.

    The mask is built for one block at a time. On one CPU so many rows are computed at a time that their scores fill at most
    SCORES, or a single row.
    """
    B, T, H, _ = q_BTHK.shape
    sinks_H = None if sinks_H is None else reshard(sinks_H, "heads")
    mesh, rows = jax.sharding.get_abstract_mesh(), B
    if platform() == "cpu" and (mesh.empty or mesh.size == 1):
        rows = max([n for n in range(1, B + 1) if B % n == 0 and (n == 1 or 4 * n * H * T * T <= SCORES)])
    if rows == B:
        return _blocked(scoring, q_BTHK, k_BSGK, v_BSGV, visible, sinks_H)

    def split(x: jax.Array) -> jax.Array:
        where = spec_of(x)
        return lax.reshape(x, (B // rows, rows, *x.shape[1:]), out_sharding=where and PartitionSpec(None, *where))

    def some(inputs: tuple[Any, ...]) -> jax.Array:
        *qkv, segments_BT, key_segments_BS, branches, chosen_BTS = inputs
        return _blocked(scoring, *qkv, Visible(segments_BT, key_segments_BS, visible.slots_T, branches, chosen_BTS), sinks_H)

    given = q_BTHK, k_BSGK, v_BSGV, visible.segments_BT, visible.key_segments_BS, visible.branches, visible.chosen_BTS
    out = lax.map(some, jax.tree.map(split, given))
    where = spec_of(out)
    return lax.reshape(out, (B, *out.shape[2:]), out_sharding=where and PartitionSpec(*where[1:]))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _blocked(
    scoring: Scoring, q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGV: jax.Array, visible: Visible, sinks_H: jax.Array | None
) -> jax.Array:
    """Compute `attention` one block of queries at a time, each against the keys that it can see; other scores are not computed.

    The backward pass recomputes the scores from q, k and the saved log of the softmax's denominator (FlashAttention, Dao
    et al. 2022): with P = exp(S − log Z), dV = Pᵀ·dO, dS = P·(dO·Vᵀ − rowsum(dO·O)), dQ = dS·K, dK = dSᵀ·Q. All five
    products take operands in the compute dtype. Soft-capped scores multiply dS by 1 − (S / softcap)². A sink is a score
    whose value is 0: its gradient is −Σ exp(sink − log Z)·rowsum(dO·O).
    """
    return _forward(scoring, q_BTHK, k_BSGK, v_BSGV, visible, sinks_H)[0]


def _blocks(visible: Visible, window: int) -> Iterator[tuple[int, int, int, jax.Array]]:
    """Yield (first key, first query, end of both, mask) for each block.

    Without a window there are at most 8 blocks. With a window a block is about as long as the window, so that work grows with
    T and not with T². There are at most 32 blocks, because more make a long sequence take minutes to compile.
    """
    T, near = visible.slots_T.shape[0], 0 if visible.branches else window
    eighth = -(-T // 8)
    size = max(BLOCK, min(near, eighth) if near else eighth, -(-T // 32))
    begins = range(0, T, size)
    # Keys start at a multiple of BLOCK, because unaligned slices are slow on accelerators.
    firsts = [max(0, begin - near + 1) // BLOCK * BLOCK if near else 0 for begin in begins]
    for first, begin in zip(firsts, begins, strict=True):
        end = min(begin + size, T)
        yield first, begin, end, visible.mask(window, slice(begin, end), slice(first, end))[:, None, None]


def _forward(
    scoring: Scoring, q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGV: jax.Array, visible: Visible, sinks_H: jax.Array | None
) -> tuple[jax.Array, Residuals]:
    G = k_BSGK.shape[2]
    q, k, v = by_head(q_BTHK, G), jnp.swapaxes(k_BSGK, 1, 2), jnp.swapaxes(v_BSGV, 1, 2)
    sinks = None if sinks_H is None else by_group(sinks_H, G)
    outs, logzs = [], []
    for first, begin, end, mask in _blocks(visible, scoring.window):
        scores = scoring.scale * product("bgrtk,bgsk->bgrts", q[:, :, :, begin:end], k[:, :, first:end])
        p, z, top = exponentials(softcapped(scores, scoring.softcap) + mask_bias(mask), sinks)
        outs.append((product("bgrts,bgsv->bgrtv", p.astype(q.dtype), v[:, :, first:end]) / z).astype(q.dtype))
        logzs.append(top + jnp.log(z))
    out = by_token(jnp.concatenate(outs, axis=3))
    # Named inside, so that a remat policy can keep both and the backward pass need not run this again.
    out, logz = saved(out), saved(jnp.concatenate(logzs, axis=3))
    return out, (q_BTHK, k_BSGK, v_BSGV, visible, sinks_H, out, logz)


def _backward(
    scoring: Scoring, residuals: Residuals, dout_BTHV: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None, jax.Array | None]:
    q_BTHK, k_BSGK, v_BSGV, visible, sinks_H, out_BTHV, logz = residuals
    dtype, G = q_BTHK.dtype, k_BSGK.shape[2]
    q, out, dout = [by_head(x, G) for x in (q_BTHK, out_BTHV, dout_BTHV.astype(dtype))]
    k, v = jnp.swapaxes(k_BSGK, 1, 2), jnp.swapaxes(v_BSGV, 1, 2)
    # rowsum(dO·O), [B, G, R, T, 1]
    delta = jnp.sum(dout.astype(jnp.float32) * out.astype(jnp.float32), axis=-1, keepdims=True)
    firsts, dqs, dks, dvs = [], [], [], []
    for first, begin, end, mask in _blocks(visible, scoring.window):
        some, seen = (slice(None),) * 3 + (slice(begin, end),), (slice(None),) * 2 + (slice(first, end),)
        scores = softcapped(scoring.scale * product("bgrtk,bgsk->bgrts", q[some], k[seen]), scoring.softcap)
        p = jnp.exp(scores + mask_bias(mask) - logz[some])
        dp = product("bgrtv,bgsv->bgrts", dout[some], v[seen])
        ds = p * (dp - delta[some]) * scoring.scale
        if scoring.softcap:
            ds *= softcap_slope(scores, scoring.softcap)
        ds = ds.astype(dtype)
        p = p.astype(dtype)
        dqs.append(product("bgrts,bgsk->bgrtk", ds, k[seen]).astype(dtype))
        dks.append(product("bgrtk,bgrts->bgks", q[some], ds, spec_of(k)))
        dvs.append(product("bgrtv,bgrts->bgvs", dout[some], p, spec_of(v)))
        firsts.append(first)
    dq = by_token(jnp.concatenate(dqs, axis=3))
    dk, dv = [jnp.moveaxis(_overlaid(firsts, parts).astype(dtype), 3, 1) for parts in (dks, dvs)]
    if sinks_H is None:
        dsinks = None
    else:
        dsinks = -jnp.sum(jnp.exp(by_group(sinks_H, G) - logz) * delta, axis=(0, 3, 4))
        dsinks = lax.reshape(dsinks, sinks_H.shape, out_sharding=spec("heads")).astype(sinks_H.dtype)
    return dq, dk, dv, None, dsinks


_blocked.defvjp(_forward, _backward)


def _overlaid(firsts: Sequence[int], parts: Sequence[jax.Array]) -> jax.Array:
    """Return the sum [B, G, K, S] of parts [B, G, K, n], each placed at its first key.

    It is joined from stretches of keys that the same parts cover. Parts that are added to one another in turn become one loop
    on a CPU, which then goes through all of them for every number.
    """
    ends = [first + part.shape[-1] for first, part in zip(firsts, parts, strict=True)]
    edges = sorted({*firsts, *ends})
    return jnp.concatenate(
        [
            sum([part[..., a - first : b - first] for first, end, part in zip(firsts, ends, parts) if first <= a and b <= end])
            for a, b in itertools.pairwise(edges)
        ],
        axis=-1,
    )
