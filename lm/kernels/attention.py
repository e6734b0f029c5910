"""Causal attention inside segments, with grouped keys and values."""

import jax
import jax.numpy as jnp

from lm.kernels.matmul import product

# Finite, so that a row without any visible key (padding) gives a uniform average instead of NaN.
MASKED = -1e30


def attention(q_BTHK, k_BSGK, v_BSGK, mask_BTS) -> jax.Array:
    """softmax(q·kᵀ / √K + mask)·v (Vaswani et al. 2017), H query heads sharing G key/value heads (Ainslie et al. 2023).

    Args: q, k, v in the compute dtype; mask_BTS bool, True where the query may see the key.
    Returns: [B, T, H, K] in q's dtype. Scores and softmax are float32.
    """
    B, T, H, K = q_BTHK.shape
    G = k_BSGK.shape[2]
    q_BTGRK = q_BTHK.reshape(B, T, G, H // G, K)
    scores = product("btgrk,bsgk->bgrts", q_BTGRK, k_BSGK) * (K**-0.5)
    scores = jnp.where(mask_BTS[:, None, None], scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(q_BTHK.dtype)
    out = product("bgrts,bsgk->btgrk", weights, v_BSGK).astype(q_BTHK.dtype)
    return out.reshape(B, T, H, K)


def causal_mask(q_segments_BT, k_segments_BS, q_index_T) -> jax.Array:
    """[B, T, S] True where key slot s ≤ query slot and both are of the same segment. q_index_T: slots of the queries."""
    causal = jnp.arange(k_segments_BS.shape[1])[None, :] <= q_index_T[:, None]
    return causal[None] & (q_segments_BT[:, :, None] == k_segments_BS[:, None, :])
