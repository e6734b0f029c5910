"""The report of an evaluation: one self-contained HTML page with all tasks, intervals, parts and worst items, and comparisons
with other runs.

    python -m lm.reports.evaluate WORKDIR [OTHER …]     # redraw the page from the workdir

See lm/reports/page.py for how pages are made. All metrics come from results.json; only differences between runs are computed
here (lm/evals/compare.py).
"""

import os
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from lm import saving
from lm.errors import UserError
from lm.evals.compare import compare_runs, read_results, read_samples
from lm.evals.stats.measures import badness, ideal, interval, is_number, level, main_metric, metrics, scale, tasks
from lm.reports.charts import SERIES, Row, calibration, forest, radar, risk_coverage
from lm.reports.differences import ALPHA, arrow, changes, main_rows, p_value, rows
from lm.reports.evaluation_items import gather
from lm.reports.next_steps import next_steps
from lm.reports.page import flatten, number, render, replace_json
from lm.reports.provenance import signed
from lm.saving import plain
from lm.workdir import kept_json

GROUPS = {  # axes of the radar; a task belongs to the first with a matching pattern (without "core_")
    "bias": (
        "bbq*",
        "crows*",
        "stereoset*",
        "winobias*",
        "wino_bias*",
        "winogender*",
        "*regard*",
        "*counterfactual*",
        "toxi*",
        "*bias*",
    ),
    "safety": ("redteam*", "harmbench*", "advbench*", "xstest*", "jailbreak*", "strongreject*", "*safety*", "*refusal*"),
    "factuality": (
        "truthfulqa*",
        "*closed_book*",
        "triviaqa*",
        "nq*",
        "popqa*",
        "simpleqa*",
        "*cloze*",
        "support*",
        "*selfcheck*",
        "*factscore*",
        "*fact*",
        "*hallucinat*",
    ),
    "coherence": ("*coherence*", "lambada*", "wikitext*", "*perplexity*", "*rolling*", "storycloze*"),
    "following": ("ifeval*", "*instruction*", "mt_bench*", "*following*"),
    "knowledge": (
        "mmlu*",
        "arc*",
        "openbook*",
        "sciq*",
        "gpqa*",
        "commonsense*",
        "jeopardy*",
        "*wikidata*",
        "*language_identification*",
    ),
    "reasoning": (
        "gsm8k*",
        "math*",
        "bbh*",
        "bigbench*",
        "humaneval*",
        "mbpp*",
        "hellaswag*",
        "winogra*",
        "piqa*",
        "boolq*",
        "copa*",
        "squad*",
        "coqa*",
        "drop*",
        "agi*",
        "*code*",
        "*arithmetic*",
    ),
}
OF_CHOICES = ("acc", "acc_norm", "acc_bytes", "acc_per_token", "acc_mutual_info", "mc1")
MOST_ROWS = 60  # maximum rows of a chart
ALSO_DRAWN = ("over_refusal",)  # drawn for parts, beside the main metric and those with an ideal
NOT_PARTS = ("problems", "calibration", "risk_coverage", "versions", "searches")


