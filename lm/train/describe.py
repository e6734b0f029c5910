"""Estimate what a training run needs: `train.py --describe`.

Parameters and model FLOPs come from the model's skeleton (lm/model/sizing.py). Hardware FLOPs and activation memory come from
the traced program: the step that train.py runs, traced for the mesh of the config. The devices need not exist.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx
from jax.core import ShapedArray
from jax.extend import core
from jax.interpreters import partial_eval
from jax.sharding import AbstractMesh, AxisType, Mesh

from data.text.batches import parse_sizes
from lm.config import Audio, Vision
from lm.errors import UserError
from lm.kernels.dense.flops import flops
from lm.kernels.experts import places
from lm.model import sizing
from lm.model.linear import trainable
from lm.model.media import MEDIA
from lm.model.transformer import skeleton
from lm.parallel.arrays import PyTree, array_of
from lm.parallel.memory import is_on_host
from lm.parallel.mesh import AXES, axis_sizes, check_fit, sharding_on, ways
from lm.parallel.pipeline import schedule
from lm.train.optimizers.turns import choose_turns
from lm.train.start import choose_slices
from lm.train.step import Batch, Sums, abstract_state, make_trainer, model_config_of, training_loss

CHINCHILLA = 20  # tokens per parameter (Hoffmann et al. 2022, table 3)


def choose_elsewhere(config: ml_collections.ConfigDict) -> None:
    """If the mesh has more devices than this machine, set a dtype and slices that it would choose as accelerators do."""
    if abstract_mesh(config.mesh).size > jax.device_count():
        config.dtype = "bfloat16" if config.dtype == "auto" else config.dtype
        config.accumulate = config.accumulate or 1


def describe(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Return the estimate as plain numbers: FLOPs, bytes, counts. "memory" holds bytes per device."""
    model = model_config_of(config)
    mesh = abstract_mesh(config.mesh)
    choose_slices(config, mesh)
    choose_turns(config)
    check_fit(mesh, model, config.batch_size, config.accumulate, config.sequence_length)
    counts, costs = sizing.parameters(model), sizing.flops(model, config.sequence_length)
    total, active = sum(counts["total"].values()), sum(counts["active"].values())
    forward, backward = (sum(getattr(cost, way) for cost in costs.values()) for way in ("forward", "backward"))
    tokens = config.batch_size * config.sequence_length
    with jax.sharding.use_abstract_mesh(mesh):
        multiplied, (memory, host) = step_flops(config, mesh), memories(config, mesh)
    steps = config.steps if config.epochs is None else 0  # these follow from the data
    read = parse_sizes(config.batch_warmup, config.batch_size).start(steps) * config.sequence_length
    main = {kind: sum(n for part, n in counts[kind].items() if part != "mtp") for kind in ("total", "active")}
    return {
        "parameters": {
            "total": total,
            "active": active,
            "trained": sum(counts["trained"].values()),
            "without_mtp": main["total"],
            "active_without_mtp": main["active"],
            "parts": {part: {kind: counts[kind][part] for kind in counts} for part in sizing.PARTS if counts["total"][part]},
        },
        "flops_per_token": {
            "forward": forward,
            "backward": backward,
            "total": forward + backward,
            "parts": {part: cost._asdict() for part, cost in costs.items() if cost.forward},
        },
        "step": {
            "tokens": tokens,
            "model_flops": tokens * (forward + backward),
            "hardware_flops": multiplied,
            "remat": model.remat,
            "accumulate": config.accumulate,
        },
        "pipeline": pipeline(config, mesh),
        "memory": {"mesh": dict(mesh.shape), "devices": mesh.size, **memory, "host": host},
        "cache_per_token": {
            name: sizing.cache_bytes_per_token(model, dtype) for name, dtype in ((model.dtype, ""), ("int8", "int8"))
        },
        "run": {
            "epochs": config.epochs,
            "steps": steps,
            "tokens": read,
            "tokens_per_active_parameter": read / main["active"],
            "model_flops": read * (forward + backward),
            "chinchilla_tokens": CHINCHILLA * main["active"],
        },
    }


