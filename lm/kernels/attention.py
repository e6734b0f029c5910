"""Causal attention inside segments: grouped keys and values, sliding windows, soft-capped scores, learned sinks.

Axes here: B batch, T queries, S keys, G key/value heads, R query heads a key/value head, K head size of queries and keys, V of
values; H = G·R.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from lm.kernels.matmul import product, spec_of
from lm.parallel.mesh import reshard, spec

# Finite, so that a row without any visible key (padding) gives a uniform average instead of NaN.
MASKED = -1e30
BLOCK = 128  # least queries taken at a time


class Branches(NamedTuple):
    """How rows branch: several continuations lie one behind the other and share what they begin with. All int32.

    ends_BS: the slot from which on each key is no longer seen. places_BT, key_places_BS: where queries and keys stand in their
    own text, by which a window counts, since other branches may lie between.
    """

    ends_BS: jax.Array
    places_BT: jax.Array
    key_places_BS: jax.Array


class Visible(NamedTuple):
    """Which keys each query sees, in numbers of queries and keys: a mask [B, T, S] would be as large as the scores of a head.

    A query sees keys of its own segment, at or before its own slot, and with a window no farther back than that.
    segments_BT, key_segments_BS: int32. slots_T: int32, the slot among the keys that each query stands in.
    """

    segments_BT: jax.Array
    key_segments_BS: jax.Array
    slots_T: jax.Array
    branches: Branches | None = None

    def mask(self, window: int = 0, queries: slice = slice(None), keys: slice = slice(0, None)) -> jax.Array:
        """bool [B, T, S] of some queries and keys, True where one sees the other."""
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
    """softmax(scale·q·kᵀ + mask)·v (Vaswani et al. 2017), H query heads sharing G key/value heads (Ainslie et al. 2023).

    Args:
      q, k, v: in the compute dtype.
      visible: T = S, and query t stands in slot t. Its mask is made for one block of queries at a time.
      window: above 0, how many slots (or places) a query sees, its own included; keys out of reach are not looked at.
      softcap: above 0, scores s become softcap·tanh(s / softcap) before masking (Gemma 2, 2024).
      sinks_H: logits that join the softmax's denominator and add nothing to the sum (gpt-oss, 2025; Xiao et al. 2023).
    Returns: [B, T, H, V] in q's dtype. Scores and softmax are float32.
    """
    sinks_H = None if sinks_H is None else reshard(sinks_H, "heads")
    return _blocked(scale, window, softcap, q_BTHK, k_BSGK, v_BSGV, visible, sinks_H)


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
    """The same of some queries to more keys and values, laid out and kept as a cache has them.

    kept: keys [P, G, s, K] and values [P, G, s, V] of one part of the S slots after another; P divides B, and row p is of each
    of B / P queries that stand one after the other. Products are of the keys' dtype, which may be wider than the queries'. Many
    queries go a block at a time, to all keys; the gradient takes a block's scores anew.
    """
    (B, T, H, _), G = q_BTHK.shape, kept[0][0].shape[1]
    q_BGRTK, dtype = _by_head(q_BTHK, G).astype(kept[0][0].dtype), q_BTHK.dtype
    sinks = None if sinks_H is None else _by_group(reshard(sinks_H, "heads"), G)
    ends = np.cumsum([k.shape[2] for k, _ in kept])

    def some(q_BGRTK, queries: Visible):
        scores = [_of_rows("bgrtk,bgsk->bgrts", q_BGRTK, k) for k, _ in kept]
        scores = _capped(scores[0] if len(kept) == 1 else jnp.concatenate(scores, axis=-1), softcap, scale)
        p, z, _ = _exponentials(jnp.where(queries.mask(window)[:, None, None], scores, MASKED), sinks)
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
    """The plain twin of both, with keys and values as `attention` has them: whole score matrix and autodiff."""
    G = k_BSGK.shape[2]
    scores = _capped(product("btgrk,bsgk->bgrts", _grouped(q_BTHK, G), k_BSGK), softcap, scale)
    scores = jnp.where(mask_BTS[:, None, None], scores, MASKED)
    logz = jax.nn.logsumexp(scores, axis=-1, keepdims=True)
    if sinks_H is not None:
        logz = jnp.logaddexp(logz, _by_group(sinks_H, G))
    weights = jnp.exp(scores - logz).astype(q_BTHK.dtype)
    return _ungrouped(product("bgrts,bsgv->btgrv", weights, v_BSGV).astype(q_BTHK.dtype))


def _grouped(q_BTHK, G: int):
    B, T, H, K = q_BTHK.shape
    # Said, since with G = 1 the reshape alone would leave a tensor axis on R.
    return lax.reshape(q_BTHK, (B, T, G, H // G, K), out_sharding=spec("batch", "length", "kv_heads", None, None))


def _by_head(x_BTHK, G: int):
    """[B, G, R, T, K]: a head's tokens lie together, so that scores come as they are wanted and need not be moved."""
    return jnp.moveaxis(_grouped(x_BTHK, G), 1, 3)


