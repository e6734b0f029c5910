"""Split sequences into chunks of time steps, so that the logits of a whole batch never exist.

A loop over chunks should send nothing between devices that hold different tokens. So sums are kept per row, and the head's
gradient stays a partial sum on each device (`partial_spec`) until the loop ends (`reduced`). If a context axis splits the
sequences, each device's part of a sequence becomes a row of its own.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lm.parallel.mesh import context_ways, reshard, row_ways, spec

CHUNK_TOKENS = 2048  # positions per device whose logits exist at once
CPU_CHUNK_TOKENS = 512  # on a CPU, where more are no faster


def chunk_of(B: int, T: int) -> int:
    """Return the time steps per chunk: at most CHUNK_TOKENS positions per device, on a CPU CPU_CHUNK_TOKENS."""
    most = min(CHUNK_TOKENS, CPU_CHUNK_TOKENS) if jax.default_backend() == "cpu" else CHUNK_TOKENS
    return even(T // context_ways(), most // max(1, B // row_ways()))


def even(length: int, most: int) -> int:
    """Return the chunk length, at most `most`, for which equal chunks cover `length` with the least padding."""
    chunks = max(1, -(-length // max(1, most)))
    return max(1, -(-length // chunks))


def split(chunk: int, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Reshape [B, T, …] to [⌈T / chunk⌉, B, chunk, …]: rows sharded over the mesh, zeros as padding after T.

    With a context axis of n devices it is [⌈T / (n · chunk)⌉, n · B, chunk, …].
    """

    def one(x):
        x = _as_rows(x)
        if x.shape[1] % chunk:
            x = jnp.pad(x, [(0, -x.shape[1] % chunk if axis == 1 else 0) for axis in range(x.ndim)])
        return jnp.moveaxis(x.reshape(x.shape[0], -1, chunk, *x.shape[2:]), 1, 0)

    return tuple(map(one, arrays))


def joined(x: jax.Array, T: int) -> jax.Array:
    """Reshape chunks to [B, T, …]; the inverse of `split`."""
    x = jnp.moveaxis(x, 0, 1)
    x = x.reshape(x.shape[0], -1, *x.shape[3:])[:, : T // context_ways()]
    rest = [None] * (x.ndim - 2)
    return x if context_ways() == 1 else _same_parts(x, ("rows", None, *rest), ("batch", "length", *rest))


def _as_rows(x: jax.Array) -> jax.Array:
    """Return [n · B, T / n, …] of x [B, T, …] with each device's part of the tokens in its own rows. No token moves."""
    rest = [None] * (x.ndim - 2)
    x = reshard(x, "batch", "length", *rest)
    return x if context_ways() == 1 else _same_parts(x, ("batch", "length", *rest), ("rows", None, *rest))


def _same_parts(x, before, after):
    """Return the array with partition `after` of which every device holds what it holds of x with partition `before`."""
    return jax.shard_map(lambda part: part, in_specs=spec(*before), out_specs=spec(*after))(x)


def partial_spec(where: PartitionSpec | None) -> PartitionSpec | None:
    """Return the partition of a weight's gradient before it is summed over devices; the weight's own partition is `where`.

    The gradient is whole over fsdp, split over tensor like the weight, and unreduced over the axes that split tokens.
    """
    if where is None or row_ways() * context_ways() == 1:
        return where
    embed = spec("embed")[0]
    return PartitionSpec(*(None if axis == embed else axis for axis in where), unreduced=frozenset(spec("rows")[0]))


def reduced(partial: jax.Array, where: PartitionSpec | None) -> jax.Array:
    """Return the sum over devices of an array with partition `partial_spec(where)`, with the partition `where`."""
    if where is None or row_ways() * context_ways() == 1:
        return partial
    # Scatter over fsdp first: then the sums over the other axes are smaller by the size of fsdp.
    rest = frozenset(spec("rows")[0]) - {
        name for axis in where if axis for name in ((axis,) if isinstance(axis, str) else axis)
    }
    return jax.sharding.reshard(jax.sharding.reshard(partial, PartitionSpec(*where, unreduced=rest)), where)
