"""Run one evaluation: load a model, run its tasks in order, write results and a report.

    tasks/NAME.json, NAME.jsonl   results and samples of a finished task, with a digest of everything they depend on
    answers.sqlite                the model's answers so far, so that an interrupted task resumes
    results.json, samples.jsonl   of all tasks, joined from the files above
    report.html, report.json      the report, with comparisons; items.html: all items

results.json and samples.jsonl contain no times and no machine names: the same evaluation gives the same bytes.
"""

import hashlib
import importlib.metadata
import json
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from data.text.tokenizer import load_tokenizer
from lm.bucket.places import as_urls
from lm.convert.multimodal.processor import towers_of
from lm.errors import UserError
from lm.evals import compare, contamination, failures
from lm.evals.checks import others_of, settings_of, template_of
from lm.evals.engine.answers_cache import fingerprint
from lm.evals.engine.encoding import Encoding
from lm.evals.engine.model_subject import ModelSubject
from lm.evals.stats.chance import above_chance, chance, words
from lm.evals.stats.measures import main_metric
from lm.evals.task import Outcome, Task
from lm.evals.tasks.budgets import with_budgets
from lm.evals.tasks.catalogue import open_tasks
from lm.evals.tasks.core_metric import core
from lm.files import saving
from lm.files.saving import plain
from lm.infer.load import load_model
from lm.parallel import hosts
from lm.parallel.mesh import make_mesh
from lm.runs.workdir import kept_json, save_record
from lm.train.checks import answers

LIBRARIES = ("flax", "jax", "jaxlib", "numpy", "tokenizers", "sentencepiece")
# Config keys that do not change any result.
NO_RESULT_KEYS = tuple(
    "checkpoint tasks thought_budgets compare compare_alpha compare_tolerance contamination export_failures cache mesh "
    "batch_tokens".split()
)


def run(config: ConfigDict, workdir: Path, report: Callable[..., dict]) -> list[str]:
    """Evaluate config.checkpoint and write results, samples and report into `workdir`.

    Args: report: a function that writes the report and returns it, such as lm.reports.evaluate.write_run.
    Returns: one line for each metric that got worse against the runs of config.compare.
    Raises: UserError for errors that the user can fix, before anything is written where possible.
    """
    begin = time.perf_counter()
    tasks, files = open_tasks(config.tasks, settings_of(config))
    if config.thought_budgets:
        tasks, files = with_budgets(tasks, files, config.thought_budgets)
    others = others_of(config, workdir)
    tokenizer, mesh = load_tokenizer(config.checkpoint), make_mesh(config.mesh)
    template = template_of(config.chat_template)
    with jax.set_mesh(mesh):
        model = load_model(config.checkpoint, config.dtype, mesh)
        depends = {name: value for name, value in config.to_dict().items() if name not in NO_RESULT_KEYS}
        depends |= {"model": fingerprint(model), "dtype": str(model.config.dtype), "tokenizer": tokenizer.fingerprint}
        libraries = {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in LIBRARIES}
        depends |= {"chat_template": template, "libraries": libraries}
        if hosts.is_first():
            (workdir / "tasks").mkdir(parents=True, exist_ok=True)
            save_record(config, workdir)
        towers = towers_or_none(config.checkpoint, model, tokenizer)
        subject = ModelSubject(
            model,
            Encoding(tokenizer, template=template, system=config.system_instruction, towers=towers),
            name=Path(as_urls(config.checkpoint)).name,
            max_length=config.max_length,
            batch_tokens=config.batch_tokens,
            cache=workdir / "answers.sqlite" if config.cache else None,
        )
        if hosts.is_first() and not config.chat_template and tokenizer.chat_template and answers(config.checkpoint):
            print("prompts are plain, as in lm-evaluation-harness; chat_template=own uses the model's template", flush=True)
        results, stages = {}, {"start": time.perf_counter() - begin}
        for task in tasks:
            since = time.perf_counter()
            own = {"versions": task.versions, "file": files[task.name]}
            results[task.name] = task_results(task, subject, workdir, depends | own)
            stages[task.name] = time.perf_counter() - since
            if hosts.is_first():
                print(result_line(task.name, results[task.name]), flush=True)
    if not hosts.is_first():
        return []
    if figures := core(results):
        results["core"] = figures
    samples = join_samples(config, workdir, tasks, results)
    results |= {
        "model": {"name": subject.name, "fingerprint": depends["model"], "dtype": depends["dtype"]},
        "versions": libraries | {"tasks": {task.name: task.versions for task in tasks}},
        "chat_template": template_record(config.chat_template, subject.encoding.template),
        "limit": config.limit,
        "seed": config.seed,
    }
    saving.write_json(workdir / "results.json", plain(results))
    if config.export_failures:
        exported = failures.export(compare.read_samples(samples), config.export_failures)["files"]
        counts = ", ".join(f"{file['rows']} in {name}" for name, file in exported.items()) or "none"
        print(f"failed items in {config.export_failures}: {counts}", flush=True)
    stages["report and other"] = time.perf_counter() - begin - sum(stages.values())
    about = {"title": f"lmcraft evaluation {workdir.name}", "model": subject.name, "finished": True, "config": config.to_dict()}
    about |= {"throughput": throughput(subject.stats), "stages": stages}
    worse = []
    for name, comparison in report(workdir, results, samples, others, about=about)["comparison"].items():
        rows = compare.worse(comparison, alpha=config.compare_alpha, tolerance=config.compare_tolerance)
        worse += [f"{compare.change_line(row)} against {name}" for row in rows]
    return worse


