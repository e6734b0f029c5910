"""The charts of an evaluation's report: intervals, a radar, calibration and risk-coverage curves, bars, differences of runs.

Each function draws for one or several runs, in the order of SERIES, and returns {"title", "note", "svg"} as the reports' pages
show charts (lm/evals/charts.py).
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from lm.evals.charts import INK, LINE, MUTED, SERIES, THIRD, VALID, short, svg

LABEL = 30  # characters of a label
WIDTH = 5.4
Point = tuple[float, float | None, float | None]  # a value and its interval
ENDS = {"share": (0.0, 1.0), "signed": (-1.0, 1.0), "percent": (0.0, 100.0)}


class Row(NamedTuple):
    """A line of a chart. points: of each run, or None. mark: where chance lies. colour: else the run's."""

    label: str
    points: Sequence[Point | None]
    mark: float | None = None
    colour: str | None = None


def forest(
    name: str, title: str, note: str, rows: Sequence[Row], runs: Sequence[str], kind: str = "open", *,
    centre: float | None = None, bars: bool = False,
) -> dict:  # fmt: skip
    """Values with their intervals, a line each; `mark` of a row is a dashed tick.

    Args: kind: a scale of lm/evals/measures.py, which sets the axis. centre: a line over all rows, such as no difference.
      bars: from `centre`, or 0, to the value, instead of a dot.
    """
    step = 0.8 / max(1, len(runs))

    def draw(ax: Axes) -> None:
        for i, run in enumerate(runs):
            known = [(n, row) for n, row in enumerate(rows) if i < len(row.points) and row.points[i] is not None]
            for at, row in known:
                value, low, high = row.points[i]
                y, colour = at - 0.4 + step * (i + 0.5), row.colour or SERIES[i]
                if bars:
                    ax.barh(y, value - (centre or 0), step * 0.8, centre or 0, color=colour, alpha=0.35, linewidth=0)
                ax.plot([value], [y], "o", color=colour, markersize=3 if bars else 5)
                if low is not None and high is not None:
                    ax.plot([low, high], [y, y], color=colour, linewidth=1.8, solid_capstyle="butt")
            ax.plot([], [], "o-", color=SERIES[i], label=clean(run))
        for at, row in enumerate(rows):
            if row.mark is not None:
                ax.plot([row.mark] * 2, [at - 0.42, at + 0.42], color=MUTED, linewidth=1.4, linestyle=(0, (2, 1.5)))
        if centre is not None:
            ax.axvline(centre, color=MUTED, linewidth=1)
        ax.set_ylim(len(rows) - 0.4, -0.6)
        ax.set_yticks(range(len(rows)), [clean(row.label) for row in rows])
        if kind in ENDS:
            low, high = ENDS[kind]
            low, high = min(low, ax.dataLim.xmin), max(high, ax.dataLim.xmax)  # an interval may reach further
            ax.set_xlim(low - 0.02 * (high - low), high + 0.02 * (high - low))
        else:
            ax.margins(x=0.08)
        _numbers(ax, y=False)
        _legend(ax, runs)

    lines = len(rows) * (1 + 0.45 * (len(runs) - 1))
    size = (WIDTH, 0.75 + 0.27 * lines + (0.3 if len(runs) > 1 else 0))
    return {"title": title, "note": note, "svg": svg(name, draw, size=size, steps=False)}


