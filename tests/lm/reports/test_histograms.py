"""A histogram has a step for each bin, as high as the logarithm of its count, and a line at each threshold."""

import math
import re
from xml.etree import ElementTree

from data.recipe.finish import bins
from lm.reports.histograms import BOTTOM, LEFT, RIGHT, TOP, histograms


def drawn(edges, counts, bounds):
    """Return (steps [(height, right end)], x of the thresholds, labels)."""
    rule = {"column": "c", "told": "c ≤ 1", "bounds": bounds}
    (one,) = histograms([rule, {"column": "other"}], {"c": {"edges": edges, "counts": counts}})
    assert (one["title"], one["note"]) == ("c", "c ≤ 1")
    root = ElementTree.fromstring(one["svg"])
    steps = [tuple(map(float, step)) for step in re.findall(r"V([\d.]+)H([\d.]+)", root.find("path").get("d"))]
    lines = [float(line.get("x1")) for line in root.iter("line") if line.get("stroke") == "var(--valid)"]
    return steps, lines, [text.text for text in root.iter("text")]


def test_shares():
    edges = bins(share=True).tolist()
    counts = [0, 9, 99] + [0] * (len(edges) - 4)
    steps, lines, labels = drawn(edges, counts, [0.25])
    assert [height for height, _ in steps[:3]] == [
        BOTTOM,
        round(BOTTOM - (BOTTOM - TOP) * math.log(10) / math.log(100), 2),
        TOP,
    ]
    assert len(steps) == len(counts) and steps[-1][1] == RIGHT
    assert lines == [round(LEFT + 0.25 * (RIGHT - LEFT), 2)]
    assert labels[:6] == ["0", "0.2", "0.4", "0.6", "0.8", "1"] and labels[6:9] == ["0", "1", "10"]


def test_counts_end_behind_the_last_bin_with_documents():
    edges = bins(share=False).tolist()
    counts = [1, 0, 0, 5] + [0] * (len(edges) - 5)
    steps, lines, labels = drawn(edges, counts, [1.0, 1e6])
    assert len(steps) == 5 and steps[3][0] == TOP
    assert lines == [round(LEFT + (RIGHT - LEFT) / 5, 2)]  # 1 is the first edge after 0; 10^6 lies outside
    assert labels[0] == "0"
    assert len(drawn(edges, [0] * (len(edges) - 1), [])[0]) == len(edges) - 1  # a corpus without documents
