"""Rotary positions (Su et al. 2021), in the half-split form of Llama: pair (i, i + K/2) turns by position · θ^(−2i/K)."""

import jax
import jax.numpy as jnp


def rotary_angles(positions_BT: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """cos and sin, float32 [B, T, 1, K/2], ready to turn [B, T, heads, K]."""
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions_BT[:, :, None, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x_BTHK: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Turns every head's pairs by its position's angles; computed in float32, returned in x's dtype."""
    first, second = jnp.split(x_BTHK.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1).astype(x_BTHK.dtype)
