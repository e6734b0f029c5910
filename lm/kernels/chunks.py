"""Split sequences into chunks of time steps, so that the logits of a whole batch never exist.

A loop over chunks should send nothing between devices that hold different tokens. So sums are kept per row, and the head's
gradient stays a partial sum on each device (`partial_spec`) until the loop ends (`reduced`). If a context axis splits the
sequences, each device's part of a sequence becomes a row of its own.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from lm.parallel.context import context_ways
from lm.parallel.mesh import platform, reshard, row_ways, spec

CHUNK_TOKENS = 2048  # positions per device whose logits exist at once
CPU_CHUNK_TOKENS = 512  # on a CPU, where more are no faster


def chunk_of(B: int, T: int) -> int:
    """Return the time steps per chunk: at most CHUNK_TOKENS positions per device, on a CPU CPU_CHUNK_TOKENS."""
    most = min(CHUNK_TOKENS, CPU_CHUNK_TOKENS) if platform() == "cpu" else CHUNK_TOKENS
    return even(T // context_ways(), most // max(1, B // row_ways()))


def even(length: int, most: int) -> int:
    """Return the chunk length, at most `most`, for which equal chunks cover `length` with the least padding."""
    chunks = max(1, -(-length // max(1, most)))
    return max(1, -(-length // chunks))


def split(chunk: int, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Reshape [B, T, …] to [⌈T / chunk⌉, B, chunk, …]: rows sharded over the mesh, zeros as padding after T.

    With a context axis of n devices it is [⌈T / (n · chunk)⌉, n · B, chunk, …].
    """

    def one(x: jax.Array) -> jax.Array:
        x = _as_rows(x)
        if x.shape[1] % chunk:
            x = jnp.pad(x, [(0, -x.shape[1] % chunk if axis == 1 else 0) for axis in range(x.ndim)])
        return jnp.moveaxis(_reshaped(x, x.shape[0], x.shape[1] // chunk, chunk, *x.shape[2:]), 1, 0)

    return tuple(map(one, arrays))


def joined(x: jax.Array, T: int) -> jax.Array:
    """Reshape chunks to [B, T, …]; the inverse of `split`."""
    x = jnp.moveaxis(x, 0, 1)
    x = _reshaped(x, x.shape[0], x.shape[1] * x.shape[2], *x.shape[3:])[:, : T // context_ways()]
    rest = [None] * (x.ndim - 2)
    return x if context_ways() == 1 else _same_parts(x, ("rows", None, *rest), ("batch", "length", *rest))


def _as_rows(x: jax.Array) -> jax.Array:
    """Return [n · B, T / n, …] of x [B, T, …] with each device's part of the tokens in its own rows. No token moves."""
    rest = [None] * (x.ndim - 2)
    x = reshard(x, "batch", "length", *rest)
    return x if context_ways() == 1 else _same_parts(x, ("batch", "length", *rest), ("rows", None, *rest))


def _same_parts(x: jax.Array, before: Sequence[str | None], after: Sequence[str | None]) -> jax.Array:
    """Return the array with partition `after` of which every device holds what it holds of x with partition `before`."""
    return jax.shard_map(lambda part: part, in_specs=spec(*before), out_specs=spec(*after))(x)


def _reshaped(x: jax.Array, *shape: int) -> jax.Array:
    # With a partition, because JAX does not know where that of a single row goes.
    return lax.reshape(x, shape, out_sharding=spec("rows", *[None] * (len(shape) - 1)))
