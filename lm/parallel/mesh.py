"""The device mesh and the one table that maps logical array axes to mesh axes."""

import contextlib
import functools
import math
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from lm.config import ModelConfig
from lm.errors import UserError

AXES = ("data", "fsdp", "expert", "context", "tensor")

# Logical axis -> mesh axes. Weights are split over fsdp and context (gathered before use), tensor and expert (used split).
# Activations are split by batch over data, fsdp and expert, and by head or hidden unit over tensor. The devices of an expert
# axis hold different experts and different rows, and send tokens to one another. A context axis splits sequences (`slots`).
RULES = {
    "batch": ("data", "fsdp", "expert"),
    "length": "context",
    "rows": ("data", "fsdp", "expert", "context"),  # rows of which each device has its own part of the tokens
    "layers": None,
    "embed": ("fsdp", "context"),
    "norm": None,
    "replicated": None,
    "heads": "tensor",
    "kv_heads": "tensor",
    "head": None,
    "mlp": "tensor",
    "vocab": "tensor",
    "expert": "expert",
}


def make_mesh(sizes: Mapping[str, int], devices=None) -> Mesh:
    """Build a mesh with explicit axes from sizes by axis name; one size may be -1 and takes the remaining devices.

    Raises UserError if the product of the sizes is not the number of devices, or if an axis is unknown.
    """
    devices = jax.devices() if devices is None else devices
    sizes = axis_sizes(sizes)
    shown = ", ".join(f"mesh.{axis}={size}" for axis, size in sizes.items() if size != 1) or "mesh of 1"
    free = [axis for axis, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise UserError(f"{shown}: sizes must be positive, and at most one may be -1")
    if free and len(devices) % fixed == 0:
        sizes[free[0]] = len(devices) // fixed
    if math.prod(sizes.values()) != len(devices):
        raise UserError(
            f"{shown} needs {fixed} devices and this job has {len(devices)}: the product of the sizes must match (-1 fills one)"
        )
    try:
        return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Explicit,) * len(AXES), devices=devices)
    except NotImplementedError as error:  # a torus does not allow every shape
        raise UserError(f"{shown}: these devices cannot be laid out like this ({str(error).splitlines()[0]})") from None


def axis_sizes(sizes: Mapping[str, int]) -> dict[str, int]:
    """Return the size of every axis of AXES, 1 where `sizes` leaves it out. Raises UserError for an unknown axis."""
    for axis, size in sizes.items():
        if axis not in AXES and int(size) != 1:  # an unknown axis of size 1 is harmless
            raise UserError(f"mesh.{axis}={size}: no such axis; axes are {', '.join(AXES)}")
    return {axis: int(sizes.get(axis, 1)) for axis in AXES}


def spec(*logical: str | None) -> PartitionSpec | None:
    """Return the partition of an array with these logical axes, or None if no mesh is set.

    A context axis of one device is left out, so that only meshes that split sequences treat them as split.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty else PartitionSpec(*(mesh_axes(axis, mesh) for axis in logical))


def mesh_axes(logical: str | None, mesh: Mesh | AbstractMesh) -> str | tuple[str, ...] | None:
    """Return the axes of the mesh that split a logical axis: one, several, or None."""
    axes = RULES[logical] if logical else None
    if mesh.shape["context"] > 1 or axes is None or "context" not in axes:
        return axes
    axes = () if isinstance(axes, str) else tuple(axis for axis in axes if axis != "context")
    return axes if len(axes) > 1 else axes[0] if axes else None


def row_ways() -> int:
    """Return how many parts the current mesh splits rows into, 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape["data"] * mesh.shape["fsdp"] * mesh.shape["expert"]


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


def later(x_BT: jax.Array, k: int) -> jax.Array:
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
def sequences_whole(params) -> Iterator:
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
        where = PartitionSpec(*("fsdp" if axis == RULES["embed"] else axis for axis in x.sharding.spec))
        return jax.make_array_from_single_device_arrays(x.shape, NamedSharding(whole, where), parts)

    with jax.set_mesh(whole):
        yield jax.tree.map(moved, params)


