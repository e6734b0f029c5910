"""Run one alignment method: read its data, train with lm.train.loop, and write a report."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from data.text.fingerprints import record_tokenizer
from data.text.hf_tokenizer import has_tokenizer
from lm.align import distill, length, preference, reward, settings, sft
from lm.align.data import RunData, Setup, Tasks, data_summary, from_examples, from_tasks, own_tokenizer
from lm.align.quiz import write_quiz
from lm.align.rl import objective as reinforce
from lm.align.rl.ahead import meshes
from lm.align.rl.stream import RolloutStream
from lm.align.rl.tools import open_surroundings
from lm.align.validation import HeldOut, Samples, Validation, first_validation
from lm.evals import in_loop
from lm.model import sizing
from lm.model.transformer import skeleton
from lm.parallel import hosts
from lm.parallel.mesh import check_fit, row_ways
from lm.runs.own_code import keep_own_code
from lm.runs.workdir import finished, record, save_record
from lm.train import events, loop
from lm.train.feed import Feed
from lm.train.fit import check_memory
from lm.train.optimizers.turns import choose_turns
from lm.train.rates import choose_rate
from lm.train.start import adopt, check_config, initial_params
from lm.train.step import model_config_of

# config.method: functions of (setup) that return its data, and of (config, tokenizer, mesh) that return its trainer and what
# its objective compares with.
METHODS = {
    "sft": (sft.data, sft.trainer),
    "preference": (preference.data, preference.trainer),
    "reward": (from_examples, reward.trainer),
    "rl": (from_tasks, reinforce.trainer),
    "distill": (distill.data, distill.trainer),
}


def run(config, workdir: Path, report: Callable[[Path, dict], None], tasks: Tasks | None = None) -> dict[str, Any]:
    """Train config.init_from with config.method, or resume the run in `workdir`, and write a report.

    report: writes the report, such as lm.reports.align.write_run. The first process calls it at the end with workdir and
    figures.
    tasks: (tasks, held-out tasks, counts) as prepare_tasks returns them, to use instead of the tasks of config.data.input.
    Returns: {"before", "after", "step"}: validation metrics by name before the first step and at the end, or None.
    Raises: UserError; Stopped and Diverged as lm.train.loop.train.
    """
    begin = time.perf_counter()
    new_senses = _settle(config, workdir)
    mesh, model_config = meshes(config)[0], model_config_of(config)
    slices = config.accumulate * (config.rl.minibatches if config.method == "rl" else 1)
    check_fit(mesh, model_config, config.batch_size or slices * row_ways(mesh), slices, config.sequence_length)
    if (chosen := choose_turns(config)) and hosts.is_first():
        print(chosen, flush=True)
    check_config(config, workdir)
    choose_rate(config)
    if done := hosts.from_first(lambda: finished(config, workdir)):
        return {"before": done.get("before"), "after": done.get("after"), "step": done["training"]["steps"]}
    _check_memory(config, mesh)
    evals = in_loop.open_evals(config)
    tokenizer = own_tokenizer(config, workdir)
    surroundings = open_surroundings(config.rollout)
    data = METHODS[config.method][0](Setup(config, workdir, tokenizer, mesh, surroundings, new_senses, tasks))
    if hosts.is_first():
        print(data_summary(data.counts, config), flush=True)
    data.choose_steps()
    data.check_memory()
    if hosts.is_first():
        _record(data)
    prepared = time.perf_counter()
    result = _train(data, evals)
    before = first_validation(workdir)
    if hosts.is_first():
        stages = {"data": prepared - begin, "training": result["seconds"]}
        stages["start and other"] = time.perf_counter() - begin - sum(stages.values())
        figures = {
            "method": settings.title(config),
            "config": config.to_dict(),
            "parameters": sum(sizing.parameters(model_config)["total"].values()),
            "data": data.counts,
            "stages": stages,
            "before": before,
            "after": result["valid"],
            "finished": result["step"] >= config.steps,
            "training": {name: result[name] for name in ("tokens", "skipped", "rewinds")} | {"steps": result["step"]},
        }
        report(workdir, figures)
    return {"before": before, "after": result["valid"], "step": result["step"]}


def _settle(config, workdir: Path) -> list[str]:
    """Check the config and set what follows from the model that is trained. Return the senses that it gets."""
    settings.check(config)
    length.adopt_length(config, hosts.from_first(lambda: record(workdir)[0]), row_ways(meshes(config)[0]))
    if config.method == "distill":
        distill.check_teacher(config.distill)
    new_senses = [name for name, section in sft.SENSES.items() if config.model[section].num_layers]
    adopt(config, workdir)
    config.model.score_head = settings.score_head(config)
    return new_senses


def _check_memory(config, mesh: Mesh) -> None:
    """Raise UserError before data are read if a step clearly exceeds a device's memory, whatever media its rows have."""
    if config.batch_size is None:  # it follows from the data
        return
    planned = config.copy_and_resolve_references()
    planned.steps, planned.optimizer.warmup = config.steps or 1, config.optimizer.warmup or 0  # they may follow from the data
    check_memory(planned, mesh, whole_rows=settings.example_kind(config) != "task")


def _record(data: RunData) -> None:
    """Write tokenizer, data and config to the workdir, if they are not there."""
    config, workdir, tokenizer, *_ = data.setup
    workdir.mkdir(parents=True, exist_ok=True)
    if not has_tokenizer(workdir):
        tokenizer.save(workdir)
    record_tokenizer(workdir, tokenizer.fingerprint)
    data.record()
    write_quiz(config, workdir, settings.example_kind(config))
    save_record(config, workdir)
    keep_own_code(config, workdir)


def _train(data: RunData, evals) -> dict[str, Any]:
    """Train on the data, and return the result of lm.train.loop.train."""
    config, workdir, tokenizer, mesh, *_ = data.setup
    with jax.set_mesh(mesh), contextlib.ExitStack() as stack:
        trainer, frozen = METHODS[config.method][1](config, tokenizer, mesh)
        graph = skeleton(model_config_of(config))[0]
        sampler = data.sampler(graph)
        if sampler is not None:
            stack.callback(sampler.close)
        if data.train is not None:
            stream = Feed(data.train, mesh)
        else:
            rewards = data.rewards if config.method == "rl" else None
            stream = RolloutStream(config, mesh, sampler, data.tasks, rewards, frozen, data.with_spans)
            sampler = dataclasses.replace(sampler, wait=stream.wait)  # for all that samples beside the stream
        feed = Feed(data.valid, mesh) if data.valid is not None else None
        validate = Validation(config, trainer, feed, sampler, data.held_out, data.rewards, frozen)
        samples = Samples(config, workdir, sampler, data.held_out, data.rewards) if data.held_out else None
        beside = events.usual(
            config,
            validate=validate if validate.measures else None,
            measure=in_loop.measuring(evals, workdir, graph, tokenizer),
            samples=samples,
        )
        beside.append(HeldOut(validate))
        start = functools.partial(initial_params, config, mesh)
        return loop.train(config, trainer, mesh, stream, workdir, beside, start, frozen)
