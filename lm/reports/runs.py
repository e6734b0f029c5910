"""The page over many runs: a table of all, curves over one another, results and differing settings of each kind.

    python -m lm.reports RUNS_DIR      # one file that needs no network
    python -m lm.dashboard RUNS_DIR    # the same page, live

Without JavaScript the page shows all tables; templates/runs.js sorts, filters, and draws the runs that the reader chooses.
"""

import base64
import collections
import datetime
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
from markupsafe import Markup

from lm.align.alarms import GOALS, LOWER_IS_BETTER, words
from lm.errors import UserError
from lm.evals.stats.measures import badness, interval, main_metric, metrics, tasks
from lm.files import saving
from lm.reports.align import NEUTRAL, own_measure
from lm.reports.differences import arrow
from lm.reports.page import flatten, number, render
from lm.reports.run_alerts import alerts, full_disks, needs_people
from lm.reports.run_folders import Run, at, read_runs, related, start, tree
from lm.reports.run_metrics import charts, is_number, styles, tokens_by_step

CHOSEN = 8  # runs whose curves are drawn at first, the newest
ORDER = ("train", "doremi", "sft", "best_of", "distill", "reward", "dpo", "orpo", "kto", "grpo", "ppo", "safety", "evaluation")
MEASURES = (*GOALS, "loss")  # logged metrics that tell how far a run without validation came
LONG = 60  # characters of a cell
ALERTS = 4  # of a cell
MAX_KEYS, MAX_VALUE, MAX_RESULTS = 2000, 300, 200  # of a table: keys, characters of their values; results
SCRIPT = (Path(__file__).parent / "templates" / "runs.js").read_text(encoding="utf-8")
# Only this script may run in the page, so a text of a run cannot become one.
SCRIPT_HASH = f"sha256-{base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()}"


class Figure(NamedTuple):
    """A result. badness: smaller for better values; None: the figure has no direction. main: the table of all runs shows it."""

    name: str
    value: float
    before: float | None = None
    interval: tuple[float, float] | None = None
    n: int | None = None
    badness: float | None = None
    main: bool = False


class Live(NamedTuple):
    """How a page stays up to date: it asks for a newer one each so many `seconds`, and names its `tag`."""

    seconds: float
    tag: str


def write(folders: Sequence[Path], out: Path, patterns: Sequence[str] = ()) -> str:
    """Write the page over all runs in and below the folders; return a line that counts them.

    patterns: shell patterns of names (`Run.name`); only runs that match one are shown.
    Raises: UserError if there is no run. Then nothing is written.
    """
    where = ", ".join(map(str, folders))
    runs = read_runs(folders)
    if not runs:
        raise UserError(f"{where}: no run in it or below; a run is a folder that train.py, align.py or evaluate.py wrote")
    if not (chosen := matching(runs, patterns)):
        raise UserError(f"--runs={','.join(patterns)}: matches none of {len(runs)} runs, such as {runs[0].name}")
    page = html(chosen, where, functools.partial(file_link, out.absolute().parent), full_disks(folders))
    saving.write(out, page.encode("utf-8", "replace").decode())
    return f"{out}: {counted(chosen)}"


def matching(runs: Sequence[Run], patterns: Sequence[str]) -> list[Run]:
    """Return the runs whose name matches a shell pattern; all if there is no pattern."""
    return [run for run in runs if not patterns or any(fnmatchcase(run.name, pattern) for pattern in patterns)]


def file_link(base: Path, run: Run) -> str:
    """Return the link to a run's report from a page in the folder `base`."""
    return quote(os.fsencode(os.path.relpath((run.folder / "report.html").absolute(), base)))


def counted(runs: Sequence[Run]) -> str:
    """Return how many runs there are, and how many in each state."""
    states = collections.Counter(run.state for run in runs)
    return f"{len(runs)} run{'s' * (len(runs) != 1)}: " + ", ".join(f"{count} {state}" for state, count in states.most_common())


def html(
    runs: Sequence[Run], where: str, link: Callable[[Run], str], notices: Sequence[str] = (), live: Live | None = None
) -> str:
    """Return the page.

    Args:
      runs: the newest first.
      where: the searched folders.
      link: returns the address of a run's report.
      notices: sentences above all runs.
      live: None for a file.
    """
    starts, inputs = related(runs)
    results = [sound_figures(run) for run in runs]
    outside = {i: str(start(run)) for i, run in enumerate(runs) if start(run) and i not in starts}
    kinds = sorted({run.kind for run in runs}, key=lambda kind: (ORDER.index(kind) if kind in ORDER else len(ORDER), kind))
    groups = []
    for kind in kinds:
        members = [i for i, run in enumerate(runs) if run.kind == kind]
        if len(members) > 1 and kind != "unknown":
            groups.append(group(f"group{len(groups)}", kind, members, runs, results))
    rows = [row(i, runs, starts, inputs, results[i], link) for i in range(len(runs))]
    return render(
        "runs.html.j2",
        {"title": f"Runs in {where}"},
        verdict=counted(runs),
        last_step=None,
        notices=notices,
        rows=rows,
        troubled=[row for row in rows if row["troubled"]],
        states=sorted({run.state for run in runs}),
        kinds=kinds,
        tree=tree(starts, outside),
        groups=groups,
        newest=CHOSEN,
        arrow=arrow,
        data=Markup(encoded({"newest": CHOSEN, "styles": styles(24), "groups": {g["name"]: g.pop("data") for g in groups}})),
        script=Markup(SCRIPT),
        script_hash=SCRIPT_HASH,
        live=live,
        written=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    )


