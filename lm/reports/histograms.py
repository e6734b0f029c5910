"""Histograms of a corpus' measures with the thresholds of its rules."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from lm.reports import charts

SIZE, MARGINS = (5.4, 2.4), (0.15, 0.22, 0.98, 0.97)


def histograms(rules: Sequence[Mapping], figures: Mapping[str, Mapping]) -> list[dict]:
    """Return {"title", "note", "svg"} of each rule's column, with the thresholds as lines.

    rules: those of manifest.json. figures: column -> {"edges", "counts"}.
    """
    found = []
    for rule in rules:
        if one := figures.get(rule["column"]):
            drawn = charts.svg(f"h-{rule['column']}", _histogram(one, rule["bounds"]), size=SIZE, steps=False, margins=MARGINS)
            found.append({"title": rule["column"], "note": rule["told"], "svg": drawn})
    return found


def _histogram(one: Mapping, bounds: Sequence[float]):
    edges, counts = np.array(one["edges"], float), np.array(one["counts"], float)
    used = np.flatnonzero(counts)
    share = edges[-1] <= 1
    last = len(counts) if share or not len(used) else min(len(counts), used[-1] + 2)

    def draw(ax: Axes) -> None:
        # Bins of counts grow by powers, so they are drawn equally wide.
        places = edges if share else np.arange(len(edges))
        ax.stairs(counts[:last], places[: last + 1], fill=True, color=charts.TRAIN, alpha=0.6, linewidth=0)
        for bound in bounds:
            at = bound if share else float(np.interp(bound, edges, places))
            if at <= places[last]:
                ax.axvline(at, color=charts.VALID, linewidth=1.5)
        if not share:
            ticks = np.unique(np.linspace(0, last, 6).round().astype(int))
            ax.set_xticks(ticks, [charts.short(round(edges[tick])) for tick in ticks])
        ax.set_yscale("symlog")
        # Plain labels: Matplotlib takes longer to set its powers of ten than to draw the rest.
        ax.yaxis.set_major_formatter(lambda value, _: charts.short(round(value)))
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.set_ylim(bottom=0)
        ax.set_ylabel("documents")
        ax.set_xlabel("value of the measure")

    return draw
