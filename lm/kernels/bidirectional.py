"""Attention of all tokens of a row to one another, as in encoders of images and of speech.

Axes: R rows (images or windows of sound), T queries and keys, H heads, K head size.
"""

import functools

import jax
import jax.numpy as jnp

from lm.kernels.ops import product

BLOCK = 256  # queries whose scores exist at once


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def bidirectional_attention(q_RTHK: jax.Array, k_RTHK: jax.Array, v_RTHK: jax.Array, scale: float) -> jax.Array:
    """Compute lm.kernels.ops.bidirectional_attention.

    Each block of BLOCK queries computes its scores again in the backward pass, whose products take operands of q's dtype.
    """
    return _forward(q_RTHK, k_RTHK, v_RTHK, scale)[0]


def _forward(q_RTHK: jax.Array, k_RTHK: jax.Array, v_RTHK: jax.Array, scale: float) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q_RTHK, k_RTHK, v_RTHK))
    outs, logzs = [], []
    for some in _blocks(q.shape[2]):
        scores = scale * product("rhtk,rhsk->rhts", q[:, :, some], k)
        logz = jax.nn.logsumexp(scores, axis=-1, keepdims=True)
        outs.append(product("rhts,rhsk->rhtk", jnp.exp(scores - logz).astype(q.dtype), v).astype(q.dtype))
        logzs.append(logz)
    out, logz = (xs[0] if len(xs) == 1 else jnp.concatenate(xs, axis=2) for xs in (outs, logzs))
    return jnp.swapaxes(out, 1, 2), (q, k, v, out, logz)


def _backward(scale: float, kept: tuple[jax.Array, ...], dout_RTHK: jax.Array) -> tuple[jax.Array, ...]:
    """With p = softmax(s): dv = pᵀ·do, ds = p ⊙ (do·vᵀ − Σ do ⊙ out), dq = scale·ds·k, dk = scale·dsᵀ·q."""
    q, k, v, out, logz = kept
    dout = jnp.swapaxes(dout_RTHK, 1, 2).astype(q.dtype)
    dqs, dks, dvs = [], [], []
    for some in _blocks(q.shape[2]):
        p = jnp.exp(scale * product("rhtk,rhsk->rhts", q[:, :, some], k) - logz[:, :, some])
        do = dout[:, :, some]
        delta = jnp.sum(do.astype(jnp.float32) * out[:, :, some].astype(jnp.float32), axis=-1, keepdims=True)
        ds = (scale * p * (product("rhtk,rhsk->rhts", do, v) - delta)).astype(q.dtype)
        dqs.append(product("rhts,rhsk->rhtk", ds, k))
        dks.append(product("rhts,rhtk->rhsk", ds, q[:, :, some]))
        dvs.append(product("rhts,rhtk->rhsk", p.astype(q.dtype), do))
    dq = dqs[0] if len(dqs) == 1 else jnp.concatenate(dqs, axis=2)
    dk, dv = (sum(parts[1:], start=parts[0]) for parts in (dks, dvs))
    return tuple(jnp.swapaxes(x, 1, 2).astype(q.dtype) for x in (dq, dk, dv))


bidirectional_attention.defvjp(_forward, _backward)


def _blocks(T: int) -> list[slice]:
    return [slice(first, min(first + BLOCK, T)) for first in range(0, T, BLOCK)]