def pipeline(config: ml_collections.ConfigDict, mesh: Mesh | AbstractMesh) -> dict[str, Any] | None:
    """Return the schedule of the stages for one slice of the batch, with the fraction of time that they are idle."""
    if mesh.shape["stage"] == 1:
        return None
    plan = schedule(model_config_of(config).pipeline, config.batch_size // max(1, config.accumulate), mesh)
    return plan._asdict() | {"ticks": plan.ticks, "bubble": plan.bubble, "shown": str(plan)}


def abstract_mesh(sizes: Mapping[str, int | None]) -> AbstractMesh:
    """Return the mesh of a config without its devices; like in train.py, a size of −1 uses the devices of this machine."""
    by_axis = axis_sizes(sizes)
    fixed = math.prod(size for size in by_axis.values() if size > 0)
    if min(by_axis.values()) < -1 or 0 in by_axis.values() or list(by_axis.values()).count(-1) > 1:
        raise UserError(f"mesh={by_axis}: sizes must be positive, and at most one may be -1")
    by_axis = {axis: max(1, jax.device_count() // fixed) if size == -1 else size for axis, size in by_axis.items()}
    return AbstractMesh(tuple(by_axis.values()), AXES, axis_types=(AxisType.Explicit,) * len(AXES))


def abstract_batch(
    config: ml_collections.ConfigDict, mesh: Mesh | AbstractMesh, rows: int, media: Mapping[str, int] | None = None
) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the arrays of a batch of `rows`, without data. media: how many images and windows of sound a row has, by MEDIA."""
    sharding = sharding_on(mesh, "batch", "length")
    dtypes = dict.fromkeys(("tokens", "targets", "segment_ids", "positions"), jnp.int32) | {"weights": jnp.float32}
    shape = (rows, config.sequence_length)
    batch = {name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for name, dtype in dtypes.items()}
    model = model_config_of(config)
    towers: tuple[Vision | Audio, ...] = (model.vision, model.audio)
    for name, tower in zip(MEDIA, towers):
        if count := (media or {}).get(name):
            by_rows = sharding_on(mesh, "batch")
            batch[name] = jax.ShapeDtypeStruct((rows, count, *tower.shape), jnp.float32, sharding=by_rows)
    return batch


def step_flops(config: ml_collections.ConfigDict, mesh: Mesh | AbstractMesh) -> int:
    """Return the FLOPs of all matrix products of a training step, summed over devices. Recomputed products count again.

    Experts count N·K rows, spread evenly, without padding and partly filled blocks. With a capacity the number of rows is
    fixed, and all of them count.
    """
    trainer = make_trainer(config)
    traced = jax.make_jaxpr(trainer.step)(abstract_state(trainer, mesh), abstract_batch(config, mesh, config.batch_size)).jaxpr
    # Remove gradients of frozen weights, and products that only they need, as the compiler does.
    needed, _ = partial_eval.dce_jaxpr(traced, [True] * len(traced.outvars))
    moe, devices = model_config_of(config).moe, mesh.shape["expert"]
    filled = 1.0
    if moe.num_experts and devices > 1:  # places of the first round, by lm/kernels/experts.py
        tokens = config.batch_size // max(1, config.accumulate) * config.sequence_length // ways("rows")
        filled = tokens * moe.top_k / (devices * places(tokens, moe.top_k, moe.num_experts // devices, devices))
    return round(product_flops(needed, filled))


def product_flops(program: core.Jaxpr, filled: float = 1) -> float:
    """Return the FLOPs of a traced program's matrix products: 2·(output size)·(contracted size), times the trips of their loop.

    Functions that are compiled for a CPU (lm/kernels/dense) count like the products that they compute.

    filled: the fraction of a ragged product's rows that belong to a group. A loop of unknown length counts as none: the further
    rounds of experts, which an even routing does not need.
    """
    total = 0.0
    for equation in program.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            lhs, ((contracted, _), _) = array_of(equation.invars[0]), params["dimension_numbers"]
            total += 2 * array_of(equation.outvars[0]).size * math.prod(lhs.shape[axis] for axis in contracted)
        elif name.startswith("ragged_dot"):
            total += filled * _ragged_flops(equation)
        elif name == "ffi_call":
            shapes, results = ([array_of(variable).shape for variable in some] for some in (equation.invars, equation.outvars))
            total += flops(params["target_name"], shapes, results, int(dict(params["attributes"]).get("window", 0)))
        elif name != "while":
            turns = params["length"] if name == "scan" else 1
            if name == "shard_map":
                turns = math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
            inner = [product_flops(sub, filled) for sub in _programs(params)]
            total += turns * (max(inner, default=0) if name == "cond" else sum(inner))
    return total


def _ragged_flops(equation: core.JaxprEqn) -> int:
    """Return the FLOPs of a ragged product. Each row is multiplied by one matrix, as in a product of [m, k] and [k, n]."""
    lhs, out = array_of(equation.invars[0]), array_of(equation.outvars[0])
    numbers = equation.params["ragged_dot_dimension_numbers"]
    (contracted, _), _ = numbers.dot_dimension_numbers
    # In the gradient of the matrices the rows are contracted: out is [groups, k, n], and each row is in one group.
    groups = out.shape[0] if set(numbers.lhs_ragged_dimensions) <= set(contracted) else 1
    return 2 * out.size // groups * math.prod(lhs.shape[axis] for axis in contracted)


def _programs(params: Mapping[str, Any]) -> Iterator[core.Jaxpr]:
    """Yield the sub-programs in the parameters of an equation."""
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(item, "eqns"):
                yield item
            elif hasattr(item, "jaxpr") and hasattr(item.jaxpr, "eqns"):
                yield item.jaxpr


def memories(
    config: ml_collections.ConfigDict, mesh: Mesh | AbstractMesh, media: Mapping[str, int] | None = None
) -> tuple[dict[str, int], dict[str, int]]:
    """Return bytes per device by kind, in its own memory and in that of its host (config.optimizer.offload, model.offload).

    An array of n bytes whose axes are split over m devices takes n / m. Activations: the residuals of the traced loss for one
    slice of the batch under the remat policy, without parameters and batch. Gradients count twice if slices are accumulated.
    Optimizer: moments, and the average of config.ema. Not counted: a layer's temporary arrays and gathered weights.
    media: as in `abstract_batch`. With it, activations hold those of the encoders, and "media" is the size of its arrays.
    """
    state = abstract_state(make_trainer(config), mesh)
    learned, frozen = nnx.split_state(state.params, trainable(model_config_of(config)), ...)
    batch = abstract_batch(config, mesh, config.batch_size // max(1, config.accumulate), media)
    kept = residuals(config, learned, frozen, batch)
    device = {
        "parameters": bytes_per_device(state.params),
        "gradients": bytes_per_device(learned) * (2 if config.accumulate > 1 else 1),
        "optimizer": bytes_per_device((state.optimizer, state.average)),
        "activations": bytes_per_device(kept),
    }
    if media:
        whole = abstract_batch(config, mesh, config.batch_size, media)
        device["media"] = bytes_per_device([whole[name] for name in MEDIA if name in whole])
    return device, {"optimizer": bytes_per_device(state.optimizer, host=True), "activations": bytes_per_device(kept, host=True)}


def residuals(
    config: ml_collections.ConfigDict, learned: nnx.State, frozen: nnx.State, batch: dict[str, jax.ShapeDtypeStruct]
) -> list[ShapedArray]:
    """Return the abstract arrays that the training loss keeps for its backward pass, without its own arguments."""
    graph, _ = skeleton(model_config_of(config))
    o = config.optimizer

    def kept(learned: nnx.State, frozen: nnx.State, batch: Batch) -> list[jax.Array]:
        def loss(learned: nnx.State) -> tuple[jax.Array, Sums]:
            model = nnx.merge(graph, nnx.merge_state(learned, frozen))
            return training_loss(model, batch, z_loss=o.z_loss, mtp_loss=o.mtp_loss)

        return jax.tree.leaves(jax.vjp(loss, learned, has_aux=True)[1])

    traced = jax.make_jaxpr(kept)(learned, frozen, batch).jaxpr
    arguments = set(map(id, traced.invars))
    return list({id(x): array_of(x) for x in traced.outvars if id(x) not in arguments}.values())


def bytes_per_device(tree: PyTree, host: bool = False) -> int:
    """Return the bytes that a tree of abstract arrays takes in the memory of one device, or of its host for it."""
    total = 0
    for x in (x for x in jax.tree.leaves(tree) if is_on_host(x) == host):
        bits = jnp.iinfo(x.dtype).bits if jnp.issubdtype(x.dtype, jnp.integer) else 8 * x.dtype.itemsize
        total += math.prod(x.sharding.shard_shape(x.shape)) * bits // 8
    return total


def table(d: dict[str, Any]) -> str:
    """Return the result of `describe` as text."""
    parameters, flops, step, memory, run = (d[name] for name in ("parameters", "flops_per_token", "step", "memory", "run"))
    lines = [f"{'':22}{'parameters':>19}{'active a token':>19}{'FLOPs forward':>17}{'backward, a token':>19}"]
    for part in (*sizing.PARTS, "attention_products"):
        if row := parameters["parts"].get(part, {}) | flops["parts"].get(part, {}):
            lines.append(_row(part, row))
    lines.append(_row("all", flops | parameters))
    if parameters["total"] != parameters["without_mtp"]:
        lines.append(_row("without mtp", {"total": parameters["without_mtp"], "active": parameters["active_without_mtp"]}))
    if parameters["trained"] != parameters["total"]:
        lines.append(_row("trained", {"total": parameters["trained"]}))
    share = sum(flops["parts"]["attention_products"].values()) / flops["total"]
    extra = step["hardware_flops"] / step["model_flops"] - 1
    computed = f"{_short(step['hardware_flops'], 'FLOP')} ({100 * extra:+.1f} %, remat={step['remat']})"
    if run["epochs"] is not None:
        length = f"{run['epochs']:g} epochs of the data"
    else:
        tokens = f"{_short(run['tokens'])} tokens, {_short(run['tokens_per_active_parameter'])} an active parameter"
        length = f"{run['steps']:,} steps: {tokens}; {_short(run['model_flops'], 'FLOP')}"
    mesh = ", ".join(f"mesh.{axis}={size}" for axis, size in memory["mesh"].items() if size > 1) or "one device"
    device = {kind: memory[kind] for kind in ("parameters", "gradients", "optimizer", "activations")}
    facts = {
        "FLOPs a token": f"{_short(flops['total'])}, of which attention's q·k and p·v {100 * share:.1f} %",
        "a step": f"{step['tokens']:,} tokens: {_short(step['model_flops'], 'FLOP')}; as it is computed {computed}",
        "the run": length,
        "Chinchilla-optimal": f"{_short(run['chinchilla_tokens'])} tokens, {CHINCHILLA} an active parameter",
        "memory a device": f"{_memory(sum(device.values()))}: {_memories(device)} ({mesh})",
    }
    if any(memory["host"].values()):
        facts["host memory a device"] = _memories(memory["host"])
    if d["pipeline"] is not None:
        facts["pipeline"] = d["pipeline"]["shown"]
    facts["cache a token"] = "; ".join(f"{name} {_cache(kinds)}" for name, kinds in d["cache_per_token"].items())
    return "\n".join([*lines, "", *(f"{name:<20} {fact}" for name, fact in facts.items())])


def _row(name: str, row: dict[str, Any]) -> str:
    counts = "".join(f"{row[key]:>19,}" if row.get(key) else f"{'':19}" for key in ("total", "active"))
    costs = "".join(f"{_short(row[key]):>18}" if row.get(key) else "" for key in ("forward", "backward"))
    return f"{name.replace('_', ' '):22}{counts}{costs}"


def _short(number: float, unit: str = "") -> str:
    """Format a number with an SI prefix: 1,234,567 is 1.235 M."""
    power = 0
    while abs(number) >= 999.95 and power < 8:
        number, power = number / 1000, power + 1
    prefix = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")[power]
    return f"{number:.4g} {prefix}{unit}".rstrip()


def _memories(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{kind} {_memory(size)}" for kind, size in sizes.items())


def _memory(size: int) -> str:
    return f"{size / 2**30:,.2f} GiB" if size > 2**27 else f"{size / 2**20:,.2f} MiB"


def _cache(kinds: dict[str, int]) -> str:
    text = f"{sum(kinds.values()):,} bytes"
    return text + f", {kinds['local']:,} of them in local layers" if kinds["local"] else text
