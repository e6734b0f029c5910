"""Causal attention inside segments: grouped keys and values, sliding windows, soft-capped scores, learned sinks.

Axes here: B batch, T queries, S keys, G key/value heads, R query heads per key/value head, K head size of queries and keys,
V head size of values; H = G·R.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from lm.kernels.amx.flash_attention import computes, flash_attention
from lm.kernels.head import softcap_slope, softcapped
from lm.kernels.matmul import product, spec_of
from lm.kernels.saved import saved
from lm.parallel.mesh import platform, reshard, spec

# Finite, so that a row without visible keys (padding) gives a uniform average instead of NaN.
MASKED = -1e30
BLOCK = 128  # smallest number of queries in a block
SCORES = 1 << 29  # bytes of scores on one CPU at a time: XLA keeps those of all blocks at once there


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
    """

    segments_BT: jax.Array
    key_segments_BS: jax.Array
    slots_T: jax.Array
    branches: Branches | None = None

    def mask(self, window: int = 0, queries: slice = slice(None), keys: slice = slice(0, None)) -> jax.Array:
        """Return a bool mask [B, T, S] for these queries and keys, True where the query sees the key."""
        key_segments_BS, slots_T1 = self.key_segments_BS[:, keys], self.slots_T[queries, None]
        slots_S = keys.start + jnp.arange(key_segments_BS.shape[1])
        seen_BTS = (slots_S <= slots_T1) & (self.segments_BT[:, queries, None] == key_segments_BS[:, None, :])
        distance = slots_T1 - slots_S
        if self.branches is not None:
            ends_BS, places_BT, key_places_BS = self.branches
            seen_BTS &= slots_T1 < ends_BS[:, None, keys]
            distance = places_BT[:, queries, None] - key_places_BS[:, None, keys]
        return seen_BTS & (distance < window) if window else seen_BTS


def attention(
    q_BTHK, k_BSGK, v_BSGV, visible: Visible, *, scale: float, window: int = 0, softcap: float = 0.0, sinks_H=None
) -> jax.Array:
    """Return softmax(scale·q·kᵀ + mask)·v (Vaswani et al. 2017); H query heads share G key/value heads (Ainslie et al. 2023).

    Args:
      q, k, v: in the compute dtype.
      visible: T = S, and query t is in slot t. Its mask is built for one block of queries at a time.
      window: if above 0, how many slots (or places) a query sees, its own included. Blocks skip keys that are out of reach.
      softcap: if above 0, scores s become softcap·tanh(s / softcap) before masking (Gemma 2, 2024).
      sinks_H: logits added to the softmax's denominator only; their value is 0 (gpt-oss, 2025; Xiao et al. 2023).
    Returns: [B, T, H, V] in q's dtype. Scores and softmax are float32.
    """
    sinks_H = None if sinks_H is None else reshard(sinks_H, "heads")
    if platform() == "tpu" and visible.branches is None:
        from lm.kernels.tpu.attention import splash_attention  # here, because Pallas takes a while to import

        options = dict(scale=scale, window=window, softcap=softcap, sinks_H=sinks_H)
        return splash_attention(q_BTHK, k_BSGK, v_BSGV, visible.segments_BT, **options)
    if platform() == "gpu" and visible.branches is None and sinks_H is None:
        from lm.kernels.gpu import attention as gpu

        sizes = q_BTHK.shape[1], q_BTHK.shape[-1], v_BSGV.shape[-1]
        if gpu.computes(q_BTHK.dtype, *sizes, window=window, softcap=softcap):
            return gpu.gpu_attention(q_BTHK, k_BSGK, v_BSGV, visible.segments_BT, scale=scale)
    if visible.branches is None and sinks_H is None and not softcap and computes(q_BTHK, k_BSGK, v_BSGV, scale=scale):
        return flash_attention(q_BTHK, k_BSGK, v_BSGV, visible.segments_BT, scale=scale, window=window)
    return _some_rows_at_a_time(scale, window, softcap, q_BTHK, k_BSGK, v_BSGV, visible, sinks_H)


