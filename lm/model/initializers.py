"""How weights begin."""

import jax
import jax.numpy as jnp
from flax import nnx

STD = 0.02  # of every matrix, as in GPT-2 and Llama


def normal(rngs: nnx.Rngs, shape: tuple[int, ...], *, std: float = STD, layers: int | None = None) -> jax.Array:
    """float32 N(0, std²); a matrix that writes into the residual stream of `layers` layers gets std/√(2·layers) (GPT-2)."""
    scale = std if layers is None else std / (2 * layers) ** 0.5
    return scale * jax.random.normal(rngs.params(), shape, jnp.float32)
