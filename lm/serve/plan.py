"""`serve.py --plan=TOPOLOGY`: compile the engine's steps for TPUs that are not attached; say if they fit, and how fast."""

import dataclasses
import functools
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from flax import nnx

from lm.cli import config_files
from lm.config import ModelConfig
from lm.convert.source import open_source
from lm.errors import UserError
from lm.infer.engine.open import check_options, quantised_dtype
from lm.infer.engine.room import ACCELERATOR, Capacity, fitting_pages, positions_of
from lm.infer.engine.step import Shapes, fitting, lay_out, lowered, shapes_of
from lm.infer.engine.weights import Weights, weights_of
from lm.model import sizing
from lm.model.pages import empty_layers, reads_few_pages
from lm.model.transformer import skeleton
from lm.parallel.mesh import check_fit, make_mesh, row_ways, shapes_on, ways
from lm.serve.settings import capacity_of, default_checkpoint, mesh_of
from lm.train import dial
from lm.train.chips import Chip, chip_of
from lm.train.describe import bytes_per_device
from lm.train.plan import command
from lm.train.plan.compiled import DoesNotFit, compiled_with_text, devices_of, memory_of
from lm.train.plan.estimate import KERNEL_SHARE, estimate
from lm.train.plan.network import Network
from lm.train.plan.program import Program
from lm.train.step import model_config_of

EXPLAINED = (
    "An estimate, not a measurement: the cycles that XLA's TPU compiler expects for each fused operation, over the clock, and "
    f"kernels of attention at {KERNEL_SHARE:.0%} of the peak; or if that is more, the time in which memory gives all weights "
    "and a full cache; and collectives that no work hides. Drawing tokens, the host and HTTP are left out."
)


class Steps(NamedTuple):
    """What the engine has on a mesh, as shapes. tables_RN: of pages, numpy."""

    weights: Weights
    pages: tuple[jax.ShapeDtypeStruct, ...]
    shapes: Shapes
    tables_RN: np.ndarray


def plan(config: ml_collections.ConfigDict, topology: str) -> dict[str, Any]:
    """Compile the steps of a server's config for a topology. Return sizes in bytes per device, and seconds.

    Raises: UserError for a topology that does not exist, a model that cannot be read, or one that does not fit the mesh.
    """
    model, devices = model_of(config), devices_of(topology)
    chip, mesh = chip_of(devices[0]), mesh_of(config, devices) or make_mesh({}, devices[:1])
    check_fit(mesh, model, row_ways(mesh), 1)
    if model.recurrent_kinds:
        raise UserError(
            f"--plan: the model has {model.recurrent_kinds[0]} layers (model.attention_pattern), which are not planned"
        )
    with jax.set_mesh(mesh):
        steps = abstract_steps(model, capacity_of(config), chip)
        memory = {"parameters": bytes_per_device(steps.weights.split()[1]), "pages": bytes_per_device(steps.pages)}
        rows = len(steps.tables_RN) // row_ways()
        sizes = {"decode": fitting(rows, steps.shapes.sizes), "prefill": steps.shapes.sizes[-1]}
        planned = {name: _planned(steps, size, chip, mesh, memory) for name, size in sizes.items()}
    peak = max(step["peak"] for step in planned.values())
    return {
        "topology": topology,
        "devices": mesh.size,
        "device_kind": devices[0].device_kind,
        "mesh": {axis: size for axis, size in mesh.shape.items() if size > 1},
        "parameters": sum(sizing.parameters(model)["total"].values()),
        "rows": len(steps.tables_RN),
        "cache_tokens": steps.pages[0].shape[-4] * steps.shapes.page,
        "fits": peak <= chip.memory,
        "memory": {**memory, "temporaries": max(0, peak - sum(memory.values())), "peak": peak, "limit": chip.memory},
        "steps": planned,
        "explained": EXPLAINED,
    }


def model_of(config: ml_collections.ConfigDict) -> ModelConfig:
    """Return the config of the checkpoint's model; a training config in its place (FILE.py) gives one without weights."""
    check_options(config.dtype, config.quantize, config.cache_dtype, is_cpu=False)
    checkpoint = config.checkpoint or default_checkpoint()
    if not checkpoint.endswith(".py"):
        model = open_source(checkpoint).config
        return dataclasses.replace(model, dtype=config.dtype or quantised_dtype(checkpoint) or model.dtype)
    training = config_files.load(config_files.find(checkpoint, "train"))
    dial.shape(training, set())
    training.dtype = config.dtype or ("bfloat16" if training.dtype == "auto" else training.dtype)
    return model_config_of(training)


