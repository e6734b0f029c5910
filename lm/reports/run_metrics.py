"""The curves of many runs in one chart: what metrics.jsonl holds of them, thinned, for templates/runs.js."""

import errno
import json
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lm.files.untrusted import shown
from lm.reports.metric_groups import COLOURS, GROUPS, LOSSES, SCHEDULE, group_of, matches
from lm.train.history import Curve, by_step

LONGEST_LINE = 1 << 20  # characters; a longer line is read as several
LIMIT = 1e30  # larger numbers are taken as not finite, so that their squares are
CURVE_POINTS = 600  # most points of a curve on the page of one run
POINTS = 300  # and on that of many
ALL_POINTS = 16_000  # most points of a chart, if its runs are many
MIN_POINTS = 60
LOGARITHMIC = "grad_norm"  # its axis is, if a chart spans more than a factor of 10
MAX_CHARTS = 14  # of one kind of run
WIDTH = 1.8
# On and off, in line widths. No two of the first eight curves have the same line.
DASHES = ((), (5, 2), (1.2, 1.6), (7, 2, 1.2, 2), (3, 1.2), (9, 3), (5, 1.6, 1.2, 1.6, 1.2, 1.6), (2.5, 1.2, 2.5, 4))

METHODS = {"train": "pretraining", "best_of": "sft"}  # kind of a run -> key of LOSSES; others: itself


@dataclass
class Metrics:
    """curves: of the metrics that a chart shows. tokens: trained tokens by step. last: the last training line.

    null: how many lines at the end have a loss or a gradient norm that is not finite. not_finite: how many lines have.
    overflow: the last update was left out though both are finite. between: seconds between the last two lines, by the speed
    that they tell. damaged: lines that cannot be read. is_cut: the last line has no end, because it is being written or because
    its writer was killed. fault: why the file cannot be read.
    """

    curves: dict[str, Curve] = field(default_factory=dict)
    tokens: Curve = field(default_factory=lambda: (np.empty(0), np.empty(0)))
    last: dict[str, Any] = field(default_factory=dict)
    null: int = 0
    not_finite: int = 0
    overflow: bool = False
    between: float | None = None
    damaged: int = 0
    is_cut: bool = False
    fault: str = ""

    def diverged(self, limit: Any) -> bool:
        """Return whether the log ends as that of a run that could not go on. limit: max_skipped_in_row."""
        return self.overflow or (is_number(limit) and 0 < limit <= self.null)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -LIMIT < value < LIMIT


def row_of(line: str | bytes) -> dict[str, Any] | None:
    """Return a line of metrics.jsonl, or None if it is no JSON object with a number as "step"."""
    try:
        row = json.loads(line)
        return row if is_number(row["step"]) else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def chart_of(metric: str) -> int | None:
    """Return the place of a metric's chart among the others; None if the page has no chart of it."""
    group = group_of(metric.removeprefix("valid_"))
    if group is None:  # a task that was evaluated during training
        return len(GROUPS) if metric.startswith("valid_") and "/" in metric else None
    return group if GROUPS[group].compared else None


def titled(metric: str, kind: str) -> tuple[str, str]:
    """Return title and unit of a metric's chart over runs of one kind."""
    name = metric.removeprefix("valid_")
    held_out = ", held out" if metric != name else ""
    if (group := group_of(name)) is None:
        return shown(name).replace("_", " ") + held_out, "evaluated during training"
    title, _, unit, patterns, _ = GROUPS[group]
    if name == "loss":
        _, unit = LOSSES.get(METHODS.get(kind, kind), ("", unit))
    if len(patterns) > 1 or "*" in patterns[0]:  # one chart for each of these metrics
        title += f": {shown(name.removesuffix('/mean').partition('/')[2] or name)}"
    return title + held_out, unit


def read_metrics(path: Path) -> Metrics:
    """Return what a metrics.jsonl holds. Lines that cannot be read are skipped and counted."""
    readable, metrics = [], Metrics()
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise OSError(errno.EINVAL, "no regular file")  # a pipe or a device could be read forever
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in iter(lambda: file.readline(LONGEST_LINE), ""):
                if (row := row_of(line)) is None:
                    metrics.is_cut = len(line) < LONGEST_LINE and not line.endswith("\n")
                    metrics.damaged += bool(line.strip()) and not metrics.is_cut
                else:
                    readable.append(row)
    except OSError as error:
        return Metrics(fault=f"{path.name} cannot be read: {error.strerror}")
    train, valid = by_step(readable)
    for rows in (train, valid):
        steps = np.array([row["step"] for row in rows], np.float64)
        for key in sorted(set().union(*rows)):
            if key == "tokens" or chart_of(key) is not None:
                curve = _curve(steps, [row.get(key) for row in rows])
                if key == "tokens":
                    metrics.tokens = curve
                elif len(curve[0]):
                    metrics.curves.setdefault(key, curve)
    if train:
        _end(metrics, train)
    return metrics


