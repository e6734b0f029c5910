"""Layouts of heads, and the parts of a softmax, that the plain attentions share.

Axes: B batch, T queries, S keys, G key/value heads, R query heads per key/value head, K head size; H = G·R.
"""

import jax
import jax.numpy as jnp
from jax import lax

from lm.kernels.visible import MASKED
from lm.parallel.mesh import platform, spec


def grouped(q_BTHK: jax.Array, G: int) -> jax.Array:
    """Return the queries [B, T, G, R, K], by the key/value head that they share."""
    B, T, H, K = q_BTHK.shape
    # An explicit sharding: with G = 1 the reshape alone would leave a tensor axis on R.
    return lax.reshape(q_BTHK, (B, T, G, H // G, K), out_sharding=spec("batch", "length", "kv_heads", None, None))


def by_head(x_BTHK: jax.Array, G: int) -> jax.Array:
    """Return [B, G, R, T, K]: the tokens of a head are contiguous, so the scores need no transpose."""
    return jnp.moveaxis(grouped(x_BTHK, G), 1, 3)


def ungrouped(q_BTGRK: jax.Array) -> jax.Array:
    """Return [B, T, H, K]; the inverse of `grouped`."""
    B, T, G, R, K = q_BTGRK.shape
    return lax.reshape(q_BTGRK, (B, T, G * R, K), out_sharding=spec("batch", "length", "heads", None))


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