def abstract_steps(model: ModelConfig, capacity: Capacity, chip: Chip) -> Steps:
    """Return what an engine has on the current mesh, as lm.infer.engine.engine.Engine makes it."""
    capacity, W, laid_out = capacity.here(), row_ways(), list[Weights]()
    graph, abstract = skeleton(model)

    def arrays_of(params: nnx.State) -> Any:
        laid_out.append(weights_of(nnx.merge(graph, params)))
        return laid_out[0].params, laid_out[0].layers

    params, layers = jax.eval_shape(arrays_of, shapes_on(abstract, jax.sharding.get_mesh()))
    weights = laid_out[0]._replace(params=params, layers=layers)
    free = (chip.memory - bytes_per_device((params, layers))) * W * (1 if model.mla.kv_rank else ways("kv_heads"))
    count = -(-(capacity.pages or fitting_pages(model, capacity, ACCELERATOR * free)) // W)
    empty = functools.partial(empty_layers, weights.config, W * count, capacity.page, capacity.cache_dtype)
    rows, budget = (-(-n // W) for n in (capacity.rows, capacity.budget))
    shapes = shapes_of(rows, budget, capacity.page, reads_few_pages(model, capacity.cache_dtype))
    columns = -(-min(positions_of(model, capacity), count * capacity.page) // capacity.page)
    return Steps(weights, tuple(jax.tree.leaves(jax.eval_shape(empty))), shapes, np.zeros((W * rows, columns), np.int32))


def _planned(steps: Steps, size: int, chip: Chip, mesh: jax.sharding.Mesh, memory: dict[str, int]) -> dict[str, Any]:
    """Return the plan of the step in which each shard has `size` tokens."""
    begin, W = time.perf_counter(), steps.shapes.shards
    laid = lay_out([], steps.shapes._replace(sizes=(size,)), steps.tables_RN)
    at_S = np.zeros(W * steps.shapes.logits(size)[0], np.int32)
    program, arrays = steps.weights.split()
    dump = steps.weights.config.moe.num_experts > 0
    result: dict[str, Any] = {"tokens": W * size}
    try:
        compiled, text = compiled_with_text(lowered(program, arrays, steps.pages, laid.tokens_B, laid.table, at_S), dump=dump)
    except DoesNotFit as error:
        return result | {"peak": error.needed}
    timed = estimate(Program(text), Network(mesh, chip), chip)
    reading = sum(memory.values()) / chip.hbm
    seconds = max(timed.compute + timed.kernels, reading) + timed.exposed
    parts = {"compute": timed.compute, "kernels": timed.kernels, "reading": reading, "exposed_collectives": timed.exposed}
    return result | {
        "peak": memory_of(compiled)[1],
        "cycles": timed.cycles,
        "kernels": text.count('custom_call_target="tpu_custom_call"'),
        "kernel_flops": timed.kernel_flops,
        "seconds": {"step": seconds, **parts},
        "tokens_per_second": W * size / seconds,
        "compile_seconds": time.perf_counter() - begin,
    }


def table(plan: dict[str, Any]) -> str:
    """Return a plan as lines for a terminal."""
    cache = f"{plan['rows']:,} at a time, which share a cache of {plan['cache_tokens']:,} tokens"
    rows = [*command.where(plan), ("model", f"{plan['parameters'] / 1e9:,.2f} B parameters"), ("requests", cache)]
    rows += command.memory_rows(plan)
    for name, step in plan["steps"].items():
        if "seconds" in step:
            seconds = {part.replace("_", " "): f"{1e3 * s:.2f}" for part, s in step["seconds"].items()}
            took = f"{seconds.pop('step')} ms for {step['tokens']:,} tokens, {step['tokens_per_second']:,.0f} a second"
            parts = ", ".join(map(" ".join, seconds.items()))
            rows += [(name, took), ("", f"{parts} ms; {step['kernels']} Pallas kernels")]
    return command.as_lines(rows, plan["explained"])


def run(config: ml_collections.ConfigDict, topology: str, workdir: Path | None) -> None:
    """Plan a config, print a table and write plan.json. Raises: UserError as `plan` does."""
    result = plan(config, topology)
    command.show(result, table(result), workdir)