def radar(name: str, title: str, note: str, axes: Sequence[str], series: Mapping[str, Sequence[float | None]]) -> dict:
    """A polygon for each run, over at least three axes from 0 in the middle to 1; an axis that is None is left out of it."""
    angles = [math.pi / 2 - 2 * math.pi * i / len(axes) for i in range(len(axes))]
    around = np.array([[math.cos(angle), math.sin(angle)] for angle in angles])

    def draw(ax: Axes) -> None:
        for ring in (0.25, 0.5, 0.75, 1.0):
            closed = np.concatenate([around, around[:1]]) * ring
            ax.plot(closed[:, 0], closed[:, 1], color=LINE, linewidth=0.8)
        for (x, y), label in zip(around, axes):
            ax.plot([0, x], [0, y], color=LINE, linewidth=0.8)
            side = "center" if abs(x) < 0.1 else "left" if x > 0 else "right"
            ax.text(1.1 * x, 1.12 * y, clean(label), color=INK, ha=side, va="center")
        between = (around[0] + around[1]) / 2
        for ring in (0.5, 1.0):
            ax.text(*(between * ring), f"{ring:g}", color=MUTED, fontsize=9, ha="center", va="center")
        for (run, values), colour in zip(series.items(), SERIES):
            points = np.array([around[i] * value for i, value in enumerate(values) if value is not None]).reshape(-1, 2)
            if colour == SERIES[0]:
                ax.fill(points[:, 0], points[:, 1], color=colour, alpha=0.15, linewidth=0)
            closed = np.concatenate([points, points[:1]])
            ax.plot(closed[:, 0], closed[:, 1], "o-", color=colour, linewidth=1.8, markersize=4, label=clean(run))
        ax.set_xlim(-1.75, 1.75)
        ax.set_ylim(-1.2, 1.25)
        ax.set_aspect("equal")
        ax.axis("off")
        _legend(ax, list(series))

    return {"title": title, "note": note, "svg": svg(name, draw, size=(WIDTH, 3.8), steps=False)}


def calibration(name: str, title: str, note: str, curves: Mapping[str, Sequence[Mapping]]) -> dict:
    """Accuracy over confidence, a dot for each bin {"confidence", "accuracy", "n"}, the larger the more items; the diagonal is
    a model that is as often right as it is sure."""

    def draw(ax: Axes) -> None:
        ax.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        for (label, bins), colour in zip(curves.items(), SERIES):
            x, y, n = ([float(b[key]) for b in bins] for key in ("confidence", "accuracy", "n"))
            ax.plot(x, y, color=colour, linewidth=1.6, label=clean(label))
            ax.scatter(x, y, [12 + 90 * size / max(n) for size in n], color=colour, alpha=0.6, linewidths=0)
        ax.set_xlim(-0.02, 1.02)
        ax.set_ylim(-0.02, 1.02)
        ax.set_xlabel("confidence")
        ax.set_ylabel("share that is right")
        _numbers(ax)
        _legend(ax, list(curves))

    return {"title": title, "note": note, "svg": svg(name, draw, steps=False)}


def risk_coverage(name: str, title: str, note: str, curves: Mapping[str, Sequence[Mapping]]) -> dict:
    """The share of wrong answers among the surest ones, over the share of questions answered: [{"coverage", "risk"}]."""

    def draw(ax: Axes) -> None:
        for (label, points), colour in zip(curves.items(), SERIES):
            known = sorted((float(p["coverage"]), float(p["risk"])) for p in points)
            kept = known if len(known) <= 300 else [known[i] for i in np.linspace(0, len(known) - 1, 300).astype(int)]
            style = {"marker": "o", "markersize": 4} if len(kept) <= 30 else {}
            ax.plot(*zip(*kept), color=colour, linewidth=1.8, label=clean(label), **style)
        ax.set_xlim(-0.02, 1.02)
        ax.set_ylim(bottom=-0.02)
        ax.set_xlabel("share answered")
        ax.set_ylabel("share of these that is wrong")
        _numbers(ax)
        _legend(ax, list(curves))

    return {"title": title, "note": note, "svg": svg(name, draw, steps=False)}


def change_colour(better: bool | None, sure: bool) -> str:
    """Of a difference: good or bad where it is more than chance, else muted."""
    return MUTED if better is None or not sure else THIRD if better else VALID


def clean(label: str) -> str:
    """As Matplotlib may write it: one line, no formula, no control characters, not too long."""
    text = "".join(c if c.isprintable() else " " for c in str(label))
    text = text if len(text) <= LABEL else text[: LABEL - 1] + "…"
    return text.replace("$", r"\$")


def _numbers(ax: Axes, y: bool = True) -> None:
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: short(x)))
    if y:
        ax.yaxis.set_major_formatter(FuncFormatter(lambda x, _: short(x)))


def _legend(ax: Axes, runs: Sequence[str]) -> None:
    if len(runs) > 1:
        ax.legend(
            frameon=False, labelcolor=INK, fontsize=10, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=min(3, len(runs))
        )
