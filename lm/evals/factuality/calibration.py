"""Calibration: confidences in 0…1 compared with the correctness of answers.

Nothing here depends on the order of the answers: equal confidences share a bin and a rank.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

BINS = 15
POINTS = 100  # maximum number of points of a risk-coverage curve


def calibration(confidences: Sequence[float], right: Sequence[bool]) -> dict[str, Any]:
    """Return {"ece_equal_width", "brier", "auroc", "aurc", "n", "bins": {"equal_width"}, "risk_coverage"}: metrics and data for
    plots. A metric is None if it is undefined."""
    error, bins = ece(confidences, right)
    area, curve = risk_coverage(confidences, right)
    return {
        "ece_equal_width": error,
        "brier": brier(confidences, right),
        "auroc": auroc(confidences, right),
        "aurc": area,
        "n": len(right),
        "bins": {"equal_width": bins},
        "risk_coverage": curve,
    }


def ece(confidences: Sequence[float], right: Sequence[bool], bins: int = BINS) -> tuple[float | None, list[dict]]:
    """Return the expected calibration error Σ_b n_b/n · |accuracy_b − confidence_b| (Naeini et al. 2015, Guo et al. 2017) and
    its bins ((b−1)/B, b/B], the first including 0: {"low", "high", "n", "confidence", "accuracy"}, without empty ones."""
    groups: dict[int, list[tuple[float, bool]]] = {}
    for confidence, hit in zip(confidences, right, strict=True):
        groups.setdefault(min(bins - 1, max(0, math.ceil(confidence * bins) - 1)), []).append((confidence, hit))
    table = []
    for index, group in sorted(groups.items()):
        n = len(group)
        mean, accuracy = math.fsum(c for c, _ in group) / n, sum(hit for _, hit in group) / n
        table.append({"low": index / bins, "high": (index + 1) / bins, "n": n, "confidence": mean, "accuracy": accuracy})
    errors = [b["n"] / len(right) * abs(b["accuracy"] - b["confidence"]) for b in table]
    return math.fsum(errors) if errors else None, table


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
    pairs = sorted(zip(confidences, right, strict=True), reverse=True)
    for _, of_confidence in itertools.groupby(pairs, key=lambda pair: pair[0]):
        group = [hit for _, hit in of_confidence]
        share = 1 - sum(group) / len(group)
        risks += [(wrong + step * share) / (k + step) for step in range(1, len(group) + 1)]
        wrong, k = wrong + len(group) - sum(group), k + len(group)
    shown = sorted({math.ceil(n * point / POINTS) for point in range(1, POINTS + 1)}) if n else []
    return (math.fsum(risks) / n if n else None), {"coverage": [k / n for k in shown], "risk": [risks[k - 1] for k in shown]}
