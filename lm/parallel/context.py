"""Sequences that are split over devices: over the context axis, and between blocks over the tensor axis too.

The context axis splits long sequences, in the order of `slots`.

Between blocks the devices of a tensor axis hold different tokens. Within a block they hold different heads or hidden units of
all tokens of a row. Between blocks nothing is left to split but the length, and norms, residual sums and what remat keeps
would be the same on all of them. So a block begins with an all-gather of its rows and ends in a reduce-scatter, in place of
one all-reduce, which sends as much (Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models",
§4.2.2). An activation [B, T, …] says itself how T is split: as "length" (over context only) or as "sequence" (over both).
"""

import contextlib
from collections.abc import Iterator
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lm.parallel.mesh import AXES, RULES, reshard, spec, spec_of
from lm.parallel.torus import groups_along, rings

Tree = TypeVar("Tree")


def context_ways() -> int:
    """Return how many parts the current mesh splits sequences into, 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape["context"]


def slots(T: int, ways: int | None = None) -> np.ndarray:
    """Return int32 [T]: the place in the sequence of each token of an axis that is split into `ways` parts.

    A sequence is cut into 2·ways chunks. Device i holds chunks i and 2·ways − 1 − i, in this order, so that all devices have
    equally many pairs of a query and an earlier key (the zig-zag order of Llama 3's training, Dubey et al. 2024, §3.3.2).
    Whoever puts rows onto the mesh puts them into this order, and the loss needs no other. ways: default `context_ways()`;
    1 keeps the order. T must be a multiple of 2·ways.
    """
    ways = context_ways() if ways is None else ways
    if ways == 1:
        return np.arange(T, dtype=np.int32)
    chunks = np.arange(T, dtype=np.int32).reshape(2 * ways, -1)
    return np.concatenate((chunks[:ways, None], chunks[: ways - 1 : -1, None]), axis=1).reshape(T)


def shift(x_BT: jax.Array, k: int) -> jax.Array:
    """Return what x holds k places later in the sequence, 0 after its end; both are in the order of `slots`."""
    T = x_BT.shape[1]
    if context_ways() == 1:
        return jnp.pad(x_BT[:, k:], ((0, 0), (0, k)))
    order_T = slots(T)
    inverse_T = np.argsort(order_T)
    x_BT = reshard(x_BT, "batch", None).at[:, inverse_T].get(out_sharding=spec("batch", None))
    x_BT = jnp.pad(x_BT, ((0, 0), (0, k)))
    return x_BT.at[:, order_T + k].get(out_sharding=spec("batch", "length"))


@contextlib.contextmanager
def sequences_whole(params: Tree) -> Iterator[Tree]:
    """Within this context the devices of the context axis belong to fsdp: sampling and tasks have no long sequences to split.

    Yields the parameters on that mesh. No parameter moves: the same devices hold the same parts.
    """
    mesh = jax.sharding.get_mesh()
    if mesh.empty or mesh.shape["context"] == 1:
        yield params
        return
    sizes = dict(mesh.shape) | {"fsdp": mesh.shape["fsdp"] * mesh.shape["context"], "context": 1}
    devices = np.moveaxis(mesh.devices, AXES.index("context"), AXES.index("fsdp") + 1).reshape(tuple(sizes.values()))
    whole = Mesh(devices, AXES, axis_types=mesh.axis_types)

    def moved(x: jax.Array) -> jax.Array:
        parts = [shard.data for shard in x.addressable_shards]
        where = PartitionSpec(*("fsdp" if axis == RULES["embed"] else axis for axis in jax.typeof(x).sharding.spec))
        return jax.make_array_from_single_device_arrays(x.shape, NamedSharding(whole, where), parts)

    with jax.set_mesh(whole):
        yield jax.tree.map(moved, params)


AXIS = "tensor"


def axis_between_blocks(T: int) -> str:
    """Return the logical axis of T tokens between blocks: "sequence" if the mesh can split them over tensor, else "length"."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape[AXIS] == 1:
        return "length"
    return "length" if T % (mesh.shape["context"] * mesh.shape[AXIS]) else "sequence"


def split_by(where: PartitionSpec | None) -> bool:
    """Return whether the partition of an activation [B, T, …] splits T over tensor."""
    return where is not None and where[1] in (AXIS, ("context", AXIS))


def length_axis(x: jax.Array) -> str:
    """Return the logical axis of T in an activation [B, T, …]: "sequence" or "length"."""
    return "sequence" if split_by(spec_of(x)) else "length"


def whole_rows(x: jax.Array) -> jax.Array:
    """Return an activation [B, T, …] with T gathered over tensor, if it is split."""
    where, whole = spec_of(x), spec("length")
    if where is None or whole is None or not split_by(where):
        return x
    return jax.sharding.reshard(x, PartitionSpec(where[0], whole[0], *where[2:]))


def scattered_rows(x: jax.Array) -> jax.Array:
    """Within a shard_map, return this device's part along T of the sum of x [B, T, …] over tensor, ring by ring (torus.py)."""
    sizes = rings(AXIS)
    for n in range(len(sizes)):
        groups = None if len(sizes) == 1 else groups_along(sizes, n)
        x = lax.psum_scatter(x, AXIS, scatter_dimension=1, tiled=True, axis_index_groups=groups)
    return x