def write(
    workdir: str | os.PathLike,
    results: Mapping[str, Any],
    samples: str | os.PathLike,
    others: Sequence[tuple[str, Mapping[str, Any], str | os.PathLike]] = (),
    *,
    about: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write report.html, and report.json with the page's content beyond results.json, into `workdir`, each atomically.

    Args:
        results: of results.json. Entries with an `n` are tasks; others are facts about the run (model, versions, seeds …).
        samples: the samples.jsonl.
        others: (name, results, samples.jsonl) of runs to compare with; at most 5 are drawn.
        about: information that is not a result, any of: title, model, finished (bool), machine (lm.reports.page.machine),
            config (nested), throughput {name: number}, stages {name: seconds}.
    Returns: the content of report.json: `about`, and "comparison" {name: result of compare_runs(other run, this run)}.
    """
    workdir, about = Path(workdir), plain(about or {})
    model = results.get("model") or "this run"
    own = str(about.get("model") or (model.get("name") if isinstance(model, Mapping) else model))
    own, *names = distinct([own, *(name for name, _, _ in others)])
    runs, compared = {own: results}, {}
    for name, (_, theirs, path) in zip(names, others, strict=True):
        runs[name] = theirs
        compared[name] = compare_runs(theirs, read_samples(path), results, read_samples(samples))
    report = about | {"comparison": plain(compared), "next": next_steps(about, workdir)}
    replace_json(workdir / "report.json", report)
    saving.write(workdir / "report.html", html(report, plain(runs), gather(read_samples(samples))))
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


def html(report: Mapping[str, Any], runs: Mapping[str, Mapping], items: Mapping[str, Mapping]) -> str:
    """Return the page.

    Args: report: of report.json. runs: results by name, this run first. items: the result of `gather` on its samples.
    """
    results = next(iter(runs.values()))
    comparison, found = report.get("comparison") or {}, results.get("contamination") or {}
    return render(
        "evaluate.html.j2",
        {**report, "title": report.get("title") or "Evaluation"},
        verdict=verdict(results, comparison),
        last_step=None,
        names=list(runs),
        facts=facts(results),
        table=[table_row(task, result, items.get(task, {})) for task, result in tasks(results).items()],
        charts_of_tasks=charts_of_tasks(runs, items),
        curves=curves(runs),
        sections=list(sections(results)),
        compared=[(name, rows(part), changes(part, f"change{i}-"), part) for i, (name, part) in enumerate(comparison.items())],
        worst=[(task, part["worst"]) for task, part in items.items() if part["worst"]],
        problems=[(task, result["problems"]) for task, result in tasks(results).items() if result.get("problems")],
        contamination=found.get("tasks", found),
        p_value=p_value,
        arrow=arrow,
    )


def verdict(results: Mapping, comparison: Mapping) -> str:
    """Return a summary of the tasks, and of significant differences of the main metrics against each other run."""
    found = {name: result for name, result in tasks(results).items() if "centred" not in result}  # CORE combines others
    items = sum(result["n"] for result in found.values() if is_number(result["n"]))
    sentence = f"{len(found)} task{'s' * (len(found) != 1)}, {number(items)} items"
    for name, part in comparison.items():
        sure = [row for row in main_rows(part) if row["p_holm"] is not None and row["p_holm"] < ALPHA]
        better = [row["task"] for row in sure if row["better"]]
        worse = [row["task"] for row in sure if row["better"] is False]
        said = [f"better at {', '.join(better)}"] * bool(better) + [f"worse at {', '.join(worse)}"] * bool(worse)
        sentence += f". Against {name}: {'; '.join(said) or 'no difference beyond chance'}"
    return sentence + "."


def facts(results: Mapping) -> dict[str, str]:
    """Return the facts about the run in results.json, without the tasks."""
    known = tasks(results)
    about = {key: value for key, value in results.items() if key not in known and key != "contamination"}
    return {key: value.strip('"') for key, value in flatten(about).items() if value != "null"}


def table_row(task: str, result: Mapping, items: Mapping) -> dict[str, Any]:
    """Return {"task", "n", "failed", "problems": count, "figures": [{"metric", "value", "stderr", "interval", "chance"}]}, with
    the main metric first."""
    main = main_metric(result)
    names = sorted(metrics(result), key=lambda name: name != main)
    return {
        "task": task,
        "n": result["n"],
        "failed": items.get("failed"),
        "problems": sum(kind.get("n", 0) for kind in (result.get("problems") or {}).values()),
        "figures": [
            {
                "metric": name,
                "value": result.get(name),
                "stderr": result.get(f"{name}_stderr"),
                "interval": interval(result, name),
                "chance": chance(name, result, items),
            }
            for name in names
        ],
    }


def chance(metric: str, result: Mapping, items: Mapping) -> float | None:
    """Return the chance level: the one in the results or, for accuracies of choices, the one from the samples."""
    if is_number(result.get("chance")):
        return result["chance"] if metric == main_metric(result) else None
    return items.get("chance") if metric in OF_CHOICES else None


def charts_of_tasks(runs: Mapping[str, Mapping], items: Mapping) -> list[dict]:
    """Return interval plots of the main metrics, one for each scale, and the radar."""
    runs = dict(list(runs.items())[: len(SERIES)])
    parts: dict[tuple, list[Row]] = {}
    first = tasks(next(iter(runs.values())))
    for task, result in first.items():
        metric = main_metric(result)
        if metric is None or not is_number(result.get(metric)):
            continue
        points = [_point(tasks(run).get(task, {}), metric) for run in runs.values()]
        kind = scale(metric, result[metric])
        label = task if kind == "open" else f"{task}, {metric}{arrow(metric)}"
        parts.setdefault((kind, metric if kind == "open" else ""), []).append(
            Row(label, points, chance(metric, result, items.get(task, {})))
        )
    charts = []
    for (kind, metric), found in parts.items():
        titles = {"share": "Main metric of each task", "percent": "On a scale of 100", "signed": "From −1 to 1"}
        title = titles.get(kind, metric + arrow(metric))
        for begin in range(0, len(found), MOST_ROWS):
            part = found[begin : begin + MOST_ROWS]
            note = "with 95 % intervals" + ("; dashes: chance" if any(row.mark is not None for row in part) else "")
            charts.append(forest(f"tasks{len(charts)}-", title, note, part, list(runs), kind))
    chances = {task: found.get("chance") for task, found in items.items()}
    levels = {run: groups(results, chances) for run, results in runs.items()}
    axes = [name for name in GROUPS if next(iter(levels.values()))[name] is not None]
    if len(axes) >= 3:
        series = {run: [found[name] for name in axes] for run, found in levels.items()}
        note = "mean over tasks; 0: chance or the worst; 1: the best or no bias"
        charts.insert(1, radar("radar-", "By group", note, axes, series))
    return charts


def groups(results: Mapping, chances: Mapping[str, float | None] | None = None) -> dict[str, float | None]:
    """Return for each group the mean level (stats/measures.py) of its tasks: of the task's metrics with an ideal in the middle,
    if it has any, else of its main metric. chances: {task: chance level from its samples}."""
    found: dict[str, list[float]] = {name: [] for name in GROUPS}
    for task, result in tasks(results).items():
        group = result.get("group")
        if group not in GROUPS:
            name = task.removeprefix("core_")
            group = next((group for group, patterns in GROUPS.items() if any(fnmatchcase(name, p) for p in patterns)), None)
        known = [name for name in metrics(result) if is_number(result.get(name))]
        names = [name for name in known if ideal(name) is not None] or [name for name in known if name == main_metric(result)]
        levels = [level(name, result[name], chance(name, result, {"chance": (chances or {}).get(task)})) for name in names]
        levels = [one for one in levels if one is not None]
        if group and levels:
            found[group].append(statistics.fmean(levels))
    return {name: statistics.fmean(values) if values else None for name, values in found.items()}


def curves(runs: Mapping[str, Mapping]) -> list[dict]:
    """Return charts of calibration and of risk and coverage for each task, by each measure of confidence."""
    runs, charts = dict(list(runs.items())[: len(SERIES)]), []
    for task in tasks(next(iter(runs.values()))):
        calibrations = {run: _calibrations(tasks(results).get(task, {})) for run, results in runs.items()}
        for way in dict.fromkeys(way for found in calibrations.values() for way in found):
            name, title = f"curve{len(charts)}-", f"{task}{f', {way}' if way else ''}"
            bins = {run: found[way][0] for run, found in calibrations.items() if way in found and found[way][0]}
            risks = {run: found[way][1] for run, found in calibrations.items() if way in found and found[way][1]}
            if bins:
                note = "accuracy by confidence; larger dots: more answers; below the diagonal: overconfident"
                charts.append(calibration(f"{name}c-", f"{title}: calibration", note, bins))
            if risks:
                note = "share of wrong answers among the most confident ones"
                charts.append(risk_coverage(f"{name}r-", f"{title}: risk and coverage", note, risks))
    return charts


def _calibrations(result: Mapping) -> dict[str, tuple[list[Mapping], list[Mapping]]]:
    """Return {measure of confidence, "" for the first: (bins, points of risk and coverage)}. In results, bins may be by kind
    and points may be two columns."""
    found = {}
    kept = {"risk_coverage": result.get("risk_coverage")} | (result.get("calibration") or {})
    for way, curve in {"": kept, **{key: x for key, x in kept.items() if isinstance(x, Mapping) and "bins" in x}}.items():
        bins, points = curve.get("bins") or [], curve.get("risk_coverage") or []
        if isinstance(bins, Mapping):
            bins = bins.get("equal_width") or next(iter(bins.values()), [])
        if isinstance(points, Mapping):
            points = [{"coverage": c, "risk": r} for c, r in zip(points.get("coverage", ()), points.get("risk", ()))]
        bins = [b for b in bins if all(is_number(b.get(key)) for key in ("confidence", "accuracy", "n"))]
        points = [p for p in points if all(is_number(p.get(key)) for key in ("coverage", "risk"))]
        found[way] = bins, points
    return found


def sections(results: Mapping) -> Iterator[dict]:
    """Yield for each task with parts, such as subjects, categories, families, hazards: {"task", "charts", "parts": [{"title",
    "names": of metrics, "rows": [(label, [(value, interval)], n)]}]}."""
    for task, result in tasks(results).items():
        parts, charts = [], []
        for title, found in _parts(result):
            names = list(dict.fromkeys(name for figures in found.values() for name in metrics(figures)))
            mains = [main_metric(figures) for figures in found.values()]
            main = result.get("main") if result.get("main") in mains else mains[0]
            drawn = [main, *(name for name in names if name != main and (ideal(name) is not None or name in ALSO_DRAWN))]
            charts += [_bars(f"{task}-{title}-{name}", title, name, found) for name in drawn[:3] if len(found) > 1]
            rows = [(label, [_cell(figures, name) for name in names], figures.get("n")) for label, figures in found.items()]
            parts.append({"title": title, "names": names, "rows": rows})
        if parts:
            yield {"task": task, "charts": [chart for chart in charts if chart], "parts": parts}


def _parts(result: Mapping, path: tuple[str, ...] = ()) -> Iterator[tuple[str, dict[str, Mapping]]]:
    found = {key: value for key, value in result.items() if isinstance(value, Mapping) and key not in NOT_PARTS}
    figures = {key: value for key, value in found.items() if any(is_number(value.get(name)) for name in metrics(value))}
    if path and figures:
        yield " ".join(path).replace("_", " "), figures
    for key, value in found.items():
        if key not in figures or not path:
            yield from _parts(value, (*path, key))


def _bars(name: str, title: str, metric: str, found: Mapping[str, Mapping]) -> dict | None:
    """Return a chart of one metric over all parts, sorted worst first if there are many."""
    rows = [Row(label, [point]) for label, figures in found.items() if (point := _point(figures, metric)) is not None]
    if not rows:
        return None
    worst = [(badness(metric, row.points[0][0]) or 0.0, i, row) for i, row in enumerate(rows)]
    if len(rows) > 12:
        rows = [row for _, _, row in sorted(worst, reverse=True)]
    kinds = {scale(metric, row.points[0][0]) for row in rows}
    kind = kinds.pop() if len(kinds) == 1 else "open"
    middle = ideal(metric)
    note = f"{metric}, with 95 % intervals" + (f"; {middle:g} is ideal" if middle is not None else "")
    note += f"; the worst {MOST_ROWS} of {len(rows)}" if len(rows) > MOST_ROWS else ""
    key = "".join(c if c.isascii() and c.isalnum() else "_" for c in name) + "-"
    return forest(key, title, note, rows[:MOST_ROWS], [""], kind, centre=middle, bars=True)


def _point(result: Mapping, metric: str) -> tuple[float, float | None, float | None] | None:
    value = result.get(metric)
    return (value, *(interval(result, metric) or (None, None))) if is_number(value) else None


def _cell(figures: Mapping, name: str) -> tuple[float | None, tuple | None]:
    return (figures[name] if is_number(figures.get(name)) else None), interval(figures, name)


def main(workdirs: Sequence[str]) -> None:
    if not workdirs:
        raise UserError("name the folder of an evaluation, and optionally others to compare it with")
    workdir, path = Path(workdirs[0]), Path(workdirs[0]) / "report.json"
    about = (kept_json(path) if path.exists() else None) or {}
    others = [(Path(other).resolve().name, read_results(other), Path(other) / "samples.jsonl") for other in workdirs[1:]]
    write(workdir, read_results(workdir), workdir / "samples.jsonl", others, about=about)
    print(workdir / "report.html")


if __name__ == "__main__":
    from lm import cli

    cli.guard(lambda: main(sys.argv[1:]))
