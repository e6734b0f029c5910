"""Compare two evaluation runs item by item: what improved, what got worse, and whether the change is significant.

    python -m lm.evals.compare BEFORE AFTER [--alpha=0.05] [--tolerance=0.0]     # exit code 1 if something got worse

Items are joined by task and doc_id. Items whose prompt, choices or target differ between the runs are listed and left out,
because their scores are not comparable.
"""

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import xxhash

from data.sources.reading import json_lines
from lm import cli
from lm.errors import UserError
from lm.evals.stats.measures import badness, is_number, main_metric, metrics, tasks
from lm.evals.stats.significance import comparison_row, holm, paired, unpaired
from lm.runs.workdir import read_object

SHOWN = 5  # examples of items that do not join
TRIED = ("family", "attempt", "sample")  # keys beside doc_id that distinguish several samples of one item

_Items = dict[tuple, list[tuple[bytes, dict]]]  # {(doc_id, keys of TRIED): (hash of the item, its metrics) of its samples}


def compare(before: str | os.PathLike, after: str | os.PathLike) -> dict[str, Any]:
    """Return the differences after − before of two folders with results.json and samples.jsonl; see `compare_runs`.

    Raises: UserError for a folder without these files, or if they cannot be read.
    """
    sides = [(read_results(folder), read_samples(Path(folder) / "samples.jsonl")) for folder in (before, after)]
    return compare_runs(*sides[0], *sides[1])


def compare_runs(
    results_before: Mapping, samples_before: Iterable[dict], results_after: Mapping, samples_after: Iterable[dict]
) -> dict[str, Any]:
    """Return the differences after − before.

    Returns: {"tasks": {task: {"main": metric, "n": items joined, "only_before", "only_after", "differing", "repeated": {"n",
    "examples"} of doc_ids that do not join, "metrics": {metric: row}}}, "only_before", "only_after": tasks of one run only}.
    A row is the result of `significance.paired` over the items that have the metric in both runs. If no item has the metric,
    it is the result of `unpaired`, or the difference alone. A row adds "better" (True, False, or None: no direction or no
    change) and "p_holm": p corrected over the main metrics of all tasks, or over all other metrics.
    """
    figures = [tasks(results_before), tasks(results_after)]
    items = [_by_task(samples_before), _by_task(samples_after)]
    compared: dict[str, dict] = {}
    for task in figures[1]:
        if task in figures[0]:
            sides = [side.get(task, {}) for side in items]
            compared[task] = _task([figure[task] for figure in figures], sides)
    for main in (True, False):
        rows = [row for t in compared.values() for name, row in t["metrics"].items() if (name == t["main"]) == main]
        for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
            row["p_holm"] = p
    only = [[task for task in figures[i] if task not in figures[1 - i]] for i in (0, 1)]
    return {"tasks": compared, "only_before": only[0], "only_after": only[1]}


def worse(comparison: Mapping, *, alpha: float = 0.05, tolerance: float = 0.0) -> list[dict]:
    """Return the rows that got worse, with their "task" and "metric": the value moved away from its ideal by more than
    `tolerance` (in the metric's units) with p_holm < alpha, or it was known before and is unknown now."""
    rows = []
    for task, part in comparison["tasks"].items():
        for metric, row in part["metrics"].items():
            lost = row["after"] is None and row["before"] is not None
            significant = row["better"] is False and row["p_holm"] is not None and row["p_holm"] < alpha
            if lost or (significant and badness(metric, row["after"]) - badness(metric, row["before"]) > tolerance):
                rows.append({"task": task, "metric": metric, **row})
    return rows


def change_line(row: Mapping) -> str:
    """Return one line of text about a row that has "task" and "metric"."""
    if row["after"] is None:
        return f"{row['task']}: {row['metric']} was {row['before']:.4g} and is no longer known"
    moved = f"{row['task']}: {row['metric']} went from {row['before']:.4g} to {row['after']:.4g}"
    p = "" if row["p_holm"] is None else f", p = {row['p_holm']:.2g} after Holm's correction"
    return f"{moved} ({row['difference']:+.4g}{p})"


