"""Differences between two evaluations, as rows of a table and as charts."""

from collections.abc import Mapping

from lm.evals.stats.measures import badness, ideal, scale
from lm.reports.charts import Row, change_colour, forest

ALPHA = 0.05


def rows(comparison: Mapping) -> list[dict]:
    """Return the rows of a comparison with their task and metric, the main metrics first."""
    all_rows = [
        {"task": task, "metric": metric, "main": metric == part["main"], **row}
        for task, part in comparison["tasks"].items()
        for metric, row in part["metrics"].items()
    ]
    return sorted(all_rows, key=lambda row: not row["main"])


def main_rows(comparison: Mapping) -> list[dict]:
    """Return the rows of the main metrics."""
    return [row for row in rows(comparison) if row["main"]]


def changes(comparison: Mapping, name: str) -> list[dict]:
    """Return plots of the differences of the main metrics, one for each scale."""
    parts: dict[tuple, list[Row]] = {}
    for row in main_rows(comparison):
        if row["difference"] is None:
            continue
        kind = scale(row["metric"], row["after"])
        group = ("shares", "") if kind in ("share", "signed") else (kind, row["metric"])
        colour = change_colour(row["better"], row["p_holm"] is not None and row["p_holm"] < ALPHA)
        point = (row["difference"], row["low"], row["high"])
        parts.setdefault(group, []).append(Row(f"{row['task']}, {row['metric']}{arrow(row['metric'])}", [point], colour=colour))
    note = "this run − the other, with 95 % intervals; green: better, orange: worse, where that is significant"
    return [
        forest(f"{name}{i}-", f"Differences{f', {metric}' if metric else ''}", note, found, [""], centre=0.0)
        for i, ((_, metric), found) in enumerate(parts.items())
    ]


def arrow(metric: str | None) -> str:
    """Return a metric's suffix: ↓ if lower is better, → and its ideal if it has one."""
    if not metric or (bad := badness(metric, 1.0)) is None:
        return ""
    middle = ideal(metric)
    return f" → {middle:g}" if middle is not None else " ↓" if bad > 0 else ""


def p_value(p: float | None) -> str:
    """Return p as the page shows it."""
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"
