"""Is the difference of two models on the same items more than chance? Paired tests, exact where that is cheap.

Items are taken as independent of one another; several attempts at one request are not, and p is then too small.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import bdtr

Z = 1.959963984540054  # of a 95 % interval
EXACT = 12  # differences up to which all signs are tried
DRAWS = 9_999  # of signs, where they are too many
CHUNK = 1 << 22  # signs drawn at a time


def comparison_row(
    before: float | None,
    after: float | None,
    difference: float | None,
    stderr: float | None = None,
    *,
    p: float | None = None,
    test: str | None = None,
    n: int | None = None,
) -> dict[str, Any]:
    """Return {"before", "after", "difference", "stderr", "low" and "high": 95 % interval of the difference, "p": two-sided,
    "test", "n"}. What is not known is None."""
    low, high = (None, None) if stderr is None else (difference - Z * stderr, difference + Z * stderr)
    figures = {"before": before, "after": after, "difference": difference, "stderr": stderr, "low": low, "high": high}
    return figures | {"p": p, "test": test, "n": n}


def paired(before: Sequence[float], after: Sequence[float]) -> dict[str, Any]:
    """Return the `comparison_row` of two models on the same items: the mean of after − before, its standard error (sample
    standard deviation of the differences / √n), and its p. The test is mcnemar where all values are 0 or 1, else permutation.
    """
    n = len(before)
    x, y = np.array(before, np.float64), np.array(after, np.float64)
    if not n:
        return comparison_row(None, None, None, n=0)
    d = y - x
    difference = math.fsum(d) / n
    stderr = math.sqrt(math.fsum((d - difference) ** 2) / (n - 1) / n) if n > 1 else None
    binary = bool(np.isin(x, (0, 1)).all() and np.isin(y, (0, 1)).all())
    p = mcnemar(int((d < 0).sum()), int((d > 0).sum())) if binary else permutation(d)
    means = math.fsum(x) / n, math.fsum(y) / n
    return comparison_row(*means, difference, stderr, p=p, test="mcnemar" if binary else "permutation", n=n)


def mcnemar(lost: int, won: int) -> float:
    """Return the two-sided exact p of McNemar's test (1947): of the items that only one of the two solved, each is as likely
    the one's as the other's. p = min(1, 2·Σ_{k ≤ min(lost, won)} C(n, k) / 2ⁿ), n = lost + won."""
    return min(1.0, 2 * float(bdtr(min(lost, won), lost + won, 0.5)))


def permutation(differences: Sequence[float], seed: int = 0) -> float:
    """Return the two-sided p of Fisher's test of paired differences: had chance alone decided, each could as well have the
    other sign.

    The share of the sign patterns whose |Σ| is at least the one found: of all of them up to 12 differences, else of 9,999 drawn
    ones and the one found, (1 + hits) / (1 + draws).
    """
    d = np.array([x for x in differences if x], np.float64)
    if not len(d):
        return 1.0
    least = abs(math.fsum(d)) - 1e-9 * np.abs(d).sum()  # a sum may be rounded otherwise in another order
    if len(d) <= EXACT:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=len(d))))
        return float((np.abs(signs @ d) >= least).mean())
    random, hits, left = np.random.default_rng(seed), 0, DRAWS
    while left:
        rows = min(left, max(1, CHUNK // len(d)))
        signs = np.unpackbits(random.integers(0, 256, (rows, (len(d) + 7) // 8), np.uint8), axis=1)[:, : len(d)]
        hits += int((np.abs(2 * (signs @ d) - d.sum()) >= least).sum())
        left -= rows
    return (1 + hits) / (1 + DRAWS)


def unpaired(before: float, after: float, stderr_before: float, stderr_after: float) -> dict[str, Any]:
    """Return the `comparison_row` of two figures that no item has: z = difference / √(stderr₁² + stderr₂²), as if of different
    items. Models that find the same items hard make this p too large."""
    stderr, difference = math.hypot(stderr_before, stderr_after), after - before
    p = math.erfc(abs(difference) / stderr / math.sqrt(2)) if stderr else None
    return comparison_row(before, after, difference, stderr, p=p, test="z")


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Return each p corrected for their number (Holm 1979): the k-th smallest of m times m − k + 1, at most 1, and never below
    a smaller one's. None stays None and counts for nothing."""
    known = sorted((value, i) for i, value in enumerate(p) if value is not None)
    corrected: list[float | None] = [None] * len(p)
    highest = 0.0
    for rank, (value, i) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * value))
        corrected[i] = highest
    return corrected
