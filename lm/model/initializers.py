"""Declare parameters: value, logical axes and role, once, where they are created."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

M = TypeVar("M", bound=nnx.Module)
STD = 0.02  # of every matrix, as in GPT-2 and Llama

# The role of a parameter decides how it is updated: weight decay is for matrices, and μP scales the learning rate of
# hidden ones (lm/train/optimizers).
ROLES = ("hidden", "embedding", "head", "vector")


def parameter(
    value: jax.Array, axes: tuple[str, ...], role: str, kind: type[nnx.Variable] = nnx.Param, inputs: tuple[int, ...] = ()
) -> nnx.Variable:
    """Return a parameter.

    Args:
      axes: logical axis names (lm/parallel/mesh.py). role: one of ROLES.
      inputs: the contracted axes of a matrix of a layer; axes before them count matrices (experts), those after are outputs.
    """
    assert role in ROLES and value.ndim == len(axes)
    return kind(value, out_sharding=axes, role=role, inputs=inputs)


_no_values = contextvars.ContextVar("no_values", default=False)


@contextlib.contextmanager
def no_values() -> Iterator[None]:
    """Let `normal` and `gaussian` return zeros. Whoever asks for shapes alone would trace random numbers most of the time."""
    token = _no_values.set(True)
    try:
        yield
    finally:
        _no_values.reset(token)


def normal(rngs: nnx.Rngs, shape: tuple[int, ...], std: float = STD) -> jax.Array:
    """Return float32 samples of N(0, std²)."""
    return gaussian(rngs.params(), shape, std)


def gaussian(key: jax.Array, shape: tuple[int, ...], std: float) -> jax.Array:
    """Return float32 samples of N(0, std²)."""
    return jnp.zeros(shape, jnp.float32) if _no_values.get() else std * jax.random.normal(key, shape, jnp.float32)


def stacked(repeats: int, build: Callable[[nnx.Rngs], M], rngs: nnx.Rngs) -> M:
    """Return `repeats` modules build(rngs) as one; each parameter has the leading axis "layers"."""
    of_each = nnx.vmap(build, in_axes=(0,), out_axes=0, transform_metadata={nnx.PARTITION_NAME: "layers"})
    return nnx.split_rngs(splits=repeats)(of_each)(rngs)
