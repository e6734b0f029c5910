"""Charts as inline SVG for the report pages: curves of metrics, and of calibration.

Matplotlib draws them. Font and colours come from the page (colours from its CSS variables), so they follow the reader's light
or dark theme. Nothing is fetched and no script runs.
"""

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from lm.reports.metric_groups import COLOURS
from lm.reports.page import short
from lm.train.history import Curve

# Matplotlib cannot write CSS variables, so it draws in these placeholder colours, which are replaced in its SVG.
NAMES = ("ink", "muted", "line", *COLOURS)
VARIABLES = {f"#0102{number:02x}": name for number, name in enumerate(NAMES, 1)}
INK, MUTED, LINE, *SERIES = VARIABLES  # SERIES: colours of curves in one chart
TRAIN, VALID = SERIES[:2]
# Without colours, curves of one chart are told apart by their lines or markers, in the order of SERIES.
LINES = ("-", (0, (6, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (10, 3)), (0, (3, 1.5, 1.5, 1.5, 1.5, 1.5)))
MARKERS = "o^DvPX"
LABEL = 30  # maximum characters of a label
SIZE = 5.4, 3.4  # of a chart, in units of 72
COLUMNS = 3  # maximum columns of a legend


def svg(name: str, draw: Callable[[Axes], None], tokens: Curve | None = None, *, steps: bool = True, unit: str = "") -> Markup:
    """Draw one chart over steps as SVG with the page's font and theme. unit: of the y axis.

    Text stays text, and ids are prefixed by `name`, because all charts of a page share its id space. tokens: token counts by
    step, for the top axis. steps: False for a chart over something else; `draw` then sets its ticks.
    """
    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.size": 11,
        "text.color": INK,
        "axes.labelcolor": MUTED,
        "axes.edgecolor": LINE,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "grid.color": LINE,
        "axes.spines.right": False,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=SIZE)
        ax = figure.add_subplot()
        draw(ax)
        ax.grid(True, linewidth=0.6)
        ax.set_axisbelow(True)
        ax.tick_params(which="both", length=0)
        if steps:
            ax.set_xlabel("step")
            ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            for axis in (ax.xaxis, ax.yaxis):
                _name_ticks(axis)
        if unit:
            ax.set_ylabel(unit)
        if tokens is not None and len(tokens[0]) > 1:
            _token_axis(ax, *tokens)
        if steps:
            figure.subplots_adjust(*_fitted(ax))  # where Matplotlib measures every text, it takes twice as long
        else:
            figure.set_layout_engine("constrained")
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawn = buffer.getvalue()
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn[drawn.index("<svg") :], flags=re.DOTALL)
    drawn = re.sub(r'(\bid="|"#|url\(#)', rf"\g<1>{name}-", drawn)
    for colour, variable in VARIABLES.items():
        drawn = drawn.replace(colour, f"var(--{variable})")
    return Markup(drawn)


def _name_ticks(axis: Axis) -> None:
    """Label the ticks of an axis with as many digits as tell them apart."""
    ticks = set(axis.get_majorticklocs())
    digits = next((n for n in range(4, 16) if len({short(tick, n) for tick in ticks}) == len(ticks)), 16)
    axis.set_major_formatter(FuncFormatter(lambda value, _: short(value, digits)))


