"""How parameters are declared: value, logical axes, and the part they play, once, where they are made."""

import jax
import jax.numpy as jnp
from flax import nnx

STD = 0.02  # of every matrix, as in GPT-2 and Llama

# The part a parameter plays decides how it is updated: weight decay is for matrices, and μP scales the learning rate of
# hidden ones (lm/train/optimizer.py).
ROLES = ("hidden", "embedding", "head", "vector")


def parameter(value: jax.Array, axes: tuple[str, ...], role: str, kind: type[nnx.Variable] = nnx.Param) -> nnx.Variable:
    """A parameter whose `axes` are logical axis names (lm/parallel/mesh.py) and whose `role` is one of ROLES."""
    assert role in ROLES and value.ndim == len(axes)
    return kind(value, out_sharding=axes, role=role)


def normal(rngs: nnx.Rngs, shape: tuple[int, ...], std: float = STD) -> jax.Array:
    """float32 N(0, std²)."""
    return std * jax.random.normal(rngs.params(), shape, jnp.float32)
