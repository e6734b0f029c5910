"""The report of an evaluation: one self-contained HTML page with all tasks, intervals, parts and worst items, and comparisons
with other runs. All items are on a second page (lm/reports/items.py).

All metrics come from results.json; only differences between runs are computed here (lm/evals/compare.py).
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm.evals.compare import compare_runs, read_samples
from lm.evals.stats.chance import above_chance, chance, value_text, words
from lm.evals.stats.measures import badness, interval, is_number, main_metric, metrics, scale, tasks
from lm.files.saving import plain
from lm.reports.charts import calibration, over_budget
from lm.reports.evaluation_items import gather
from lm.reports.evaluation_verdict import arrow, rows, settings, verdict
from lm.reports.items import Items, address
from lm.reports.metric_groups import COLOURS
from lm.reports.next_steps import next_steps
from lm.reports.page import flatten, render, save
from lm.reports.provenance import signed

ENDS = {"share": (0.0, 1.0), "signed": (-1.0, 1.0), "percent": (0.0, 100.0)}  # of scales
MANY = 12  # parts of a task
TILES = 4  # tasks, those with an accuracy first
NOT_PARTS = ("problems", "calibration", "versions", "searches")


def write(
    workdir: str | os.PathLike,
    results: Mapping[str, Any],
    samples: str | os.PathLike,
    others: Sequence[tuple[str, Mapping[str, Any], str | os.PathLike]] = (),
    *,
    about: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write report.html, items.html, and report.json with their content beyond results.json, into `workdir`, each atomically.

    Args:
        results: of results.json. Entries with an `n` are tasks; others are facts about the run (model, versions, seeds …).
        samples: the samples.jsonl.
        others: (name, results, samples.jsonl) of runs to compare with; at most 5 are drawn.
        about: information that is not a result, any of: title, model, finished (bool), machine (lm.runs.provenance.machine),
            config (nested), throughput {name: number}, stages {name: seconds}.
    Returns: the content of report.json: `about`, "verdict", "tasks" (see `against_chance`), and "comparison" {name: result of
    compare_runs(other run, this run)}.
    """
    workdir, about = Path(workdir), plain(about or {})
    model = results.get("model") or "this run"
    own = str(about.get("model") or (model.get("name") if isinstance(model, Mapping) else model))
    own, *names = distinct([own, *(name for name, _, _ in others)])
    runs, compared = {own: results}, {}
    for name, (_, theirs, path) in zip(names, others, strict=True):
        runs[name] = theirs
        compared[name] = compare_runs(theirs, read_samples(path), results, read_samples(samples))
    browser = Items()
    items = gather(browser.through(read_samples(samples)))
    judged = plain(against_chance(results, items))
    report = about | {"verdict": verdict(plain(runs), judged, compared), "tasks": judged, "comparison": plain(compared)}
    report |= {"next": next_steps(about, workdir)}
    browser.write(workdir, f"{report.get('title') or 'Evaluation'}: items")
    page = html(report, plain(runs), items, browsable=len(browser) > 0)
    save(workdir, report, page)
    return report


def write_run(
    workdir: Path, results: Mapping[str, Any], samples: Path, others: Sequence[tuple], about: Mapping[str, Any]
) -> dict[str, Any]:
    """Write the report of an evaluation that ended on this machine (see `write`)."""
    return write(workdir, results, samples, others, about={**about, **signed(about["config"], about["stages"])})


def distinct(names: Sequence[str]) -> list[str]:
    """Return the names, numbered from the second occurrence on.

    >>> distinct(["base", "tuned", "base"])
    ['base', 'tuned', 'base 2']
    """
    return [f"{name} {names[: i + 1].count(name)}" if name in names[:i] else name for i, name in enumerate(names)]


def against_chance(results: Mapping, items: Mapping[str, Mapping]) -> dict[str, dict[str, Any]]:
    """Return {task: {"n", "metrics": {metric: {"value", "interval", "chance", "above_chance"}}}}: the level of guessing, and
    whether the whole interval is above it (lm/evals/stats/chance.py); both are None if a metric has no such level."""
    judged = {}
    for task, result in tasks(results).items():
        figures = {}
        for name in metrics(result):
            level = chance(name, result, items.get(task, {}).get("chance"))
            figures[name] = {"value": result.get(name), "interval": interval(result, name)}
            figures[name] |= {"chance": level, "above_chance": above_chance(name, result, level)}
        judged[task] = {"n": result["n"], "metrics": figures}
    return judged