def attention_to_cache(
    q_BTHK,
    kept: Sequence[tuple[jax.Array, jax.Array]],
    visible: Visible,
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    sinks_H=None,
) -> jax.Array:
    """Return attention of queries to cached keys and values, [B, T, H, V] in q's dtype. The layout is that of the cache.

    kept: parts of the S slots in order, each keys [P, G, s, K] and values [P, G, s, V]. P divides B. Row p of a part serves the
      batch rows p·n … (p+1)·n − 1 with n = B / P.
    Products use the keys' dtype, which may be wider than the queries'. Many queries are processed in blocks, each against all
    keys; the gradient recomputes the scores of each block.
    """
    (B, T, H, _), G = q_BTHK.shape, kept[0][0].shape[1]
    q_BGRTK, dtype = _by_head(q_BTHK, G).astype(kept[0][0].dtype), q_BTHK.dtype
    sinks = None if sinks_H is None else _by_group(reshard(sinks_H, "heads"), G)
    ends = np.cumsum([k.shape[2] for k, _ in kept])

    def some(q_BGRTK, queries: Visible):
        scores = [_of_rows("bgrtk,bgsk->bgrts", q_BGRTK, k) for k, _ in kept]
        scores = softcapped(scale * (scores[0] if len(kept) == 1 else jnp.concatenate(scores, axis=-1)), softcap)
        p, z, _ = _exponentials(scores + _bias(queries.mask(window)[:, None, None]), sinks)
        parts = jnp.split(p.astype(kept[0][1].dtype), ends[:-1], axis=-1)
        out_BGRTV = sum(_of_rows("bgrts,bgsv->bgrtv", part, v) for part, (_, v) in zip(parts, kept)) / z
        return _ungrouped(jnp.moveaxis(out_BGRTV, 3, 1).astype(dtype))

    if T <= 2 * BLOCK:
        return some(q_BGRTK, visible)
    blocks = -(-T // BLOCK)

    def split(x, axis):
        x = jnp.pad(x, [(0, blocks * BLOCK - T if n == axis else 0) for n in range(x.ndim)])
        return jnp.moveaxis(x.reshape(*x.shape[:axis], blocks, BLOCK, *x.shape[axis + 1 :]), axis, 0)

    branches = visible.branches

    @jax.checkpoint
    def block(inputs):
        q_BGRTK, segments_BT, slots_T, places_BT = inputs
        within = branches and branches._replace(places_BT=places_BT)
        return some(q_BGRTK, Visible(segments_BT, visible.key_segments_BS, slots_T, within))

    places = branches and split(branches.places_BT, 1)
    out = lax.map(block, (split(q_BGRTK, 3), split(visible.segments_BT, 1), split(visible.slots_T, 0), places))
    return jnp.moveaxis(out, 0, 1).reshape(B, blocks * BLOCK, H, out.shape[-1])[:, :T]


def attention_reference(q_BTHK, k_BSGK, v_BSGV, mask_BTS, *, scale: float, softcap: float = 0.0, sinks_H=None) -> jax.Array:
    """Reference twin of both: the whole score matrix and autodiff. Keys and values have the layout of `attention`."""
    G = k_BSGK.shape[2]
    scores = softcapped(scale * product("btgrk,bsgk->bgrts", _grouped(q_BTHK, G), k_BSGK), softcap)
    scores = jnp.where(mask_BTS[:, None, None], scores, MASKED)
    logz = jax.nn.logsumexp(scores, axis=-1, keepdims=True)
    if sinks_H is not None:
        logz = jnp.logaddexp(logz, _by_group(sinks_H, G))
    weights = jnp.exp(scores - logz).astype(q_BTHK.dtype)
    return _ungrouped(product("bgrts,bsgv->btgrv", weights, v_BSGV).astype(q_BTHK.dtype))


def _grouped(q_BTHK, G: int):
    B, T, H, K = q_BTHK.shape
    # An explicit sharding: with G = 1 the reshape alone would leave a tensor axis on R.
    return lax.reshape(q_BTHK, (B, T, G, H // G, K), out_sharding=spec("batch", "length", "kv_heads", None, None))


def _by_head(x_BTHK, G: int):
    """Return [B, G, R, T, K]: the tokens of a head are contiguous, so the scores need no transpose."""
    return jnp.moveaxis(_grouped(x_BTHK, G), 1, 3)


def _ungrouped(q_BTGRK):
    B, T, G, R, K = q_BTGRK.shape
    return lax.reshape(q_BTGRK, (B, T, G * R, K), out_sharding=spec("batch", "length", "heads", None))


def _by_group(sinks_H, G: int):
    """Return the sinks as float32 [G, R, 1, 1], which broadcasts against scores [B, G, R, T, S]."""
    shape = (G, sinks_H.shape[0] // G, 1, 1)
    return lax.reshape(sinks_H.astype(jnp.float32), shape, out_sharding=spec("kv_heads", None, None, None))


def _scores(q_BGRTK, k_BGSK, scale, softcap):
    return softcapped(scale * product("bgrtk,bgsk->bgrts", q_BGRTK, k_BGSK), softcap)


def _of_rows(equation, x, kept):
    """Return the einsum of rows x [B, …] and cached rows [P, …] (see `attention_to_cache`); b is the row axis of both."""
    B, P = x.shape[0], kept.shape[0]
    if B == P:
        return product(equation, x, kept)
    where = spec_of(x)
    where = where and PartitionSpec(where[0], None, *where[1:])
    apart = lax.reshape(x, (P, B // P, *x.shape[1:]), out_sharding=where)
    y = product(equation.replace("b", "be", 1).replace(">b", ">be"), apart, kept)
    where = spec_of(y)
    return lax.reshape(y, (B, *y.shape[2:]), out_sharding=where and PartitionSpec(where[0], *where[2:]))


def _exponentials(scores, sinks):
    """Return (exp(s − top), their sum, top) with top the largest score of each row. A sink is added to the sum only."""
    top = jnp.max(scores, axis=-1, keepdims=True)
    if sinks is not None:
        top = jnp.maximum(top, sinks)
    p = jnp.exp(scores - top)
    z = jnp.sum(p, axis=-1, keepdims=True)
    if sinks is not None:
        z += jnp.exp(sinks - top)
    return p, z, top


def _some_rows_at_a_time(scale, window, softcap, q_BTHK, k_BSGK, v_BSGV, visible, sinks_H):
    """Compute `_blocked`, on one CPU for so many rows at a time that their scores fill at most SCORES, or for a single row."""
    B, T, H, _ = q_BTHK.shape
    mesh, rows = jax.sharding.get_abstract_mesh(), B
    if platform() == "cpu" and (mesh.empty or mesh.size == 1):
        rows = max(n for n in range(1, B + 1) if B % n == 0 and (n == 1 or 4 * n * H * T * T <= SCORES))
    if rows == B:
        return _blocked(scale, window, softcap, q_BTHK, k_BSGK, v_BSGV, visible, sinks_H)

    def split(x):
        where = spec_of(x)
        return lax.reshape(x, (B // rows, rows, *x.shape[1:]), out_sharding=where and PartitionSpec(None, *where))

    def some(inputs):
        *qkv, segments_BT, key_segments_BS, branches = inputs
        return _blocked(scale, window, softcap, *qkv, Visible(segments_BT, key_segments_BS, visible.slots_T, branches), sinks_H)

    given = q_BTHK, k_BSGK, v_BSGV, visible.segments_BT, visible.key_segments_BS, visible.branches
    out = lax.map(some, jax.tree.map(split, given))
    where = spec_of(out)
    return lax.reshape(out, (B, *out.shape[2:]), out_sharding=where and PartitionSpec(*where[1:]))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _blocked(scale, window, softcap, q_BTHK, k_BSGK, v_BSGV, visible, sinks_H):
    """Compute `attention` one block of queries at a time, each against the keys that it can see; other scores are not computed.

    The backward pass recomputes the scores from q, k and the saved log of the softmax's denominator (FlashAttention, Dao
    et al. 2022): with P = exp(S − log Z), dV = Pᵀ·dO, dS = P·(dO·Vᵀ − rowsum(dO·O)), dQ = dS·K, dK = dSᵀ·Q. All five
    products take operands in the compute dtype. Soft-capped scores multiply dS by 1 − (S / softcap)². A sink is a score
    whose value is 0: its gradient is −Σ exp(sink − log Z)·rowsum(dO·O).
    """
    return _forward(scale, window, softcap, q_BTHK, k_BSGK, v_BSGV, visible, sinks_H)[0]


def _blocks(visible: Visible, window: int):
    """Yield (first key, first query, end of both, `_bias`) for each block.

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
        mask = visible.mask(window, slice(begin, end), slice(first, end))[:, None, None]
        yield first, begin, end, _bias(mask)


def _bias(mask):
    """Return what is added to scores: 0 where the query sees the key, MASKED elsewhere, float32.

    XLA computes a cheap mask again in every loop over scores, and on a CPU the comparisons take up to 9 times as long as the
    exponential. It keeps the result of a root, which it counts as expensive. All blocks together are then as large as one
    block's scores of 4.5 heads.
    """
    return MASKED * jnp.sqrt(1 - mask.astype(jnp.float32)) if platform() == "cpu" else jnp.where(mask, 0.0, MASKED)


def _forward(scale, window, softcap, q_BTHK, k_BSGK, v_BSGV, visible, sinks_H):
    G = k_BSGK.shape[2]
    q, k, v = _by_head(q_BTHK, G), jnp.swapaxes(k_BSGK, 1, 2), jnp.swapaxes(v_BSGV, 1, 2)
    sinks = None if sinks_H is None else _by_group(sinks_H, G)
    outs, logzs = [], []
    for first, begin, end, bias in _blocks(visible, window):
        scores = _scores(q[:, :, :, begin:end], k[:, :, first:end], scale, softcap) + bias
        p, z, top = _exponentials(scores, sinks)
        outs.append((product("bgrts,bgsv->bgrtv", p.astype(q.dtype), v[:, :, first:end]) / z).astype(q.dtype))
        logzs.append(top + jnp.log(z))
    out = _ungrouped(jnp.moveaxis(jnp.concatenate(outs, axis=3), 3, 1))
    # Named inside, so that a remat policy can keep both and the backward pass need not run this again.
    out, logz = saved(out), saved(jnp.concatenate(logzs, axis=3))
    return out, (q_BTHK, k_BSGK, v_BSGV, visible, sinks_H, out, logz)


def _backward(scale, window, softcap, residuals, dout_BTHV):
    q_BTHK, k_BSGK, v_BSGV, visible, sinks_H, out_BTHV, logz = residuals
    dtype, G = q_BTHK.dtype, k_BSGK.shape[2]
    q, out, dout = (_by_head(x, G) for x in (q_BTHK, out_BTHV, dout_BTHV.astype(dtype)))
    k, v = jnp.swapaxes(k_BSGK, 1, 2), jnp.swapaxes(v_BSGV, 1, 2)
    # rowsum(dO·O), [B, G, R, T, 1]
    delta = jnp.sum(dout.astype(jnp.float32) * out.astype(jnp.float32), axis=-1, keepdims=True)
    firsts, dqs, dks, dvs = [], [], [], []
    for first, begin, end, bias in _blocks(visible, window):
        some, seen = (slice(None),) * 3 + (slice(begin, end),), (slice(None),) * 2 + (slice(first, end),)
        scores = _scores(q[some], k[seen], scale, softcap)
        p = jnp.exp(scores + bias - logz[some])
        dp = product("bgrtv,bgsv->bgrts", dout[some], v[seen])
        ds = p * (dp - delta[some]) * scale
        if softcap:
            ds *= softcap_slope(scores, softcap)
        ds = ds.astype(dtype)
        p = p.astype(dtype)
        dqs.append(product("bgrts,bgsk->bgrtk", ds, k[seen]).astype(dtype))
        dks.append(product("bgrtk,bgrts->bgks", q[some], ds, spec_of(k)))
        dvs.append(product("bgrtv,bgrts->bgvs", dout[some], p, spec_of(v)))
        firsts.append(first)
    dq = _ungrouped(jnp.moveaxis(jnp.concatenate(dqs, axis=3), 3, 1))
    dk, dv = (jnp.moveaxis(_overlaid(firsts, parts).astype(dtype), 3, 1) for parts in (dks, dvs))
    if sinks_H is None:
        dsinks = None
    else:
        dsinks = -jnp.sum(jnp.exp(_by_group(sinks_H, G) - logz) * delta, axis=(0, 3, 4))
        dsinks = lax.reshape(dsinks, sinks_H.shape, out_sharding=spec("heads")).astype(sinks_H.dtype)
    return dq, dk, dv, None, dsinks


_blocked.defvjp(_forward, _backward)


def _overlaid(firsts, parts):
    """Return the sum [B, G, K, S] of parts [B, G, K, n], each placed at its first key.

    It is joined from stretches of keys that the same parts cover. Parts that are added to one another in turn become one loop
    on a CPU, which then goes through all of them for every number.
    """
    ends = [first + part.shape[-1] for first, part in zip(firsts, parts, strict=True)]
    edges = sorted({*firsts, *ends})
    return jnp.concatenate(
        [
            sum(part[..., a - first : b - first] for first, end, part in zip(firsts, ends, parts) if first <= a and b <= end)
            for a, b in itertools.pairwise(edges)
        ],
        axis=-1,
    )
