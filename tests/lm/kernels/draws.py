"""Random arrays that NumPy draws: JAX would compile a program for each shape, and again on each mesh."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def normal(seed: int, shape: Sequence[int]) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def uniform(seed: int, shape: Sequence[int]) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).random(shape, np.float32))


def integers(seed: int, shape: Sequence[int], end: int) -> jax.Array:
    """Integers from 0 up to `end`, which is left out."""
    return jnp.asarray(np.random.default_rng(seed).integers(0, end, shape, np.int32))
