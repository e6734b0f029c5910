"""Histograms of a corpus' measures with the thresholds of its rules.

templates/curate.html.j2 draws them as SVG of a few elements: Matplotlib would take longer to import than all else in the report
takes.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lm.reports.page import short

FRAME = LEFT, TOP, RIGHT, BOTTOM = 44, 8, 366, 140  # in a picture of 389 × 173


def histograms(rules: Sequence[Mapping], figures: Mapping[str, Mapping]) -> list[dict]:
    """Return {"title", "note"} and what `drawn` returns for the column of each rule.

    rules: those of manifest.json. figures: column -> {"edges", "counts"}.
    """
    return [
        {"title": rule["column"], "note": rule["told"], **drawn(figures[rule["column"]], rule["bounds"])}
        for rule in rules
        if rule["column"] in figures
    ]


def drawn(figure: Mapping, bounds: Sequence[float]) -> dict[str, Any]:
    """Return {"area": the path of a histogram of documents, "across", "up": [(place, text)] of the ticks, "bounds": places}.

    The height is the logarithm of 1 + the number of documents.
    """
    edges, counts = figure["edges"], figure["counts"]
    is_share = edges[-1] <= 1
    used = [i for i, count in enumerate(counts) if count]
    last = len(counts) if is_share or not used else min(len(counts), used[-1] + 2)
    # Bins of counts grow by powers, so they are drawn equally wide.
    places = edges[: last + 1] if is_share else range(last + 1)
    highest = math.log10(1 + max(counts, default=0)) or 1.0

    def x(place: float) -> str:
        return f"{LEFT + (RIGHT - LEFT) * place / places[-1]:.1f}"

    def y(count: float) -> str:
        return f"{BOTTOM - (BOTTOM - TOP) * math.log10(1 + count) / highest:.1f}"

    powers = range(0, int(math.log10(max(1, *counts))) + 1, 1 + int(highest) // 5)
    heights = [0, *(10**power for power in powers)] if used else [0]
    ticks = [(place, round(place, 1)) for place in np.linspace(0, 1, 6)]
    if not is_share:
        ticks = [(i, round(edges[i])) for i in np.unique(np.linspace(0, last, 6).round().astype(int)).tolist()]
    at = [bound if is_share else float(np.interp(bound, edges, range(len(edges)))) for bound in bounds]
    return {
        "area": f"M{x(0)} {y(0)}" + "".join(f"V{y(counts[i])}H{x(places[i + 1])}" for i in range(last)) + f"V{y(0)}Z",
        "across": [(x(place), short(value)) for place, value in ticks],
        "up": [(y(n), short(n)) for n in heights],
        "bounds": [x(place) for place in at if place <= places[-1]],
    }