# The table of all runs.


def row(
    i: int,
    runs: Sequence[Run],
    starts: Mapping[int, int],
    inputs: Mapping[int, int],
    results: Sequence[Figure],
    link: Callable[[Run], str],
) -> dict[str, Any]:
    """Return the cells of a run: its own values, or {"text", "run": index of a run that is meant}."""
    run = runs[i]
    warnings = alerts(run)
    origin = start(run)
    of = run.config.get("steps")
    main = [figure for figure in results if figure.main]
    read = sources(run)
    size = run.report.get("parameters") or (at(runs[starts[i]].report, "parameters") if i in starts else None)
    written = datetime.datetime.fromtimestamp(run.written)
    code = at(run.report, "provenance.code")
    return {
        "id": i,
        "name": run.name,
        "link": link(run) if "report.html" in run.files else None,
        "kind": run.kind,
        "state": run.state,
        "place": run.place,
        "faults": run.faults,
        "alerts": warnings[:ALERTS],
        "more_alerts": len(warnings) - ALERTS,
        "troubled": needs_people(run, warnings),
        "date": written.strftime("%Y-%m-%d"),
        "time": written.strftime("%H:%M"),
        "written": run.written,
        "size": size if is_number(size) else None,
        "start": {"text": runs[starts[i]].name, "run": starts[i]} if i in starts else {"text": cut(str(origin or ""))},
        "fresh": run.kind == "train" and not origin and bool(run.config),
        "data": inside(runs[inputs[i]], read) | {"run": inputs[i]} if i in inputs else {"text": cut(read)},
        "read": read,
        "steps": run.steps,
        "of": of if is_number(of) and run.steps is not None and run.steps < of else None,
        "tokens": run.tokens,
        "seconds": run.seconds,
        "code": cut(str(code)) if code else None,
        "main": [{"name": figure.name, "text": told(figure)} for figure in main[:3]],
        "more": len(main) - 3,
        "value": main[0].value if main else None,
    }


def inside(run: Run, name: str) -> dict[str, str]:
    """Return the text for a run's output that another run reads: the run, and the file in it."""
    return {"text": run.name if name in (run.folder.name, "dataset") else f"{run.name}: {cut(name)}"}


def sources(run: Run) -> str:
    """Return what a run reads: files, tasks or the name of built-in data."""
    given = run.config.get("tasks") if run.origin == "evaluate" else run.config.get("input") or at(run.config, "data.input")
    given = given or at(run.config, "safety.prompts")
    if not given:
        return "this Python's code and docs" if run.kind == "train" and run.config else ""
    parts = given if isinstance(given, list | tuple) else str(given).split(",")
    return ", ".join(source(str(part)) for part in parts)


def source(path: str) -> str:
    """Return the name of a file or task; of a pattern also the folder.

    >>> source("/data/books/*.txt"), source("/data/pairs.jsonl"), source("tasks/mmlu.yaml")
    ('books/*.txt', 'pairs.jsonl', 'mmlu')
    """
    parts = path.rstrip("/").split("/")
    return "/".join(parts[-2:] if "*" in parts[-1] else parts[-1:]).removesuffix(".yaml") or path


def told(figure: Figure) -> str:
    """Return a figure's value, or "before → value"."""
    return (f"{number(figure.before, 4)} → " if figure.before is not None else "") + number(figure.value, 4)


def cut(text: str, most: int = LONG) -> str:
    """Return the text, with the middle left out if it is long: the end of a path tells most."""
    return text if len(text) <= most else f"{text[: most // 3]} … {text[-(most - most // 3) :]}"


# Results.


def sound_figures(run: Run) -> list[Figure]:
    """Return `figures`; none, and a fault of the run, if values of its report or results are not of the expected kind."""
    try:
        return list(figures(run))
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
        run.faults.append(f"its figures cannot be read: {type(error).__name__}: {error}")
        return []