def html(report: Mapping[str, Any], runs: Mapping[str, Mapping], items: Mapping[str, Mapping], browsable: bool) -> str:
    """Return the page.

    Args: report: of report.json. runs: results by name, this run first. items: the result of `gather` on its samples.
      browsable: whether there is a page of the items.
    """
    results = next(iter(runs.values()))
    comparison, judged = report["comparison"], report["tasks"]
    table = [table_row(task, runs, items.get(task, {}), judged[task]["metrics"]) for task in tasks(results)]
    return render(
        "evaluate.html.j2",
        {**report, "title": report.get("title") or "Evaluation"},
        verdict="\n".join(report["verdict"]),
        names=list(runs),
        settings=settings(results),
        facts=facts(results),
        table=table,
        headlines=sorted(table, key=lambda row: not any(f["metric"].startswith("acc") for f in row["figures"][:1]))[:TILES],
        value_text=value_text,
        colours=COLOURS,
        curves=curves(runs),
        budgets=budget_curves(runs),
        sections=list(sections(results)),
        many=MANY,
        compared=[(name, rows(part), part) for name, part in comparison.items()],
        worst=[(task, part["worst"]) for task, part in items.items() if part["worst"]],
        problems=[(task, result["problems"]) for task, result in tasks(results).items() if result.get("problems")],
        contamination=results.get("contamination") or {},
        address=address if browsable else None,
        arrow=arrow,
    )


def facts(results: Mapping) -> dict[str, str]:
    """Return the facts about the run in results.json, without the tasks."""
    known = tasks(results)
    about = {key: value for key, value in results.items() if key not in known and key != "contamination"}
    return {key: value.strip('"') for key, value in flatten(about).items() if value != "null"}


def table_row(task: str, runs: Mapping[str, Mapping], items: Mapping, judged: Mapping[str, Mapping]) -> dict[str, Any]:
    """Return {"task", "n", "failed", "problems": count, "intervals", "figures": [{"metric", "stderr", "words" about chance, and
    what `judged` has}]}, with the main metric first."""
    result = tasks(next(iter(runs.values())))[task]
    main = main_metric(result)
    names = sorted(metrics(result), key=lambda name: name != main)
    return {
        "task": task,
        "n": result["n"],
        "failed": items.get("failed"),
        "problems": sum(kind.get("n", 0) for kind in (result.get("problems") or {}).values()),
        "intervals": intervals(task, dict(list(runs.items())[: len(COLOURS)]), judged[main]["chance"] if main else None),
        "figures": [
            {
                "metric": name,
                "stderr": result.get(f"{name}_stderr"),
                "words": words(name, judged[name]["chance"], judged[name]["above_chance"]),
                **judged[name],
            }
            for name in names
        ],
    }


def intervals(task: str, runs: Mapping[str, Mapping], level: float | None) -> dict[str, Any] | None:
    """Return {"mark": the chance `level`, "lines": [low, value, high] of the main metric in each run, or None}, in percent of
    the metric's scale; None on a scale without ends."""
    result = tasks(next(iter(runs.values())))[task]
    metric = main_metric(result)
    ends = ENDS.get(scale(metric, result[metric])) if metric and is_number(result.get(metric)) else None
    if ends is None:
        return None

    def percent(value: float) -> float:
        return min(100.0, max(0.0, 100 * (value - ends[0]) / (ends[1] - ends[0])))  # an interval may exceed the scale

    lines = []
    for run in runs.values():
        value, pair = _cell(tasks(run).get(task, {}), metric)
        low, high = pair or (value, value)
        lines.append(None if value is None else [percent(x) for x in (low, value, high)])
    return {"mark": None if level is None else percent(level), "lines": lines}


