"""The results of runs for the page over many: of each kind its own figures, and rows that compare them."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from lm.align.alarms import GOALS, LOWER_IS_BETTER, words
from lm.evals.stats.measures import badness, interval, main_metric, metrics, tasks
from lm.files.user_files import is_own
from lm.reports.metric_groups import NEUTRAL, own_measure
from lm.reports.page import flatten
from lm.reports.run_folders import Run, at
from lm.reports.run_metrics import is_number
from lm.runs.own_code import own_code

MEASURES = (*GOALS, "loss")  # logged metrics that tell how far a run without validation came
MAX_RESULTS = 200  # rows of a table


# Runs that differ in one of these have another held-out text, or mean another thing by the loss.
HELD_OUT = ("data.input", "data.valid_fraction", "data.max_bytes", "data.max_valid_bytes", "data.max_valid_examples")
MEANING = ("method", "sequence_length", "chat_template", "objective", "preference.loss", "rl.algorithm", "rewards", "tokenizer")


class Figure(NamedTuple):
    """A result. badness: smaller for better values; None: the figure has no direction. main: the table of all runs shows it.

    basis: a digest of what the figure depends on beside the model. Only figures of one basis can be compared.
    """

    name: str
    value: float
    before: float | None = None
    interval: tuple[float, float] | None = None
    n: int | None = None
    badness: float | None = None
    main: bool = False
    basis: str = ""


def basis_of(config: Mapping[str, Any], name: str, own: Mapping[str, str] = MappingProxyType({})) -> dict[str, Any]:
    """Return by key what a held-out measure of a run depends on beside its model.

    Bits per byte depend on the text alone. config: by dotted key. own: the user's files that the run was made with, by key.
    """
    text = {key: config.get(key) for key in HELD_OUT}
    if name in ("bits_per_byte", "bits per byte"):
        return text
    return text | {key: (config.get(key), own.get(key)) for key in MEANING}


def figures(run: Run) -> list[Figure]:
    """Return the results of a run, the main ones first. What cannot be read is a fault of the run, which then has none."""
    of_kind = {"evaluation": of_evaluation, "curation": of_curation, "train": of_training}
    try:
        return [with_basis(run, figure) for figure in of_kind.get(run.kind, of_alignment)(run)]
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, OSError) as error:
        run.faults.append(f"its figures cannot be read: {type(error).__name__}: {error}")
        return []


def with_basis(run: Run, figure: Figure) -> Figure:
    """Return the figure of a run with its basis: for an evaluation data and prompt of the task, else `basis_of`."""
    if run.kind == "evaluation":
        versions = at(run.results, "versions.tasks")
        basis = versions.get(figure.name.rpartition(", ")[0]) if isinstance(versions, Mapping) else None
    else:
        own = own_code(run.folder) if is_own(str(run.config.get("objective"))) else {}
        basis = basis_of(flatten(run.config), figure.name, own)
    return figure._replace(basis=hashlib.sha256(repr(basis).encode("utf-8", "replace")).hexdigest()[:12])


def of_training(run: Run) -> Iterator[Figure]:
    """Yield the report's validation, else the last one in the log; then what the run needed."""
    validation, logged = run.report.get("validation"), run.metrics.curves
    losses = {}
    for name, key in (("bits per byte", "bits_per_byte"), ("validation loss, nats per token", "loss")):
        losses[name] = at(validation, key)
        if not is_number(losses[name]) and f"valid_{key}" in logged:
            losses[name] = float(logged[f"valid_{key}"][1][-1])
    if "loss" in logged:
        losses["training loss, mean of the last twentieth"] = last_mean(logged["loss"][1])
    known = {name: value for name, value in losses.items() if is_number(value)}
    for name, value in known.items():
        yield Figure(name, value, badness=value, main=name == next(iter(known)))
    for name, path in (
        ("skipped steps", "training.skipped"),
        ("tokens per second", "throughput.tokens_per_second"),
        ("model TFLOP/s", "throughput.tflops"),
        ("model FLOPs utilisation", "throughput.mfu"),
    ):
        if is_number(value := at(run.report, path)):
            yield Figure(name, value)


def last_mean(values: np.ndarray) -> float:
    return float(values[-max(1, len(values) // 20) :].mean())


def of_alignment(run: Run) -> Iterator[Figure]:
    """Yield the measures of the report, before and after; without a report the last validation, else one of MEASURES."""
    before, after = (part if isinstance(part, dict) else {} for part in (run.report.get("before"), run.report.get("after")))
    if not after:
        last = {key: float(y[-1]) for key, (_, y) in run.metrics.curves.items() if key.startswith("valid_")}
        after = {key.removeprefix("valid_"): value for key, value in last.items()}
    known = {name: value for name, value in after.items() if is_number(value)}
    logged = next((key for key in MEASURES if key in run.metrics.curves), None)
    if not known and logged:
        known = {f"{logged} in training, mean of the last twentieth": last_mean(run.metrics.curves[logged][1])}
    own = own_measure(known)
    mains = {own, "over-refusal of harmless requests"} if run.kind == "safety" else {own}
    for name in dict.fromkeys((*filter(None, [own]), *known)):
        parts, value, first = words(name), known[name], before.get(name)
        bad = None if parts & NEUTRAL else value if parts & LOWER_IS_BETTER else -value
        yield Figure(name, value, first if is_number(first) else None, badness=bad, main=name in mains)


def of_evaluation(run: Run) -> Iterator[Figure]:
    """Yield the main metric of each task, then the other metrics."""
    results = {task: result for task, result in tasks(run.results).items() if main_metric(result)}
    for main in (True, False):
        for task, result in results.items():
            for name in metrics(result):
                if (name == main_metric(result)) == main and is_number(value := result.get(name)):
                    n = result["n"] if isinstance(result["n"], int) else None
                    yield Figure(f"{task}, {name}", value, None, interval(result, name), n, badness(name, value), main)


def of_curation(run: Run) -> Iterator[Figure]:
    """Yield the documents and bytes that the recipe keeps."""
    from lm.reports.curate import totals  # which loads the readers of corpora

    if funnel := at(run.report, "figures.funnel"):
        (documents, size), (kept, kept_size) = totals(funnel)["all"], totals(funnel)["kept"]
        yield Figure("documents kept", kept, documents, main=True)
        yield Figure("bytes kept", kept_size, size)


def result_rows(results: Iterable[Sequence[Figure]]) -> list[dict]:
    """Return {"name", "main", "cells": a figure or None for each run, "best": indices, "n"} by figure, the main ones first.

    main: how many runs have it among their main results. best: the runs with the best value, if the figure has a direction and
    two runs differ in it. n: the items, if all runs have as many. Without it, or with several bases, no value is the best.
    """
    by_run = [{figure.name: figure for figure in figures} for figures in results]
    rows = []
    for name in dict.fromkeys(name for figures in by_run for name in figures):
        cells = [figures.get(name) for figures in by_run]
        counts, bases = ({getattr(cell, key) for cell in cells if cell} for key in ("n", "basis"))
        ranked = {i: cell.badness for i, cell in enumerate(cells) if cell and cell.badness is not None}
        best = [i for i, badness in ranked.items() if badness == min(ranked.values())]
        best = best if len(best) < len(ranked) and len(counts) == len(bases) == 1 else []
        main, n = sum(cell.main for cell in cells if cell), counts.pop() if len(counts) == 1 else None
        rows.append({"name": name, "main": main, "cells": cells, "best": best, "n": n})
    return sorted(rows, key=lambda row: -row["main"])[:MAX_RESULTS]
