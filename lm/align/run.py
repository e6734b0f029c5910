"""Run one alignment method: prepare its data, objective and stream, train with lm.train.loop, and write a report."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from data.text.fingerprints import record_tokenizer
from data.text.hf_tokenizer import has_tokenizer
from lm.align import data, distill, senses, settings
from lm.align.methods import method_of, score_head, title
from lm.align.rl.held_out import Samples
from lm.align.tokenizers import chat_template, own_tokenizer
from lm.align.validation import Validation, first_validation
from lm.evals import in_loop
from lm.model import sizing
from lm.model.transformer import skeleton
from lm.parallel import hosts
from lm.parallel.mesh import check_fit, make_mesh
from lm.runs.workdir import finished, save_record
from lm.train import events, loop
from lm.train.fit import check_memory
from lm.train.rates import choose_rate
from lm.train.start import adopt, initial_params
from lm.train.step import model_config_of


def run(config, workdir: Path, report: Callable[[Path, dict], None], given: data.Tasks | None = None) -> dict[str, Any]:
    """Train config.init_from with config.method, or resume the run in `workdir`, and write a report.

    report: writes the report, such as lm.reports.align.write_run. The first process calls it at the end with workdir and
    figures.
    given: (tasks, held-out tasks, counts) as prepare_tasks returns them, to use instead of the tasks of config.data.input.
    Returns: {"before", "after", "step"}: validation metrics by name before the first step and at the end, or None.
    Raises: UserError; Stopped and Diverged as lm.train.loop.train.
    """
    begin = time.perf_counter()
    new_senses = _settle(config, workdir)
    mesh, model_config = make_mesh(config.mesh), model_config_of(config)
    slices = config.accumulate * (config.rl.minibatches if config.method == "rl" else 1)
    check_fit(mesh, model_config, config.batch_size, slices, config.sequence_length)
    loop.check_config(config, workdir)
    choose_rate(config)
    if done := hosts.from_first(lambda: finished(config, workdir)):
        return {"before": done.get("before"), "after": done.get("after"), "step": done["training"]["steps"]}
    check_memory(config, mesh, whole_rows=settings.example_kind(config) != "task")
    evals = in_loop.open_evals(config)
    tokenizer = own_tokenizer(config, workdir)
    template = chat_template(config, tokenizer)

    run_data = data.prepare(config, workdir, tokenizer, mesh, new_senses, given)
    run_data.choose_steps(config)
    if hosts.is_first():
        print(data.data_summary(run_data.counts, config), flush=True)
        _record(config, workdir, tokenizer, run_data)
    prepared = time.perf_counter()

    with jax.set_mesh(mesh), contextlib.ExitStack() as stack:
        method, graph = method_of(config, tokenizer, mesh), skeleton(model_config)[0]
        trainer = method.trainer(config)
        sampler = run_data.sampler(config, graph, tokenizer, template)
        if sampler is not None:
            stack.callback(sampler.close)
        held_out = run_data.held_out, run_data.rewards
        feed = run_data.validation_feed(config, mesh)
        validate = Validation(config, trainer, feed, sampler, *held_out, method.frozen)
        result = loop.train(
            config,
            trainer,
            mesh,
            run_data.stream(config, mesh, sampler, method.frozen),
            workdir,
            lambda: initial_params(config, mesh),
            events.usual(
                validate=validate if validate.measures else None,
                measure=in_loop.measuring(evals, workdir, graph, tokenizer),
                samples=Samples(config, workdir, sampler, *held_out) if run_data.held_out else None,
            ),
            method.frozen,
        )
    before = first_validation(workdir)
    if hosts.is_first():
        stages = {"data": prepared - begin, "training": result["seconds"]}
        stages["start and other"] = time.perf_counter() - begin - sum(stages.values())
        report(
            workdir,
            {
                "method": title(config),
                "config": config.to_dict(),
                "parameters": sum(sizing.parameters(model_config)["total"].values()),
                "data": run_data.counts,
                "stages": stages,
                "before": before,
                "after": result["valid"],
                "finished": result["step"] >= config.steps,
                "training": {name: result[name] for name in ("tokens", "skipped", "rewinds")} | {"steps": result["step"]},
            },
        )
    return {"before": before, "after": result["valid"], "step": result["step"]}


def _settle(config, workdir: Path) -> list[str]:
    """Check the config and set what follows from the model that is trained. Return the senses that it gets."""
    settings.check(config)
    if config.method == "distill":
        distill.check_settings(config.distill)
    new_senses = [name for name, section in senses.SECTIONS.items() if config.model[section].num_layers]
    adopt(config, workdir)
    config.model.score_head = score_head(config)
    return new_senses


def _record(config, workdir: Path, tokenizer, run_data: data.RunData) -> None:
    """Write tokenizer, data and config to the workdir, if they are not there."""
    workdir.mkdir(parents=True, exist_ok=True)
    if not has_tokenizer(workdir):
        tokenizer.save(workdir)
    record_tokenizer(workdir, tokenizer.fingerprint)
    run_data.record(config, workdir)
    save_record(config, workdir)
