"""Sequences in chunks of time steps, so that the logits of a whole batch never exist; what a loop over them needs.

A loop over chunks should send nothing between the devices that hold different rows. So sums are kept by row, and the gradient
of a head, to which every chunk adds, stays a partial sum on each device (`partial_spec`) until the loop is over (`reduced`).
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lm.parallel.mesh import RULES, reshard, row_ways

CHUNK_TOKENS = 2048  # positions a device whose logits exist at a time


def chunk_of(B: int, T: int) -> int:
    """Time steps of a chunk: at most CHUNK_TOKENS positions a device."""
    return even(T, CHUNK_TOKENS // max(1, B // row_ways()))


def even(length: int, most: int) -> int:
    """The length of chunks, all of one length and at most `most`, that cover `length` with the least padding."""
    chunks = max(1, -(-length // max(1, most)))
    return max(1, -(-length // chunks))


def split(chunk: int, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """[B, T, …] -> [⌈T / chunk⌉, B, chunk, …], split by rows over the mesh and filled up with zeros behind T."""

    def one(x):
        x = reshard(x, "batch", *[None] * (x.ndim - 1))
        if x.shape[1] % chunk:
            x = jnp.pad(x, [(0, -x.shape[1] % chunk if axis == 1 else 0) for axis in range(x.ndim)])
        return jnp.moveaxis(x.reshape(x.shape[0], -1, chunk, *x.shape[2:]), 1, 0)

    return tuple(map(one, arrays))


def joined(x: jax.Array, T: int) -> jax.Array:
    """[n, B, chunk, …] -> [B, T, …]; the reverse of `split`."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :T]


def partial_spec(where: PartitionSpec | None) -> PartitionSpec | None:
    """The partition of a gradient of a weight that lies as `where`, as one device finds it from its own rows.

    Whole over fsdp, split over tensor as the weight is, and still to be added up over the devices that hold other rows.
    """
    if where is None or row_ways() == 1:
        return where
    return PartitionSpec(*(None if axis in RULES["batch"] else axis for axis in where), unreduced=frozenset(RULES["batch"]))


def reduced(partial: jax.Array, where: PartitionSpec | None) -> jax.Array:
    """The sum over devices of what lies as `partial_spec(where)`, split as `where` says."""
    if where is None or row_ways() == 1:
        return partial
    # Scattered over fsdp first: what is left to add up over the other axes is smaller by its size.
    rest = frozenset(RULES["batch"]) - {axis for axis in where if axis}
    return jax.sharding.reshard(jax.sharding.reshard(partial, PartitionSpec(*where, unreduced=rest)), where)