def reshard(x: jax.Array, *logical: str | None) -> jax.Array:
    """Reshard x to the partition of these logical axes; without a mesh return x."""
    target = spec(*logical)
    return x if target is None else jax.sharding.reshard(x, target)


def place_rows(*arrays: np.ndarray, mesh: Mesh | None = None) -> tuple:
    """Put arrays [B, …] that this process holds whole onto a mesh, split by rows. mesh: default the one that is set.

    Without any mesh the arrays come back as they are.
    """
    if mesh is None and jax.sharding.get_abstract_mesh().empty:
        return arrays
    where = NamedSharding(mesh or jax.sharding.get_mesh(), spec("batch"))

    def placed(x: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(x.shape, where, lambda index: np.ascontiguousarray(x[index]))

    return tuple(map(placed, arrays))


def shardings(tree, mesh: Mesh):
    """Return a tree of NamedShardings for a tree of nnx variables (parameters or moments, abstract or not) and plain arrays.

    A variable is sharded by its logical axes; a plain array is replicated.
    """

    def sharding(leaf):
        axes = logical_axes(leaf) if isinstance(leaf, nnx.Variable) else ()
        return jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec(*(mesh_axes(axis, mesh) for axis in axes))), leaf)

    return jax.tree.map(sharding, tree, is_leaf=lambda x: isinstance(x, nnx.Variable))


def logical_axes(variable: nnx.Variable) -> tuple[str, ...]:
    """Return the logical axes that the parameter was declared with, with "layers" in front if it is stacked."""
    return variable.get_metadata()["out_sharding"]


def check_fit(mesh: Mesh, model: ModelConfig, batch_size: int, accumulate: int, sequence_length: int | None = None) -> None:
    """Raise UserError if a size of the model or of the batch cannot be split evenly over the mesh.

    sequence_length: None: no sequences are split, and the mesh must not do so.
    """
    shape, moe = dict(mesh.shape), model.moe
    has_moe = any(kind.moe for kind in model.layer_kinds)
    split = [("embed_dim", "fsdp"), ("num_heads", "tensor"), ("num_kv_heads", "tensor"), ("vocab_size", "tensor")]
    if not all(kind.moe for kind in model.layer_kinds) or not moe.expert_dim:
        split.append(("mlp_dim", "tensor"))
    split += [("mla.kv_rank", "fsdp"), ("mla.query_rank", "fsdp")]
    if has_moe:
        split += [("moe.expert_dim", "tensor"), ("moe.shared_dim", "tensor"), ("moe.num_experts", "expert")]
    elif shape["expert"] > 1:
        raise UserError(f"mesh.expert={shape['expert']} must be 1: model.mlp_pattern has no moe layer to split")
    for key, axis in split:
        size, ways = functools.reduce(getattr, key.split("."), model), shape[axis]
        named = f"mesh.{axis}={ways}"
        if axis == "fsdp" and shape["context"] > 1:
            ways, named = ways * shape["context"], f"mesh.fsdp × mesh.context = {ways} × {shape['context']}"
        if size % ways:
            raise UserError(f"{named} does not divide model.{key}={size}")
    ways = shape["data"] * shape["fsdp"] * shape["expert"] * accumulate
    if accumulate < 1 or batch_size < 1 or batch_size % ways:
        most = max(1, batch_size // max(1, ways)) * max(1, ways)
        raise UserError(
            f"batch_size={batch_size} is not a positive multiple of mesh.data × mesh.fsdp × mesh.expert × accumulate = "
            f"{shape['data']} × {shape['fsdp']} × {shape['expert']} × {accumulate}: set --config.batch_size={most}"
        )
    parts = 2 * shape["context"]
    if parts > 2 and sequence_length is None:
        raise UserError(f"mesh.context={shape['context']} splits sequences, which only training does: set mesh.context=1")
    if parts > 2 and sequence_length % parts:
        raise UserError(
            f"sequence_length={sequence_length} is no multiple of 2 × mesh.context = {parts}: "
            f"set --config.sequence_length={max(1, sequence_length // parts) * parts}"
        )