def _end(metrics: Metrics, rows: Sequence[Mapping]) -> None:
    metrics.last = dict(rows[-1])
    finite = [row["loss"] is not None and row.get("grad_norm", 0) is not None for row in rows]
    metrics.not_finite = finite.count(False)
    metrics.null = finite[::-1].index(True) if any(finite) else len(finite)
    known = [row.get(key) for row in rows[-2:] for key in ("tokens", "tokens_per_second")]
    if len(known) == 4 and all(map(is_number, known)) and known[3] > 0:
        metrics.between = (known[2] - known[0]) / known[3]
    # Spikes are finite too, but the run goes on.
    skipped = [is_number(row.get("skipped")) and row["skipped"] - (row.get("spikes") or 0) for row in rows[-2:]]
    if not metrics.null and all(map(is_number, skipped)):
        metrics.overflow = skipped[-1] > (skipped[0] if len(skipped) > 1 else 0)


def _curve(steps: np.ndarray, values: Sequence[Any]) -> Curve:
    """Return (steps, values) where the value is a finite number."""
    try:
        y = np.array(values, np.float64)
    except (ValueError, TypeError, OverflowError):
        y = np.array([value if is_number(value) else np.nan for value in values], np.float64)
    known = np.abs(y) < LIMIT
    return steps[known], y[known]


def styles(count: int) -> list[dict[str, Any]]:
    """Return the line of each curve, {"colour": a CSS variable, "dash"}: another colour and another line for each neighbour."""
    return [{"colour": COLOURS[i % len(COLOURS)], "dash": [WIDTH * x for x in DASHES[i % len(DASHES)]]} for i in range(count)]


def tokens_by_step(metrics: Metrics) -> list[list[float]]:
    """Return [steps, trained tokens], for the axis of tokens."""
    return [_short(part) for part in thin(*metrics.tokens, 40)]


def charts(kind: str, runs: Sequence[Metrics], sound: Sequence[bool]) -> list[dict[str, Any]]:
    """Return [{"title", "unit", "log": whether its axis may be logarithmic, "curves": of each run, see `_data`, or None}].

    Args: runs: of one `kind`. sound: False for a run that diverged, whose values do not set the height of a chart.
    """
    names = {key for metrics in runs for key in metrics.curves}
    keys = sorted(names, key=lambda key: (chart_of(key), key.startswith("valid_"), key))[:MAX_CHARTS]
    points = max(MIN_POINTS, min(POINTS, ALL_POINTS // len(runs)))
    drawn = []
    for key in keys:
        title, unit = titled(key, kind)
        noisy = not key.startswith("valid_") and not matches(key, SCHEDULE)
        curves = [(metrics.curves.get(key), steady) for metrics, steady in zip(runs, sound, strict=True)]
        drawn.append(
            {
                "title": title,
                "unit": unit,
                "log": key == LOGARITHMIC,
                "curves": [curve and _data(curve, noisy, points, steady) for curve, steady in curves],
            }
        )
    return drawn


def _data(curve: Curve, noisy: bool, points: int, steady: bool) -> dict[str, Any]:
    """Return {"x", "y": of the line, "raw": the values under it, "range": of the line without its first twentieth}.

    The values of a long noisy curve are thinned, and the line is their trend. "range" is None unless the run is steady.
    """
    if noisy and len(curve[0]) > 50:
        line, raw = trend(*curve, min(points, 150)), {"raw": [_short(part) for part in thin(*curve, points)]}
    else:
        line, raw = thin(*curve, points), {}
    later = line[1][len(line[1]) // 20 :]
    limits = _short(np.array([later.min(), later.max()])) if steady else None
    return {"x": _short(line[0]), "y": _short(line[1]), "range": limits, **raw}


def _short(values: np.ndarray) -> list[float]:
    """Return numbers with five digits; whole ones in full."""
    return [int(value) if value.is_integer() and abs(value) < 1e15 else float(f"{value:.5g}") for value in values.tolist()]


def thin(x: np.ndarray, y: np.ndarray, points: int = CURVE_POINTS) -> Curve:
    """Return at most `points` of a curve: the lowest and the highest of each stretch, so that no spike is lost."""
    if len(x) <= points:
        return x, y
    keep = [0, len(x) - 1]
    for stretch in np.array_split(np.arange(len(x)), points // 2 - 1):
        keep += [stretch[y[stretch].argmin()], stretch[y[stretch].argmax()]]
    keep = np.unique(keep)
    return x[keep], y[keep]


def trend(x: np.ndarray, y: np.ndarray, points: int = CURVE_POINTS) -> Curve:
    """Return the trend of a noisy curve at no more than `points` positions: at each, a line fitted to its neighbours.

    The fit is least squares over a fiftieth of the curve on either side (Cleveland 1979, with equal weights). For evenly spaced
    points it is their mean. At both ends the window keeps its width and lies to one side; the line's slope prevents a lag. A
    straight line is unchanged. x must ascend.
    """
    n = len(x)
    half = min(max(1, n // 50), (n - 1) // 2)
    at = np.unique(np.linspace(0, n - 1, min(n, points)).round().astype(int))
    fitted = np.empty(len(at))
    for k, i in enumerate(at):
        begin = min(max(i - half, 0), n - 1 - 2 * half)
        near = slice(begin, begin + 2 * half + 1)
        mean_x, mean_y = x[near].mean(), y[near].mean()
        away = x[near] - mean_x
        spread = away @ away
        fitted[k] = mean_y + (x[i] - mean_x) * (away @ (y[near] - mean_y)) / spread if spread else mean_y
    return x[at], fitted
