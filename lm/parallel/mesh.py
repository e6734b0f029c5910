"""The device mesh and the one table that maps logical array axes to mesh axes."""

import functools
import math
from collections import Counter
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from lm.config import ModelConfig
from lm.errors import UserError
from lm.parallel import torus
from lm.parallel.arrays import PyTree

AXES = ("stage", "data", "fsdp", "expert", "context", "tensor")
# Axes that may cross the slow network between slices. Along `data` only gradients are sent, along `stage` hidden states.
BETWEEN_SLICES = ("data", "stage")
NO_MESH = Mesh(np.empty((), object), ())

# Logical axis -> mesh axes. Weights are split over fsdp and context (gathered before use), tensor and expert (used split).
# Activations are split by batch over data, fsdp and expert, and by head or hidden unit over tensor; between blocks by length
# over tensor instead (lm/parallel/context.py). The devices of an expert axis hold different experts and different rows, and
# send tokens to one another. A context axis splits sequences (lm/parallel/context.py). Stages hold different layers; outside of
# the layers they are one more axis of the batch (lm/parallel/pipeline.py).
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("stage", "data", "fsdp", "expert"),
    "length": ("context",),
    "sequence": ("context", "tensor"),  # the length between blocks
    "rows": ("stage", "data", "fsdp", "expert", "context"),  # rows of which each device has its own part of the tokens
    "layers": ("stage",),  # unless the stages do not divide the stack; then all hold it whole
    "embed": ("fsdp", "context"),
    "norm": (),
    "replicated": (),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head": (),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    "expert": ("expert",),
}


