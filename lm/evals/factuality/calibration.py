"""Calibration: confidences in 0…1 compared with the correctness of answers.

Nothing here depends on the order of the answers: equal confidences share a bin and a rank.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

BINS = 15
POINTS = 100  # maximum number of points of a risk-coverage curve


def calibration(confidences: Sequence[float], right: Sequence[bool]) -> dict[str, Any]:
    """Return {"ece_equal_width", "ece_equal_mass", "brier", "auroc", "aurc", "n", "bins": {"equal_width", "equal_mass"},
    "risk_coverage"}: metrics and data for plots. A metric is None if it is undefined."""
    wide, wide_bins = ece(confidences, right, "equal_width")
    mass, mass_bins = ece(confidences, right, "equal_mass")
    area, curve = risk_coverage(confidences, right)
    return {
        "ece_equal_width": wide,
        "ece_equal_mass": mass,
        "brier": brier(confidences, right),
        "auroc": auroc(confidences, right),
        "aurc": area,
        "n": len(right),
        "bins": {"equal_width": wide_bins, "equal_mass": mass_bins},
        "risk_coverage": curve,
    }


def ece(
    confidences: Sequence[float], right: Sequence[bool], kind: Literal["equal_width", "equal_mass"], bins: int = BINS
) -> tuple[float | None, list[dict]]:
    """Return the expected calibration error Σ_b n_b/n · |accuracy_b − confidence_b| (Naeini et al. 2015, Guo et al. 2017) and
    its bins.

    Equal width: ((b−1)/B, b/B], the first including 0. Equal mass: the same number of answers in each, except that equal
    confidences stay together. A bin is {"low", "high", "n", "confidence", "accuracy"}; empty bins are left out. For equal mass,
    low and high are the least and greatest confidence in the bin.
    """
    n = len(right)
    groups: dict[int, list[tuple[float, bool]]] = {}
    if kind == "equal_width":
        for confidence, hit in zip(confidences, right, strict=True):
            groups.setdefault(min(bins - 1, max(0, math.ceil(confidence * bins) - 1)), []).append((confidence, hit))
    else:
        begin = 0
        for confidence, hits in _ranked(confidences, right, descending=False):
            middle = begin + len(hits) / 2  # rank of the group's middle, in 0…n
            groups.setdefault(min(bins - 1, int(middle * bins / n)), []).extend((confidence, hit) for hit in hits)
            begin += len(hits)
    table = []
    for index in sorted(groups):
        values = [c for c, _ in groups[index]]
        edges = (index / bins, (index + 1) / bins) if kind == "equal_width" else (min(values), max(values))
        accuracy = sum(hit for _, hit in groups[index]) / len(values)
        mean = math.fsum(values) / len(values)
        table.append({"low": edges[0], "high": edges[1], "n": len(values), "confidence": mean, "accuracy": accuracy})
    return (math.fsum(b["n"] / n * abs(b["accuracy"] - b["confidence"]) for b in table) if n else None), table


def brier(confidences: Sequence[float], right: Sequence[bool]) -> float | None:
    """Return the mean of (confidence − right)² (Brier 1950)."""
    return math.fsum((c - hit) ** 2 for c, hit in zip(confidences, right, strict=True)) / len(right) if right else None


def auroc(confidences: Sequence[float], right: Sequence[bool]) -> float | None:
    """Return the probability that a right answer is more confident than a wrong one, ties ½; None if one kind is missing."""
    hits = sum(right)
    misses = len(right) - hits
    if not hits or not misses:
        return None
    _, which, counts = np.unique(confidences, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[which]  # from 1, ties at their middle
    return float(ranks[np.asarray(right, bool)].sum() - hits * (hits + 1) / 2) / (hits * misses)


def risk_coverage(confidences: Sequence[float], right: Sequence[bool]) -> tuple[float | None, dict[str, list[float]]]:
    """Return the area under the risk-coverage curve, and the curve (Geifman and El-Yaniv 2017).

    risk(k) is the share of wrong answers among the k most confident, at coverage k/n; AURC = Σ_k risk(k) / n. Equal confidences
    have no order, so their wrong answers are spread evenly: the mean over all orders.

    Returns: (AURC, {"coverage", "risk"}), with at most POINTS points.
    """
    n, risks, wrong, k = len(right), [], 0.0, 0
    for _, group in _ranked(confidences, right, descending=True):
        share = 1 - sum(group) / len(group)
        for step in range(1, len(group) + 1):
            risks.append((wrong + step * share) / (k + step))
        wrong, k = wrong + len(group) - sum(group), k + len(group)
    shown = sorted({math.ceil(n * point / POINTS) for point in range(1, POINTS + 1)}) if n else []
    return (math.fsum(risks) / n if n else None), {"coverage": [k / n for k in shown], "risk": [risks[k - 1] for k in shown]}


def _ranked(confidences: Sequence[float], right: Sequence[bool], *, descending: bool) -> list[tuple[float, list[bool]]]:
    """Return sorted (confidence, correctness of the answers with it)."""
    pairs = sorted(zip(confidences, right, strict=True), reverse=descending)
    return [(confidence, [bool(hit) for _, hit in group]) for confidence, group in itertools.groupby(pairs, lambda p: p[0])]
