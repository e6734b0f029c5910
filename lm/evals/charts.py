"""Charts of a run's metrics as inline SVG, for the reports' pages.

Curves are drawn by Matplotlib and take font and colours from the page, the colours from its CSS variables, so that they follow
the reader's light or dark theme. Nothing is fetched and no script runs.
"""

import io
import math
import re
from collections.abc import Callable, Sequence

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

POINTS = 600  # drawn per curve, whatever the length of the run

# Matplotlib cannot write CSS variables, so it draws in these stand-ins, which are replaced in its SVG.
INK, MUTED, LINE, TRAIN, VALID = "#010201", "#010202", "#010203", "#010204", "#010205"
THIRD, FOURTH, FIFTH, SIXTH = "#010206", "#010207", "#010208", "#010209"
VARIABLES = {
    INK: "ink", MUTED: "muted", LINE: "line", TRAIN: "train", VALID: "valid",
    THIRD: "third", FOURTH: "fourth", FIFTH: "fifth", SIXTH: "sixth",
}  # fmt: skip
SERIES = (TRAIN, VALID, THIRD, FOURTH, FIFTH, SIXTH)  # of the curves that share a chart

Curve = tuple[np.ndarray, np.ndarray]  # steps and values, float64


def svg(
    name: str, draw: Callable[[Axes], None], tokens: Curve | None = None, *, size: tuple[float, float] = (5.4, 3.4),
    steps: bool = True,
) -> Markup:  # fmt: skip
    """One chart over steps, along its top with the `tokens` seen by then, as SVG that inherits the page's font and theme.

    Real text instead of outlines, and ids prefixed by `name`, since every chart shares the page's id space.

    Args: size: width and height, of 72 units each. steps: False of a chart over something else, whose ticks `draw` sets.
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
        figure = Figure(figsize=size, layout="constrained")
        ax = figure.add_subplot()
        draw(ax)
        ax.grid(True, linewidth=0.6)
        ax.set_axisbelow(True)
        ax.tick_params(which="both", length=0)
        if steps:
            ax.set_xlabel("step")
            ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: short(x)))
            ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: short(y)))
        if tokens is not None and len(tokens[0]) > 1:
            _token_axis(ax, *tokens)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawn = buffer.getvalue()
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn[drawn.index("<svg") :], flags=re.DOTALL)
    drawn = re.sub(r'(\bid="|"#|url\(#)', rf"\g<1>{name}-", drawn)
    for colour, variable in VARIABLES.items():
        drawn = drawn.replace(colour, f"var(--{variable})")
    return Markup(drawn)


def _token_axis(ax: Axes, steps: np.ndarray, tokens: np.ndarray) -> None:
    """Round token counts at the steps that reached them: exact, also where the batch size changed on the way."""
    low, high = np.interp(ax.get_xlim(), steps, tokens)
    ticks = [tick for tick in MaxNLocator(5).tick_values(low, high) if low <= tick <= high]
    top = ax.secondary_xaxis("top")
    top.set_xticks(np.interp(ticks, tokens, steps), [short(tick) for tick in ticks])
    top.tick_params(length=0)
    top.set_xlabel("tokens")


def column(rows: Sequence[dict], key: str) -> Curve:
    """Of the rows where `key` is a finite number."""
    pairs = [(row["step"], row[key]) for row in rows if isinstance(row.get(key), (int, float)) and math.isfinite(row[key])]
    x, y = np.array(pairs, np.float64).reshape(-1, 2).T
    return x, y


def thin(x: np.ndarray, y: np.ndarray, points: int = POINTS) -> Curve:
    """At most `points` of a curve: the lowest and the highest of each stretch, so that no spike is lost."""
    if len(x) <= points:
        return x, y
    keep = [0, len(x) - 1]
    for stretch in np.array_split(np.arange(len(x)), points // 2 - 1):
        keep += [stretch[y[stretch].argmin()], stretch[y[stretch].argmax()]]
    keep = np.unique(keep)
    return x[keep], y[keep]


def trend(x: np.ndarray, y: np.ndarray, points: int = POINTS) -> Curve:
    """The trend of a noisy curve, at `points` of its places at most: at each, a straight line through its neighbours.

    The line is fitted by least squares to a fiftieth of the curve on either side (Cleveland 1979, with equal weights). In the
    middle of evenly spaced points that is their mean, so that nothing moves along x; at both ends the window stays as wide and
    lies to one side, and the slope of the line keeps the trend from lagging. A straight line stays as it is. x ascends.
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


def from_zero(ax: Axes) -> None:
    """Lets the frame begin at 0 unless something that is drawn already lies below. Call it when everything is drawn."""
    if ax.dataLim.ymin >= 0:
        ax.set_ylim(bottom=0)


def dots(curve: Curve) -> dict:
    """A few points are shown as points: a line through one of them would be invisible."""
    return {"marker": "o", "markersize": 4} if len(curve[0]) <= 30 else {}


def short(value: float) -> str:
    """Four digits and a unit of count: 3.277B, 1.5M, 20k, 0.003, 1e-05."""
    for size, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{suffix}"
    return f"{value:.4g}"