def make_mesh(sizes: Mapping[str, int | None], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Build a mesh with explicit axes from sizes by axis name; one size may be -1 and takes the remaining devices.

    sizes["slices"]: equal groups of devices with a fast network inside, such as TPU slices. Only the axes of BETWEEN_SLICES
    cross the slow network between them. None: the groups that TPUs and GPUs report, 1 elsewhere.
    Raises UserError if the product of the sizes is not the number of devices, if an axis is unknown, or if the axes within a
    slice do not fill it.
    """
    devices = jax.devices() if devices is None else devices
    asked = sizes.get("slices")
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
    slices = _slices(devices, asked)
    outer = _between(sizes, len(slices), devices, shown)
    inner = [size // n for size, n in zip(sizes.values(), outer)]
    try:
        parts = [torus.lay_out(inner, one) for one in slices]
    except (AssertionError, NotImplementedError, ValueError) as error:  # not every shape fits a torus
        raise UserError(f"{shown}: these devices cannot be laid out like this ({str(error).splitlines()[0]})") from None
    laid_out = np.empty((*outer, *inner), object)
    for place, part in zip(np.ndindex(*outer), parts, strict=True):
        laid_out[place] = part
    # Axes (a, b, …, A, B, …) become (a, A, b, B, …): along each axis, devices of a slice are neighbours.
    axes = len(AXES)
    laid_out = laid_out.transpose([i + axes * j for i in range(axes) for j in (0, 1)]).reshape(tuple(sizes.values()))
    mesh = Mesh(laid_out, AXES, axis_types=(AxisType.Explicit,) * axes)
    torus.remember(mesh)
    return mesh


def _slices(devices: Sequence[jax.Device], asked: int | None) -> list[list[jax.Device]]:
    """Return the devices by slice: by what they report if `asked` is None, else in `asked` equal parts of neighbours."""
    found = Counter(getattr(device, "slice_index", 0) for device in devices)
    count = len(found) if asked is None else asked
    if count > 1 and len(set(found.values())) > 1:
        raise UserError(f"this job has slices of {list(found.values())} devices: all must have the same number")
    if count < 1 or len(devices) % count:
        raise UserError(f"mesh.slices={count} must divide the {len(devices)} devices of this job")
    if count != len(found) and (devices[0].platform == "tpu" or (len(found) > 1 and len(found) % count)):
        raise UserError(f"mesh.slices={count}: this job has slices of {list(found.values())} devices; leave mesh.slices out")
    ordered = sorted(devices, key=lambda device: (getattr(device, "slice_index", 0), device.process_index, device.id))
    size = len(devices) // count
    return [ordered[begin : begin + size] for begin in range(0, len(devices), size)]


def _between(sizes: Mapping[str, int], slices: int, devices: Sequence[jax.Device], shown: str) -> list[int]:
    """Return how many parts of each axis lie in different slices; their product is `slices`."""
    left, parts = slices, dict.fromkeys(sizes, 1)
    for axis in BETWEEN_SLICES:
        parts[axis] = math.gcd(sizes[axis], left)
        left //= parts[axis]
    if left > 1:
        named = " × ".join(f"mesh.{axis}" for axis in BETWEEN_SLICES)
        cure = "" if devices[0].platform == "tpu" else ", or --config.mesh.slices=1 to let every axis cross it"
        raise UserError(
            f"{shown}: only {named} may cross the network between the {slices} slices of {len(devices) // slices} devices, so "
            f"it must be a multiple of {slices}: set --config.mesh.data={slices}, and other axes that fill a slice{cure}"
        )
    return list(parts.values())


def axis_sizes(sizes: Mapping[str, int | None]) -> dict[str, int]:
    """Return the size of every axis of AXES, 1 where `sizes` leaves it out. Raises UserError for an unknown axis."""
    set_sizes = {axis: int(size) for axis, size in sizes.items() if size is not None}
    for axis, size in set_sizes.items():
        if axis not in (*AXES, "slices") and size != 1:  # an unknown axis of size 1 is harmless
            raise UserError(f"mesh.{axis}={size}: no such axis; axes are {', '.join(AXES)}")
    return {axis: set_sizes.get(axis, 1) for axis in AXES}


def platform() -> str:
    """Return "cpu", "gpu" or "tpu": what the devices of the current mesh are, which need not be attached; else the default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def spec(*logical: str | None, mesh: Mesh | AbstractMesh | None = None) -> PartitionSpec | None:
    """Return the partition of an array with these logical axes, or None if no mesh is set. mesh: default the one that is set.

    Within a shard_map over some axes of the mesh it names the other ones only. A context axis of one device is left out, so
    that only meshes that split sequences treat them as split.
    """
    mesh = jax.sharding.get_abstract_mesh() if mesh is None else mesh
    if mesh.empty:
        return None
    left_out, partition = getattr(mesh, "manual_axes", ()) + (() if mesh.shape.get("context", 1) > 1 else ("context",)), []
    for name in logical:
        axes = tuple([axis for axis in RULES[name] if axis not in left_out]) if name else ()
        partition.append(axes if len(axes) > 1 or name in ("batch", "rows") else axes[0] if axes else None)
    return PartitionSpec(*partition)


def spec_of(x: jax.Array) -> PartitionSpec | None:
    """Return the partition of an array, or None if no mesh is set."""
    return None if jax.sharding.get_abstract_mesh().empty else jax.typeof(x).sharding.spec


def sharding_on(mesh: Mesh | AbstractMesh, *logical: str | None) -> NamedSharding:
    """Return the sharding over a mesh of an array with these logical axes."""
    return NamedSharding(mesh, spec(*logical, mesh=mesh) or PartitionSpec())


def token_axes() -> tuple[str, ...]:
    """Return the axes of the current mesh that split tokens, without those of an outer shard_map."""
    where = spec("rows")
    return several(where[0]) if where else ()


def embed_axes() -> str | tuple[str, ...] | None:
    """Return the axes of the current mesh that split the model dimension of weights."""
    where = spec("embed")
    return where[0] if where else None


def ways(logical: str | None) -> int:
    """Return how many parts the current mesh splits a logical axis into, such as "rows" or "embed"; 1 without a mesh."""
    mesh, where = jax.sharding.get_abstract_mesh(), spec(logical)
    return math.prod([mesh.shape[axis] for axis in several(where[0])]) if where else 1


def several(axes: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the axes of an entry of a partition as a tuple."""
    return (axes,) if isinstance(axes, str) else axes or ()


def free_axes() -> frozenset[str]:
    """Return the axes of the current mesh that no outer shard_map is over."""
    mesh = jax.sharding.get_abstract_mesh()
    return frozenset(mesh.axis_names) - frozenset(mesh.manual_axes)


def row_ways(mesh: Mesh | AbstractMesh | None = None) -> int:
    """Return how many parts the mesh splits rows into, 1 without a mesh. mesh: default the one that is set."""
    mesh = jax.sharding.get_abstract_mesh() if mesh is None else mesh
    return 1 if mesh.empty else math.prod([mesh.shape[axis] for axis in RULES["batch"]])


def reshard(x: jax.Array, *logical: str | None) -> jax.Array:
    """Reshard x to the partition of these logical axes; without a mesh return x."""
    target = spec(*logical)
    return x if target is None else jax.sharding.reshard(x, target)


def place_rows(*arrays: np.ndarray, mesh: Mesh | None = None) -> tuple[np.ndarray | jax.Array, ...]:
    """Put arrays [B, …] that this process holds whole onto a mesh, split by rows. mesh: default the one that is set.

    Without any mesh the arrays come back as they are.
    """
    if mesh is None and jax.sharding.get_abstract_mesh().empty:
        return arrays
    where = sharding_on(mesh or jax.sharding.get_mesh(), "batch")

    def placed(x: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(x.shape, where, lambda index: np.ascontiguousarray(x[index]))

    return tuple(map(placed, arrays))


def moved(tree: PyTree, mesh: Mesh, *, copy: bool = False) -> PyTree:
    """Return a tree of nnx variables on a mesh, which may have other devices of the same processes, sharded by its axes.

    copy: also arrays that are there already. Devices send only to others of their process, so in a job of several processes
    each array is gathered first, and every process must call this.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings(tree, mesh), may_alias=False if copy else None)

    def one(x: jax.Array, where: NamedSharding) -> jax.Array:
        if x.sharding == where and not copy:
            return x
        assert isinstance(x.sharding, NamedSharding) and isinstance(x.sharding.mesh, Mesh)
        with jax.set_mesh(here := x.sharding.mesh):
            whole = jax.device_put(x, NamedSharding(here, PartitionSpec())).addressable_data(0)
        with jax.set_mesh(NO_MESH):
            return jax.make_array_from_callback(x.shape, where, lambda index: whole[index])

    return jax.tree.map(one, tree, shardings(tree, mesh))


def mesh_sizes(text: str) -> dict[str, int]:
    """Parse the flag --mesh, "fsdp=4,tensor=2", to {"fsdp": 4, "tensor": 2}. Raises: UserError."""
    sizes = {}
    for part in text.split(","):
        axis, _, size = part.partition("=")
        if axis not in AXES or not size.removeprefix("-").isdecimal():
            raise UserError(f"--mesh={text}: {part!r} is no axis=size; axes are {', '.join(AXES)}")
        sizes[axis] = int(size)
    return sizes


def shardings(tree: PyTree, mesh: Mesh | AbstractMesh) -> PyTree:
    """Return a tree of NamedShardings for a tree of nnx variables (parameters or moments, abstract or not) and plain arrays.

    A variable is sharded by its logical axes; a plain array is replicated. A stack of layers that the stages do not divide is
    whole on all of them.
    """

    def sharding(leaf: nnx.Variable | jax.Array) -> NamedSharding:
        axes = logical_axes(leaf) if isinstance(leaf, nnx.Variable) else ()

        def one(x: jax.Array) -> NamedSharding:
            is_whole = "layers" in axes and not over_stages(x.shape[0], mesh)
            return sharding_on(mesh, *(None if is_whole and axis == "layers" else axis for axis in axes))

        return jax.tree.map(one, leaf)

    return jax.tree.map(sharding, tree, is_leaf=lambda x: isinstance(x, nnx.Variable))


def shapes_on(abstract: PyTree, where: Mesh | Sharding) -> PyTree:
    """Return the shapes of a tree of nnx variables with shardings, to load them: those of a mesh, or one for all."""
    tree = shardings(abstract, where) if isinstance(where, Mesh) else jax.tree.map(lambda _: where, abstract)
    return jax.tree.map(lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), abstract, tree)