def _by_task(samples: Iterable[Mapping]) -> dict[str, _Items]:
    by_task: dict[str, _Items] = {}
    for sample in samples:
        key = tuple(str(sample[part]) for part in ("doc_id", *TRIED) if sample.get(part) is not None)
        item = [sample.get(part) for part in ("prompt", "choices", "target")]
        text = json.dumps(item, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")
        same = by_task.setdefault(str(sample.get("task")), {}).setdefault(key, [])
        same.append((xxhash.xxh3_128_digest(text), sample.get("metrics") or {}))
    return by_task


def _task(figures: Sequence[Mapping], sides: Sequence[_Items]) -> dict[str, Any]:
    before, after = ({key: same[0] for key, same in side.items() if len(same) == 1} for side in sides)
    both = [key for key in after if key in before]
    differing = [key for key in both if before[key][0] != after[key][0]]
    left_out = set(differing)
    joined = [key for key in both if key not in left_out]
    rows = {}
    for metric in metrics(figures[1]):
        if metric not in figures[0]:
            continue
        pairs = [(before[key][1].get(metric), after[key][1].get(metric)) for key in joined]
        pairs = [pair for pair in pairs if all(map(is_number, pair))]
        row = paired(*zip(*pairs)) if pairs else _figures(*figures, metric)
        bad = [None if row[end] is None else badness(metric, row[end]) for end in ("before", "after")]
        better = None if None in bad or bad[0] == bad[1] else bad[1] < bad[0]
        rows[metric] = row | {"p_holm": None, "better": better}
    return {
        "main": main_metric(figures[1]),
        "n": len(joined),
        "only_before": _count_and_examples(key for key in before if key not in after),
        "only_after": _count_and_examples(key for key in after if key not in before),
        "differing": _count_and_examples(differing),
        "repeated": _count_and_examples({key: None for side in sides for key, same in side.items() if len(same) > 1}),
        "metrics": rows,
    }


def _figures(before: Mapping, after: Mapping, metric: str) -> dict[str, Any]:
    """Return a row from the results alone, for a metric that no item has."""
    values = [side.get(metric) if is_number(side.get(metric)) else None for side in (before, after)]
    errors = [side.get(f"{metric}_stderr") for side in (before, after)]
    if None not in values and all(map(is_number, errors)):
        return unpaired(*values, *errors)
    return comparison_row(*values, None if None in values else values[1] - values[0])


def _count_and_examples(keys: Iterable[tuple]) -> dict[str, Any]:
    names = [" ".join(key) for key in keys]
    return {"n": len(names), "examples": names[:SHOWN]}


def read_results(folder: str | os.PathLike) -> dict[str, Any]:
    """Return the results.json of a run. Raises: UserError if it is missing or cannot be read."""
    path = Path(folder) / "results.json"
    try:
        results = read_object(path, "evaluate again")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; name the folder of a finished evaluation") from None
    if not tasks(results):
        raise UserError(f"{path}: holds no task with its `n`; name the folder of a finished evaluation")
    return results


def read_samples(path: str | os.PathLike) -> Iterator[dict]:
    """Yield the samples of a samples.jsonl. Raises: UserError at the first line that cannot be read."""
    try:
        for _, sample in json_lines(os.fspath(path)):
            yield sample
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; name the folder of a finished evaluation") from None


def main(arguments: Sequence[str]) -> int:
    parser = cli.ArgumentParser(prog="python -m lm.evals.compare", allow_abbrev=False)
    parser.add_argument("before")
    parser.add_argument("after")
    parser.add_argument("--alpha", type=float, default=0.05)
    parser.add_argument("--tolerance", type=float, default=0.0)
    options = parser.parse_args(arguments)
    comparison = compare(options.before, options.after)
    for task, part in comparison["tasks"].items():
        for metric, row in part["metrics"].items():
            if row["difference"] is not None:
                print(change_line({"task": task, "metric": metric, **row}))
        for kind in ("only_before", "only_after", "differing", "repeated"):
            if part[kind]["n"]:
                print(f"{task}: {part[kind]['n']} items {kind.replace('_', ' ')}: {', '.join(part[kind]['examples'])} …")
    regressions = worse(comparison, alpha=options.alpha, tolerance=options.tolerance)
    for row in regressions:
        print("worse:", change_line(row))
    return 1 if regressions else 0


if __name__ == "__main__":
    with cli.guard():
        sys.exit(main(sys.argv[1:]))