def _fitted(ax: Axes) -> tuple[float, float, float, float]:
    """Return margins for the tick labels of a chart over steps, its y label, its legend and its token axis."""
    line, digit, pad = 17, 7, 6  # of text of size 11, in units of 72 an inch
    width, height = 72 * ax.figure.get_size_inches()
    low, high = sorted(ax.get_ylim())
    ticks = [tick for tick in ax.yaxis.get_majorticklocs() if low <= tick <= high]
    digits = max(map(len, ax.yaxis.get_major_formatter().format_ticks(ticks)), default=1)
    left = pad + digit * digits + line * bool(ax.get_ylabel())
    top = 2 * line if ax.child_axes else pad
    names = ax.get_legend_handles_labels()[1] if ax.get_legend() else []
    lines = 2 + -(-len(names) // _columns(names))
    return left / width, lines * line / height, 1 - 3 * pad / width, 1 - top / height


def _columns(names: Sequence[str]) -> int:
    """Return how many names of a legend fit side by side."""
    return max(1, min(COLUMNS, int(72 * SIZE[0] / (50 + 6 * max(map(len, names), default=0)))))


def _token_axis(ax: Axes, steps: np.ndarray, tokens: np.ndarray) -> None:
    """Put round token counts at the steps that reached them; exact even if the batch size changed."""
    low, high = np.interp(ax.get_xlim(), steps, tokens)
    ticks = [tick for tick in MaxNLocator(5).tick_values(low, high) if low <= tick <= high]
    top = ax.secondary_xaxis("top")
    top.set_xticks(np.interp(ticks, tokens, steps), [short(tick) for tick in ticks])
    top.tick_params(length=0)
    top.set_xlabel("tokens")


def from_zero(ax: Axes) -> None:
    """Start the y axis at 0, unless data lie below. Call it when everything is drawn."""
    low, high = ax.dataLim.intervaly
    if 0 <= low and 0 < high < math.inf:
        ax.set_ylim(0, 1.05 * high)
    elif low >= 0:
        ax.set_ylim(bottom=0)


def dots(curve: Curve, marker: str = MARKERS[0]) -> dict:
    """Return the style of markers for a curve with few points, whose line alone could be invisible."""
    return {"marker": marker, "markersize": 4} if len(curve[0]) <= 30 else {}


def held_out(curve: Curve) -> dict:
    """Return the style of a held-out curve: hollow squares, at most 16 of them, on a line that the caller may choose."""
    every = max(1, -(-len(curve[0]) // 16))
    return {"marker": "s", "markersize": 5, "markerfacecolor": "none", "markevery": every}


def legend(ax: Axes) -> None:
    """Name the curves below the chart, where the names hide nothing, if there are several."""
    names = ax.get_legend_handles_labels()[1]
    if len(names) > 1:
        place = {"loc": "lower center", "bbox_to_anchor": (0.5, 0), "bbox_transform": ax.figure.transFigure, "borderaxespad": 0}
        ax.legend(frameon=False, labelcolor=INK, fontsize=10, handlelength=2.6, ncols=_columns(names), **place)


def calibration(name: str, title: str, runs: Mapping[str, Sequence[Mapping]]) -> dict:
    """Return {"title", "note", "svg"} of accuracy over confidence: a calibrated model lies on the diagonal.

    runs: {name: bins {"confidence", "accuracy", "n"}}; a bin with more items has a larger dot.
    """

    def draw(ax: Axes) -> None:
        ax.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        for (label, bins), colour, line in zip(runs.items(), SERIES, LINES):
            x, y, n = ([b[key] for b in bins] for key in ("confidence", "accuracy", "n"))
            ax.plot(x, y, color=colour, linestyle=line, linewidth=1.6, label=clean(label))
            ax.scatter(x, y, [12 + 90 * size / max(n) for size in n], color=colour, alpha=0.6, linewidths=0)
        ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="confidence", ylabel="accuracy")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(MaxNLocator(5))
            axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        if len(runs) > 1:
            place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncols": min(3, len(runs))}
            ax.legend(frameon=False, labelcolor=INK, fontsize=10, **place)

    note = "accuracy by confidence; larger dots: more answers; below the diagonal: overconfident"
    return {"title": title, "note": note, "svg": svg(name, draw, steps=False)}


def over_budget(name: str, title: str, runs: Mapping[str, Sequence[tuple[int, float, float, float]]]) -> dict:
    """Return {"title", "note", "svg"} of a metric over the tokens that an answer may think for.

    runs: {name: (tokens, value, and the ends of its interval)}.
    """

    def draw(ax: Axes) -> None:
        for (label, points), colour, line, marker in zip(runs.items(), SERIES, LINES, MARKERS):
            x, y, low, high = map(np.asarray, zip(*sorted(points)))
            ax.plot(x, y, color=colour, linestyle=line, marker=marker, linewidth=1.6, label=clean(label))
            ax.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        ax.set(xlabel="most tokens of a thought", ylabel=clean(title.rpartition(": ")[2]))
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(MaxNLocator(5))
            axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        legend(ax)

    return {"title": title, "note": "by the budget of a thought, with 95 % intervals", "svg": svg(name, draw, steps=False)}


def clean(label: str) -> str:
    """Return a label that Matplotlib can draw: one line, no formula, no control characters, limited length."""
    text = "".join(c if c.isprintable() else " " for c in str(label))
    text = text if len(text) <= LABEL else text[: LABEL - 1] + "…"
    return text.replace("$", r"\$")