def over_stages(layers: int, mesh: Mesh | AbstractMesh | None = None) -> bool:
    """Return whether a stack of this many layers is split over stages. mesh: default the one that is set."""
    mesh = jax.sharding.get_abstract_mesh() if mesh is None else mesh
    return not mesh.empty and mesh.shape["stage"] > 1 and layers % mesh.shape["stage"] == 0


def logical_axes(variable: nnx.Variable) -> tuple[str | None, ...]:
    """Return the logical axes that the parameter was declared with, with "layers" in front if it is stacked."""
    return variable.get_metadata()["out_sharding"]


def check_fit(
    mesh: Mesh | AbstractMesh, model: ModelConfig, batch_size: int, accumulate: int, sequence_length: int | None = None
) -> None:
    """Raise UserError if a size of the model or of the batch cannot be split evenly over the mesh.

    sequence_length: None: no sequences are split, and the mesh must not do so.
    """
    shape, moe = dict(mesh.shape), model.moe
    has_moe = any(kind.moe for kind in model.layer_kinds)
    split = [("embed_dim", "fsdp"), ("num_heads", "tensor"), ("num_kv_heads", "tensor"), ("vocab_size", "tensor")]
    if not all(kind.moe for kind in model.layer_kinds) or not moe.expert_dim:
        split.append(("mlp_dims" if model.mlp_dims else "mlp_dim", "tensor"))
    split += [("mla.kv_rank", "fsdp"), ("mla.query_rank", "fsdp"), ("layer_embed_dim", "fsdp"), ("layer_embed_vocab", "tensor")]
    if "conv" in model.recurrent_kinds:
        split.append(("embed_dim", "tensor"))
    if {"delta", "mamba"} & set(model.recurrent_kinds):
        split.append(("recurrent.num_key_heads", "tensor"))
    for tower in ("vision", "audio"):
        if getattr(model, tower).num_layers:
            split += [(f"{tower}.embed_dim", "fsdp"), (f"{tower}.num_heads", "tensor"), (f"{tower}.mlp_dim", "tensor")]
    if has_moe:
        split += [("moe.expert_dim", "tensor"), ("moe.shared_dim", "tensor"), ("moe.num_experts", "expert")]
    elif shape["expert"] > 1:
        raise UserError(f"mesh.expert={shape['expert']} must be 1: model.mlp_pattern has no moe layer to split")
    for key, axis in split:
        value, ways = functools.reduce(getattr, key.split("."), model), shape[axis]
        named = f"mesh.{axis}={ways}"
        if axis == "fsdp" and shape["context"] > 1:
            ways, named = ways * shape["context"], f"mesh.fsdp × mesh.context = {ways} × {shape['context']}"
        if any(size % ways for size in (value if isinstance(value, tuple) else (value,))):
            raise UserError(f"{named} does not divide model.{key}={value}")
    for axis in ("stage", "context"):
        if model.recurrent_kinds and shape[axis] > 1:
            named = f"mesh.{axis}={shape[axis]}"
            raise UserError(f"{named} must be 1: model.attention_pattern has {model.recurrent_kinds[0]} layers, with a state")
    if model.mla.index_topk and shape["context"] > 1:
        raise UserError(f"mesh.context={shape['context']} must be 1: model.mla.index_topk chooses among a whole row's keys")
    for key in ("shared_kv_layers", "layer_embed_dim"):
        if getattr(model, key) and shape["stage"] > 1:
            raise UserError(f"mesh.stage={shape['stage']} must be 1: model.{key} hands arrays to layers of other stages")
    if shape["stage"] > 1:
        _check_stages(shape["stage"], model)
    ways = row_ways(mesh) * accumulate
    if accumulate < 1 or batch_size < 1 or batch_size % ways:
        most = max(1, batch_size // max(1, ways)) * max(1, ways)
        # The stage axis is named only where there is one.
        axes = [axis for axis in RULES["batch"] if axis != "stage" or shape[axis] > 1]
        names, sizes = (
            " × ".join(map(str, all)) for all in ([f"mesh.{axis}" for axis in axes], [shape[axis] for axis in axes])
        )
        raise UserError(
            f"batch_size={batch_size} is not a positive multiple of {names} × accumulate = {sizes} × {accumulate}: "
            f"set --config.batch_size={most}"
        )
    parts = 2 * shape["context"]
    if parts > 2 and sequence_length is None:
        raise UserError(f"mesh.context={shape['context']} splits sequences, which only training does: set mesh.context=1")
    if parts > 2 and sequence_length % parts:
        raise UserError(
            f"sequence_length={sequence_length} is no multiple of 2 × mesh.context = {parts}: "
            f"set --config.sequence_length={max(1, sequence_length // parts) * parts}"
        )


def _check_stages(stages: int, model: ModelConfig) -> None:
    """Raise UserError if the largest stack of layers cannot be split over the stages. Smaller ones may stay whole."""
    block, repeats = max(model.stacks, key=lambda stack: len(stack[0]) * stack[1])
    rounds = model.pipeline.repeats
    if repeats % (stages * rounds):
        layers = f"{repeats} blocks of {len(block)} layers (model.attention_pattern, model.mlp_pattern)"
        what = f"the {repeats} like layers" if len(block) == 1 else f"the {layers}"
        times = f" × model.pipeline.repeats={rounds}" if rounds > 1 else ""
        raise UserError(f"mesh.stage={stages}{times} does not divide {what} of model.num_layers={model.num_layers}")
