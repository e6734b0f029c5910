"""Differences between two evaluations as rows of a table."""

from collections.abc import Mapping

from lm.evals.stats.measures import badness, ideal, scale


def rows(comparison: Mapping) -> list[dict]:
    """Return the rows of a comparison with their task and metric, the main metrics first.

    "line", if the interval is known: low, difference and high in percent of the widest interval of the same scale; 50 is no
    difference.
    """
    all_rows = [
        {"task": task, "metric": metric, "main": metric == part["main"], **row}
        for task, part in comparison["tasks"].items()
        for metric, row in part["metrics"].items()
    ]
    widest: dict[str, float] = {}
    drawn = [row for row in all_rows if None not in (row["low"], row["difference"], row["high"])]
    for row in drawn:
        row["scale"] = row["metric"] if scale(row["metric"], row["after"]) == "open" else "closed"
        widest[row["scale"]] = max(widest.get(row["scale"], 0.0), abs(row["low"]), abs(row["high"]))
    for row in drawn:
        limit = widest[row["scale"]] or 1.0
        row["line"] = [50 + 50 * row[key] / limit for key in ("low", "difference", "high")]
    return sorted(all_rows, key=lambda row: not row["main"])


def arrow(metric: str | None) -> str:
    """Return a metric's suffix: ↓ if lower is better, → and its ideal if it has one."""
    if not metric or (bad := badness(metric, 1.0)) is None:
        return ""
    middle = ideal(metric)
    return f" → {middle:g}" if middle is not None else " ↓" if bad > 0 else ""