def curves(runs: Mapping[str, Mapping]) -> list[dict]:
    """Return a chart of calibration for each task and each measure of confidence."""
    runs, charts = dict(list(runs.items())[: len(COLOURS)]), []
    for task in tasks(next(iter(runs.values()))):
        by_run = {run: _bins(tasks(results).get(task, {})) for run, results in runs.items()}
        for way in dict.fromkeys(way for by_way in by_run.values() for way in by_way):
            known = {run: by_way[way] for run, by_way in by_run.items() if way in by_way}
            title = f"{task}{f', {way}' if way else ''}: calibration"
            charts.append(calibration(f"curve{len(charts)}-", title, known))
    return charts


def budget_curves(runs: Mapping[str, Mapping]) -> list[dict]:
    """Return a chart of the main metric over the budget of thoughts for each task that ran with several ("TASK@TOKENS")."""
    points: dict[str, dict[str, list[tuple]]] = {}  # by task and run
    for run, results in list(runs.items())[: len(COLOURS)]:
        for name, result in tasks(results).items():
            task, _, tokens = name.rpartition("@")
            metric = main_metric(result)
            if task and tokens.isdecimal() and is_number(result.get(metric)):
                ends = interval(result, metric) or (result[metric],) * 2
                points.setdefault(f"{task}: {metric}", {}).setdefault(run, []).append((int(tokens), result[metric], *ends))
    charts = enumerate((title, by_run) for title, by_run in points.items() if max(map(len, by_run.values())) > 1)
    return [over_budget(f"budget{n}-", title, by_run) for n, (title, by_run) in charts]


def _bins(result: Mapping) -> dict[str, list[Mapping]]:
    """Return {measure of confidence, "" for the first: its bins of equal width}, as far as results.json has them as numbers
    (lm/evals/factuality/calibration.py)."""
    first, bins = result.get("calibration") or {}, {}
    for way, curve in {"": first, **first}.items():
        by_kind = curve.get("bins") if isinstance(curve, Mapping) else None
        rows = by_kind.get("equal_width") if isinstance(by_kind, Mapping) else None
        bins[way] = [row for row in rows or () if all(is_number(row.get(key)) for key in ("confidence", "accuracy", "n"))]
    return {way: rows for way, rows in bins.items() if rows}


def sections(results: Mapping) -> Iterator[dict]:
    """Yield for each task with parts, such as subjects, categories, families, hazards: {"task", "parts": [{"title", "names": of
    metrics, the main one first, "rows": [(label, [(value, interval)], n, percent of a bar or None)]}]}. Of many parts the worst
    come first."""
    for task, result in tasks(results).items():
        parts = []
        for title, by_label in _parts(result):
            mains = [main_metric(figures) for figures in by_label.values()]
            names = list(dict.fromkeys(name for figures in by_label.values() for name in metrics(figures)))
            main = result.get("main") if result.get("main") in mains else next(filter(None, [*mains, *names]))
            names.sort(key=lambda name: name != main)
            rows = [
                (label, [_cell(figures, name) for name in names], figures.get("n"), _percent(main, figures.get(main)))
                for label, figures in by_label.items()
            ]
            if len(rows) > MANY:
                rows.sort(key=lambda row: -(badness(main, row[1][0][0] or 0.0) or 0.0))
            parts.append({"title": title, "names": names, "rows": rows})
        if parts:
            yield {"task": task, "parts": parts}


def _percent(metric: str, value: Any) -> float | None:
    """Return the length of a value's bar in percent; None on a scale without a beginning and an end."""
    scaled = {"share": 100.0, "percent": 1.0}.get(scale(metric, value)) if is_number(value) else None
    return None if scaled is None else scaled * value


def _parts(result: Mapping, path: tuple[str, ...] = ()) -> Iterator[tuple[str, dict[str, Mapping]]]:
    nested = {key: value for key, value in result.items() if isinstance(value, Mapping) and key not in NOT_PARTS}
    figures = {key: value for key, value in nested.items() if any(is_number(value.get(name)) for name in metrics(value))}
    if path and figures:
        yield " ".join(path).replace("_", " "), figures
    for key, value in nested.items():
        if key not in figures or not path:
            yield from _parts(value, (*path, key))


def _cell(figures: Mapping, name: str) -> tuple[float | None, tuple | None]:
    return (figures[name] if is_number(figures.get(name)) else None), interval(figures, name)
