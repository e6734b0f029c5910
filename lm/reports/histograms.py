"""Histograms of a corpus' measures with the thresholds of its rules, as SVG.

They are drawn here and not with Matplotlib, which takes 0.8 CPU seconds for them: as long as the rules take for 12 MB of text.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup

from lm.reports.page import short

WIDTH, HEIGHT = 389, 173  # of the drawing; the page scales it
LEFT, TOP, RIGHT, BOTTOM = 58, 6, 381, 135  # of the axes
SIZE = 11  # of letters


def histograms(rules: Sequence[Mapping], figures: Mapping[str, Mapping]) -> list[dict]:
    """Return {"title", "note", "svg"} of each rule's column, with the thresholds as lines.

    rules: those of manifest.json. figures: column -> {"edges", "counts"}.
    """
    return [
        {"title": rule["column"], "note": rule["told"], "svg": svg(one["edges"], one["counts"], rule["bounds"])}
        for rule in rules
        if (one := figures.get(rule["column"]))
    ]


def svg(edges: Sequence[float], counts: Sequence[int], bounds: Sequence[float]) -> Markup:
    """Draw documents over the value of a measure. The height of a bin is log(1 + documents).

    edges: of the bins, ascending. Bins of shares end at 1; others grow by powers, so they are drawn equally wide, up to the
    last one with documents. bounds: thresholds; those to the right of the drawing are left out.
    """
    share, used = edges[-1] <= 1, np.flatnonzero(counts)
    last = len(counts) if share or not len(used) else min(len(counts), int(used[-1]) + 2)
    places = np.asarray(edges, float) if share else np.arange(len(edges), dtype=float)
    top = math.log1p(max(1, *counts))

    def x(place: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * float(place / places[last]), 2)

    def y(documents: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * math.log1p(documents) / top, 2)

    if share:
        ticks = [(x(k / 5), short(k / 5)) for k in range(6)]
    else:
        ticks = [(x(k), short(round(edges[k]))) for k in np.unique(np.linspace(0, last, 6).round().astype(int)).tolist()]
    parts = [part for at, label in ticks for part in (_line(at, TOP, at, BOTTOM), _text(at, BOTTOM + 15, label))]
    for documents in (0, *(10**k for k in range(math.floor(math.log10(max(1, *counts))) + 1))):
        at = y(documents)
        parts += [_line(LEFT, at, RIGHT, at), _text(LEFT - 5, at + 4, short(documents), "end")]
    steps = "".join(f"V{y(counts[k])}H{x(places[k + 1])}" for k in range(last))
    parts.append(f'<path d="M{LEFT},{BOTTOM}{steps}V{BOTTOM}Z" fill="var(--train)" fill-opacity="0.6"/>')
    at = [bound if share else float(np.interp(bound, edges, places)) for bound in bounds]
    parts += [_line(x(place), TOP, x(place), BOTTOM, "valid", 1.5) for place in at if place <= places[last]]
    parts.append(_text((LEFT + RIGHT) / 2, HEIGHT - 5, "value of the measure"))
    parts.append(f'<g transform="translate(12 {(TOP + BOTTOM) / 2}) rotate(-90)">{_text(0, 0, "documents")}</g>')
    return Markup(f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>')


def _line(x1: float, y1: float, x2: float, y2: float, colour: str = "line", width: float = 0.6) -> str:
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="var(--{colour})" stroke-width="{width}"/>'


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="{SIZE}" fill="var(--muted)">{text}</text>'