def figures(run: Run) -> Iterator[Figure]:
    """Yield the results of a run, the main ones first."""
    of_kind = {"evaluation": of_evaluation, "curation": of_curation, "doremi": of_doremi, "train": of_training}
    yield from of_kind.get(run.kind, of_alignment)(run)


def of_training(run: Run) -> Iterator[Figure]:
    """Yield the report's validation, else the last one in the log; then what the run needed."""
    validation, logged = run.report.get("validation"), run.metrics.curves
    names = (("bits per byte", "bits_per_byte"), ("validation loss, nats per token", "loss"))
    main = True
    for name, key in names:
        value = at(validation, key)
        if not is_number(value) and f"valid_{key}" in logged:
            value = float(logged[f"valid_{key}"][1][-1])
        if is_number(value):
            yield Figure(name, value, badness=value, main=main)
            main = False
    if "loss" in logged:
        last = last_mean(logged["loss"][1])
        yield Figure("training loss, mean of the last twentieth", last, badness=last, main=main)
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
        said, value, first = words(name), known[name], before.get(name)
        bad = None if said & NEUTRAL else value if said & LOWER_IS_BETTER else -value
        yield Figure(name, value, first if is_number(first) else None, badness=bad, main=name in mains)


def of_evaluation(run: Run) -> Iterator[Figure]:
    """Yield the main metric of each task, then the other metrics."""
    found = {task: result for task, result in tasks(run.results).items() if main_metric(result)}
    for main in (True, False):
        for task, result in found.items():
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


def of_doremi(run: Run) -> Iterator[Figure]:
    """Yield the share of each source, given and found."""
    for name, source in run.report["sources"].items():
        yield Figure(f"share of {name}", source["found"], source["given"], main=True)


# One kind of run.


def group(
    name: str, kind: str, members: Sequence[int], runs: Sequence[Run], results: Sequence[Sequence[Figure]]
) -> dict[str, Any]:
    """Return what the page compares of runs of one kind. "data" is for the script."""
    some = [runs[i] for i in members]
    sound = [run.state != "diverged" for run in some]
    lines = [*styles(min(CHOSEN, len(some))), *[None] * (len(some) - CHOSEN)]
    return {
        "name": name,
        "kind": kind,
        "members": [{"name": run.name, "line": line} for run, line in zip(some, lines, strict=True)],
        "charts": (curves := charts(kind, [run.metrics for run in some], sound)),
        "results": result_rows(results[i] for i in members),
        "differences": differences([run.config for run in some]),
        "data": {"runs": [{"name": run.name, "tokens": tokens_by_step(run.metrics)} for run in some], "charts": curves},
    }


def result_rows(found: Iterable[Sequence[Figure]]) -> list[dict]:
    """Return {"name", "main", "cells": a figure or None for each run, "best": indices, "n"} by figure, the main ones first.

    main: how many runs have it among their main results. best: the runs with the best value, if the figure has a direction and
    two runs differ in it. n: the items, if all runs have as many; otherwise no value is the best.
    """
    by_run = [{figure.name: figure for figure in some} for some in found]
    rows = []
    for name in dict.fromkeys(name for some in by_run for name in some):
        cells = [some.get(name) for some in by_run]
        counts = {cell.n for cell in cells if cell}
        ranked = {i: cell.badness for i, cell in enumerate(cells) if cell and cell.badness is not None}
        best = [i for i, badness in ranked.items() if badness == min(ranked.values())]
        best = best if len(best) < len(ranked) and len(counts) == 1 else []
        main, n = sum(cell.main for cell in cells if cell), counts.pop() if len(counts) == 1 else None
        rows.append({"name": name, "main": main, "cells": cells, "best": best, "n": n})
    return sorted(rows, key=lambda row: -row["main"])[:MAX_RESULTS]


def differences(configs: Sequence[Mapping]) -> dict[str, list[str | None]]:
    """Return the values of each key whose values differ, by the name that --config.KEY takes; None where a config lacks it.

    At most MAX_KEYS keys, and of each value at most MAX_VALUE characters: a stranger's config may have any size.
    """
    flat = [flatten(config) for config in configs]
    known = [config for config in flat if config]  # a damaged config lacks every key, which says nothing
    rows = {key: [config.get(key) for config in known] for key in sorted({key for config in known for key in config})}
    names = [key for key, values in rows.items() if len(set(values)) > 1][:MAX_KEYS]
    return {key: [setting(config.get(key)) for config in flat] for key in names}


def setting(value: str | None) -> str | None:
    """Return a value of `flatten` as one types it: a text without quotes, unless it is empty."""
    text = json.loads(value) if value is not None and value.startswith('"') and value != '""' else value
    return text and cut(text, MAX_VALUE)


def encoded(value: Any) -> str:
    """Return JSON without "<", so that no text in it ends or opens an HTML element."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