def _ungrouped(q_BTGRK):
    B, T, G, R, K = q_BTGRK.shape
    return lax.reshape(q_BTGRK, (B, T, G * R, K), out_sharding=spec("batch", "length", "heads", None))


def _by_group(sinks_H, G: int):
    """Float32 [G, R, 1, 1], to stand beside scores [B, G, R, T, S]."""
    shape = (G, sinks_H.shape[0] // G, 1, 1)
    return lax.reshape(sinks_H.astype(jnp.float32), shape, out_sharding=spec("kv_heads", None, None, None))


def _scores(q_BGRTK, k_BGSK, scale, softcap):
    return _capped(product("bgrtk,bgsk->bgrts", q_BGRTK, k_BGSK), softcap, scale)


def _of_rows(equation, x, kept):
    """einsum of rows x [B, …] and what is kept for them [P, …], as `attention_to_cache` says; b stands for rows alone."""
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
    """(exp(s − top), their sum and the top of each row); a sink joins the sum alone."""
    top = jnp.max(scores, axis=-1, keepdims=True)
    if sinks is not None:
        top = jnp.maximum(top, sinks)
    p = jnp.exp(scores - top)
    z = jnp.sum(p, axis=-1, keepdims=True)
    if sinks is not None:
        z += jnp.exp(sinks - top)
    return p, z, top


def _capped(products, softcap, scale):
    scores = products * scale
    return softcap * jnp.tanh(scores / softcap) if softcap else scores


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _blocked(scale, window, softcap, q_BTHK, k_BSGK, v_BSGV, visible, sinks_H):
    """Block by block of queries, each against the keys it can see: the rest of the score matrix is never computed.

    The backward pass takes the scores anew from q, k and the saved log of the softmax's denominator (FlashAttention, Dao
    et al. 2022): with P = exp(S − log Z), dV = Pᵀ·dO, dS = P·(dO·Vᵀ − rowsum(dO·O)), dQ = dS·K, dK = dSᵀ·Q. All five
    products take operands in the compute dtype. Soft-capped scores multiply dS by 1 − (S / softcap)². A sink is a score
    whose value is 0: its gradient is −Σ exp(sink − log Z)·rowsum(dO·O).
    """
    return _forward(scale, window, softcap, q_BTHK, k_BSGK, v_BSGV, visible, sinks_H)[0]


def _blocks(visible: Visible, window: int):
    """(first key, first query, end of both, mask) of every block.

    Without a window there are at most 8 blocks. With one they are about as long as the window, so that work grows with T
    and not with T²; but at most 32, lest a long sequence take minutes to compile.
    """
    T, near = visible.slots_T.shape[0], 0 if visible.branches else window
    eighth = -(-T // 8)
    size = max(BLOCK, min(near, eighth) if near else eighth, -(-T // 32))
    begins = range(0, T, size)
    # Whole blocks of keys, since odd ends are slow on accelerators.
    firsts = [max(0, begin - near + 1) // BLOCK * BLOCK if near else 0 for begin in begins]
    for first, begin in zip(firsts, begins, strict=True):
        end = min(begin + size, T)
        yield first, begin, end, visible.mask(window, slice(begin, end), slice(first, end))[:, None, None]


def _forward(scale, window, softcap, q_BTHK, k_BSGK, v_BSGV, visible, sinks_H):
    G = k_BSGK.shape[2]
    q, k, v = _by_head(q_BTHK, G), jnp.swapaxes(k_BSGK, 1, 2), jnp.swapaxes(v_BSGV, 1, 2)
    sinks = None if sinks_H is None else _by_group(sinks_H, G)
    outs, logzs = [], []
    for first, begin, end, mask in _blocks(visible, window):
        scores = _scores(q[:, :, :, begin:end], k[:, :, first:end], scale, softcap)
        scores = jnp.where(mask, scores, MASKED)
        p, z, top = _exponentials(scores, sinks)
        outs.append((product("bgrts,bgsv->bgrtv", p.astype(q.dtype), v[:, :, first:end]) / z).astype(q.dtype))
        logzs.append(top + jnp.log(z))
    out = _ungrouped(jnp.moveaxis(jnp.concatenate(outs, axis=3), 3, 1))
    # Named inside, so that a remat policy can keep both and the backward pass need not run this again.
    out, logz = checkpoint_name(out, "saved"), checkpoint_name(jnp.concatenate(logzs, axis=3), "saved")
    return out, (q_BTHK, k_BSGK, v_BSGV, visible, sinks_H, out, logz)


def _backward(scale, window, softcap, residuals, dout_BTHV):
    q_BTHK, k_BSGK, v_BSGV, visible, sinks_H, out_BTHV, logz = residuals
    dtype, G = q_BTHK.dtype, k_BSGK.shape[2]
    q, out, dout = (_by_head(x, G) for x in (q_BTHK, out_BTHV, dout_BTHV.astype(dtype)))
    k, v = jnp.swapaxes(k_BSGK, 1, 2), jnp.swapaxes(v_BSGV, 1, 2)
    # rowsum(dO·O), [B, G, R, T, 1]
    delta = jnp.sum(dout.astype(jnp.float32) * out.astype(jnp.float32), axis=-1, keepdims=True)
    firsts, dqs, dks, dvs = [], [], [], []
    for first, begin, end, mask in _blocks(visible, window):
        some, seen = (slice(None),) * 3 + (slice(begin, end),), (slice(None),) * 2 + (slice(first, end),)
        scores = _scores(q[some], k[seen], scale, softcap)
        p = jnp.exp(jnp.where(mask, scores, MASKED) - logz[some])
        dp = product("bgrtv,bgsv->bgrts", dout[some], v[seen])
        ds = p * (dp - delta[some]) * scale
        if softcap:
            ds *= 1 - jnp.square(scores / softcap)
        ds = ds.astype(dtype)
        p = p.astype(dtype)
        dqs.append(product("bgrts,bgsk->bgrtk", ds, k[seen]).astype(dtype))
        dks.append(product("bgrts,bgrtk->bgsk", ds, q[some]))
        dvs.append(product("bgrts,bgrtv->bgsv", p, dout[some]))
        firsts.append(first)
    dq = _ungrouped(jnp.moveaxis(jnp.concatenate(dqs, axis=3), 3, 1))
    dk, dv = (jnp.swapaxes(_overlaid(firsts, parts).astype(dtype), 1, 2) for parts in (dks, dvs))
    if sinks_H is None:
        dsinks = None
    else:
        dsinks = -jnp.sum(jnp.exp(_by_group(sinks_H, G) - logz) * delta, axis=(0, 3, 4))
        dsinks = lax.reshape(dsinks, sinks_H.shape, out_sharding=spec("heads")).astype(sinks_H.dtype)
    return dq, dk, dv, None, dsinks


_blocked.defvjp(_forward, _backward)


def _overlaid(firsts, parts):
    """The sum of parts [B, G, n, K], each from its `first` key on; neither beginnings nor ends go backwards."""
    done, total = [], parts[0]
    for gap, part in zip(np.diff(firsts), parts[1:], strict=True):
        if gap:
            done.append(total[:, :, :gap])
            total = total[:, :, gap:]
        total = part.at[:, :, : total.shape[2]].add(total)
    return jnp.concatenate((*done, total), axis=2) if done else total
