"""Histograms of a corpus' measures with the thresholds of its rules, as SVG of a few elements: Matplotlib would take longer to
import than all else in the report takes."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup

from lm.reports.page import short

LEFT, TOP, RIGHT, BOTTOM = 44, 8, 366, 140  # of the frame, in a picture of 389 × 173
SVG = """<svg viewBox="0 0 389 173" role="img" aria-label="{label}" font-size="11" fill="var(--muted)">{lines}
<path d="{area}" fill="var(--train)" opacity="0.6"/>{bounds}{texts}</svg>"""


def histograms(rules: Sequence[Mapping], figures: Mapping[str, Mapping]) -> list[dict]:
    """Return {"title", "note", "svg"} of each rule's column, with the thresholds as lines.

    rules: those of manifest.json. figures: column -> {"edges", "counts"}.
    """
    return [
        {"title": rule["column"], "note": rule["told"], "svg": drawn(rule["column"], figures[rule["column"]], rule["bounds"])}
        for rule in rules
        if rule["column"] in figures
    ]


def drawn(label: str, figure: Mapping, bounds: Sequence[float]) -> Markup:
    """Return a histogram of documents; the height is the logarithm of 1 + their number."""
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

    area = f"M{x(0)} {y(0)}" + "".join(f"V{y(counts[i])}H{x(places[i + 1])}" for i in range(last)) + f"V{y(0)}Z"
    powers = range(0, int(math.log10(max(1, *counts))) + 1, 1 + int(highest) // 5)
    heights = [0, *(10**power for power in powers)] if used else [0]
    ticks = [(place, short(round(place, 1))) for place in np.linspace(0, 1, 6)]
    if not is_share:
        ticks = [(i, short(round(edges[i]))) for i in np.unique(np.linspace(0, last, 6).round().astype(int)).tolist()]
    lines = "".join(_line(LEFT, y(n), RIGHT, y(n), "line", 0.6) for n in heights)
    lines += "".join(_line(x(place), TOP, x(place), BOTTOM, "line", 0.6) for place, _ in ticks)
    at = [bound if is_share else float(np.interp(bound, edges, range(len(edges)))) for bound in bounds]
    texts = "".join(f'<text x="{LEFT - 5}" y="{y(n)}" dy="4" text-anchor="end">{short(n)}</text>' for n in heights)
    texts += "".join(f'<text x="{x(place)}" y="{BOTTOM + 14}" text-anchor="middle">{text}</text>' for place, text in ticks)
    texts += f'<text x="{(LEFT + RIGHT) / 2}" y="{BOTTOM + 29}" text-anchor="middle">value of the measure</text>'
    texts += f'<text transform="translate(11 {(TOP + BOTTOM) / 2}) rotate(-90)" text-anchor="middle">documents</text>'
    return Markup(SVG).format(
        label=label,
        lines=Markup(lines),
        area=area,
        bounds=Markup("".join(_line(x(place), TOP, x(place), BOTTOM, "valid", 1.5) for place in at if place <= places[-1])),
        texts=Markup(texts),
    )


def _line(x1: float | str, y1: float | str, x2: float | str, y2: float | str, colour: str, width: float) -> str:
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="var(--{colour})" stroke-width="{width}"/>'
