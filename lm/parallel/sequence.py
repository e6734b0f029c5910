"""Sequence parallelism: between blocks, the devices of a tensor axis hold different tokens.

Within a block they hold different heads or hidden units of all tokens of a row. Between blocks nothing is left to split but
the length, and norms, residual sums and what remat keeps would be the same on all of them. So a block begins with an
all-gather of its rows and ends in a reduce-scatter, in place of one all-reduce, which sends as much (Korthikanti et al. 2022,
"Reducing Activation Recomputation in Large Transformer Models", §4.2.2).

An activation [B, T, …] says itself how T is split: as "length" (over context only) or as "sequence" (over context and tensor).
"""

import jax
from jax import lax
from jax.sharding import PartitionSpec

from lm.parallel.mesh import mesh_axes, several
from lm.parallel.torus import groups_along, rings

AXIS = "tensor"


def axis_between_blocks(T: int) -> str:
    """Return the logical axis of T tokens between blocks: "sequence" if the mesh can split them over tensor, else "length"."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape[AXIS] == 1:
        return "length"
    return "length" if T % (mesh.shape["context"] * mesh.shape[AXIS]) else "sequence"


def split_by(where: PartitionSpec | None) -> bool:
    """Return whether the partition of an activation [B, T, …] splits T over tensor."""
    return where is not None and AXIS in several(where[1])


def length_axis(x: jax.Array) -> str:
    """Return the logical axis of T in an activation [B, T, …]: "sequence" or "length"."""
    return "sequence" if not jax.sharding.get_abstract_mesh().empty and split_by(jax.typeof(x).sharding.spec) else "length"


def whole_rows(x: jax.Array) -> jax.Array:
    """Return an activation [B, T, …] with T gathered over tensor, if it is split."""
    if length_axis(x) == "length":
        return x
    first, _, *rest = jax.typeof(x).sharding.spec
    return jax.sharding.reshard(x, PartitionSpec(first, mesh_axes("length", jax.sharding.get_abstract_mesh()), *rest))


def scattered_rows(x: jax.Array) -> jax.Array:
    """Within a shard_map, return this device's part along T of the sum of x [B, T, …] over tensor, ring by ring (torus.py)."""
    sizes = rings(AXIS)
    for n in range(len(sizes)):
        groups = None if len(sizes) == 1 else groups_along(sizes, n)
        x = lax.psum_scatter(x, AXIS, scatter_dimension=1, tiled=True, axis_index_groups=groups)
    return x
