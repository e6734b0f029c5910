"""Causal attention inside segments, with grouped keys and values.

Axes here: B batch, T queries, S keys, G key/value heads, R query heads a key/value head, K head size; H = G·R.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from lm.kernels.matmul import product
from lm.parallel.mesh import spec

# Finite, so that a row without any visible key (padding) gives a uniform average instead of NaN.
MASKED = -1e30
BLOCK = 128  # least queries taken at a time


def attention(q_BTHK, k_BSGK, v_BSGK, mask_BTS) -> jax.Array:
    """softmax(q·kᵀ / √K + mask)·v (Vaswani et al. 2017), H query heads sharing G key/value heads (Ainslie et al. 2023).

    Args: q, k, v in the compute dtype. mask_BTS: of `causal_mask`; where T = S, query t must not see beyond key t.
    Returns: [B, T, H, K] in q's dtype. Scores and softmax are float32.
    """
    if mask_BTS.shape[1] == mask_BTS.shape[2]:
        return _blocked(q_BTHK, k_BSGK, v_BSGK, mask_BTS)
    return attention_reference(q_BTHK, k_BSGK, v_BSGK, mask_BTS)


def causal_mask(q_segments_BT, k_segments_BS, slots_T) -> jax.Array:
    """bool [B, T, S], True where a query sees a key: of its own segment, at or before its own slot.

    slots_T: int32, the slot among the keys that each query stands in. Segments are int32.
    """
    keys_S = jnp.arange(k_segments_BS.shape[1])
    return (keys_S[None, :] <= slots_T[:, None]) & (q_segments_BT[:, :, None] == k_segments_BS[:, None, :])


def attention_reference(q_BTHK, k_BSGK, v_BSGK, mask_BTS) -> jax.Array:
    """The plain twin, whole score matrix and autodiff; also what decoding uses, where T is small."""
    scores = jnp.where(mask_BTS[:, None, None], _scores(_grouped(q_BTHK, k_BSGK), k_BSGK), MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(q_BTHK.dtype)
    return _ungrouped(product("bgrts,bsgk->btgrk", weights, v_BSGK).astype(q_BTHK.dtype))


def _grouped(q_BTHK, k_BSGK):
    B, T, H, K = q_BTHK.shape
    G = k_BSGK.shape[2]
    # Said, since with G = 1 the reshape alone would leave a tensor axis on R.
    return lax.reshape(q_BTHK, (B, T, G, H // G, K), out_sharding=spec("batch", "length", "kv_heads", None, None))


def _ungrouped(q_BTGRK):
    B, T, G, R, K = q_BTGRK.shape
    return lax.reshape(q_BTGRK, (B, T, G * R, K), out_sharding=spec("batch", "length", "heads", None))


def _scores(q_BTGRK, k_BSGK):
    return product("btgrk,bsgk->bgrts", q_BTGRK, k_BSGK) * (q_BTGRK.shape[-1] ** -0.5)


@jax.custom_vjp
def _blocked(q_BTHK, k_BSGK, v_BSGK, mask_BTS):
    """Block by block of queries, each against the keys up to its end: the upper triangle is never computed.

    The backward pass takes the scores anew from q, k and the saved log of the softmax's denominator (FlashAttention, Dao
    et al. 2022): with P = exp(S − log Z), dV = Pᵀ·dO, dS = P·(dO·Vᵀ − rowsum(dO·O)), dQ = dS·K, dK = dSᵀ·Q. All five
    products take operands in the compute dtype.
    """
    return _forward(q_BTHK, k_BSGK, v_BSGK, mask_BTS)[0]


def _blocks(T: int):
    size = max(BLOCK, -(-T // 8))
    return [(begin, min(begin + size, T)) for begin in range(0, T, size)]


def _block_scores(q, k, mask, begin, end):
    """Masked scores [B, G, R, end−begin, end] of a block of queries."""
    return jnp.where(mask[:, None, None, begin:end, :end], _scores(q[:, begin:end], k[:, :end]), MASKED)


def _forward(q_BTHK, k_BSGK, v_BSGK, mask_BTS):
    q = _grouped(q_BTHK, k_BSGK)
    outs, logzs = [], []
    for begin, end in _blocks(q.shape[1]):
        scores = _block_scores(q, k_BSGK, mask_BTS, begin, end)
        top = jnp.max(scores, axis=-1, keepdims=True)
        p = jnp.exp(scores - top)
        z = jnp.sum(p, axis=-1, keepdims=True)
        out = product("bgrts,bsgk->bgrtk", p.astype(q.dtype), v_BSGK[:, :end]) / z
        outs.append(jnp.moveaxis(out, 3, 1).astype(q.dtype))
        logzs.append(top + jnp.log(z))
    out = _ungrouped(jnp.concatenate(outs, axis=1))
    # Named inside, so that a remat policy can keep both and the backward pass need not run this again.
    out, logz = checkpoint_name(out, "matmul"), checkpoint_name(jnp.concatenate(logzs, axis=3), "matmul")
    return out, (q_BTHK, k_BSGK, v_BSGK, mask_BTS, out, logz)


def _backward(residuals, dout_BTHK):
    q_BTHK, k, v, mask, out_BTHK, logz = residuals
    dtype, scale = q_BTHK.dtype, q_BTHK.shape[-1] ** -0.5
    q, out, dout = (_grouped(x, k) for x in (q_BTHK, out_BTHK, dout_BTHK.astype(dtype)))
    # rowsum(dO·O), [B, G, R, T, 1] like the scores
    delta = jnp.transpose(jnp.sum(dout.astype(jnp.float32) * out.astype(jnp.float32), axis=-1), (0, 2, 3, 1))[..., None]
    dqs = []
    dk = dv = None
    for begin, end in _blocks(q.shape[1]):
        scores = _block_scores(q, k, mask, begin, end)
        p = jnp.exp(scores - logz[:, :, :, begin:end])
        dp = product("btgrk,bsgk->bgrts", dout[:, begin:end], v[:, :end])
        ds = (p * (dp - delta[:, :, :, begin:end]) * scale).astype(dtype)
        p = p.astype(dtype)
        dqs.append(product("bgrts,bsgk->btgrk", ds, k[:, :end]).astype(dtype))
        dk = _add(dk, product("bgrts,btgrk->bsgk", ds, q[:, begin:end]))
        dv = _add(dv, product("bgrts,btgrk->bsgk", p, dout[:, begin:end]))
    dq = _ungrouped(jnp.concatenate(dqs, axis=1))
    return dq, dk.astype(k.dtype), dv.astype(v.dtype), None


_blocked.defvjp(_forward, _backward)


def _add(total, part):
    """total + part, where part covers as many keys or more."""
    return part if total is None else part.at[:, : total.shape[1]].add(total)