def towers_or_none(checkpoint: str, model, tokenizer):
    """Return what the model sees and hears, or None: then it reads text, and a line says why if it could do more."""
    try:
        return towers_of(Path(checkpoint), model.config, tokenizer)
    except UserError as error:
        print(f"no images and no sound: {error}", flush=True)
        return None


def join_samples(config: ConfigDict, workdir: Path, tasks: list[Task], results: dict[str, Any]) -> Path:
    """Write samples.jsonl of all tasks and return its path. config.contamination: add the contamination to the results."""
    samples = workdir / "samples.jsonl"
    with saving.replacing(samples, "wb") as file:
        for task in tasks:
            file.write((workdir / "tasks" / f"{task.name}.jsonl").read_bytes())
    if config.contamination:
        checked = contamination.of_samples(compare.read_samples(samples), contamination.texts(config.contamination))
        saving.write_lines(workdir / "contamination.jsonl", plain(checked["items"]), ensure_ascii=True)
        results["contamination"] = checked["tasks"]
    return samples


def throughput(stats: Mapping[str, float]) -> dict[str, float]:
    """Return what the report shows of ModelSubject.stats; {} without a request."""
    if not stats["requests"]:
        return {}
    shown = {name: stats[name] for name in ("requests", "cached", "tokens", "generated")}
    if stats["thoughts"]:
        shown["thoughts"] = stats["thoughts"]
    if stats["seconds"]:
        shown["requests_per_second"] = stats["requests"] / stats["seconds"]
        shown["tokens_per_second"] = (stats["tokens"] + stats["generated"]) / stats["seconds"]
    return shown


def task_results(task: Task, subject: ModelSubject, workdir: Path, depends: Mapping[str, Any]) -> dict[str, Any]:
    """Return the stored results of a task if nothing of `depends` has changed; else run the task."""
    path = workdir / "tasks" / f"{task.name}.json"
    identity = digest(json.dumps(depends, sort_keys=True, default=str))
    done = hosts.from_first(lambda: kept_json(path) if path.with_suffix(".jsonl").is_file() else None)
    if done and done["depends_on"] == identity:
        return done["results"]
    before = subject.stats["thoughts"]
    outcome: Outcome = task.run(subject)
    results = plain(outcome.results)
    if not results["n"]:
        problems = (results.get("problems") or {}).items()
        examples = [f"{kind}: {problem['examples'][0]}" for kind, problem in problems if problem["examples"]]
        why = "; ".join(examples) or "it has none"
        raise UserError(f"{task.name}: no item was scored ({why}); fix its files, or remove it from tasks")
    if spent := subject.stats["thoughts"] - before:
        results["thought_tokens"] = spent / results["n"]
    if hosts.is_first():
        saving.write_lines(path.with_suffix(".jsonl"), map(plain, outcome.samples), ensure_ascii=True)
        saving.write_json(path, {"depends_on": identity, "results": results})
    return results


def result_line(name: str, results: Mapping[str, Any]) -> str:
    """Return one line of text about a task's results."""
    metric = main_metric(results)
    value, error = results.get(metric), results.get(f"{metric}_stderr")
    figure = "nothing known" if value is None else f"{metric} {value:.4g}" + (f" ± {error:.2g}" if error else "")
    level = chance(metric, results)
    comparison = words(metric, level, above_chance(metric, results, level))
    troubles = sum(kind["n"] for kind in (results.get("problems") or {}).values())
    parts = [figure, *[comparison] * bool(comparison), f"n {results['n']}", *[f"{troubles} problems"] * bool(troubles)]
    return f"{name}: {', '.join(parts)}"


def template_record(name: str, template: str | None) -> dict[str, Any]:
    """Return {"applied": whether prompts use it, "kind": none, own, plain or a file's name, "sha256"} of a chat template.

    name: config.chat_template. template: the one that renders conversations; None: "User: … Assistant:".
    """
    kind = "plain" if template is None else "own" if name == "own" else Path(name).name
    return {"applied": bool(name), "kind": kind if name else "none", "sha256": digest(template or "")}


def digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
