"""95 % intervals of metrics over items that may come in groups, and a permutation test.

Items that vary one template are not independent: n of them count as n / deff, the design effect (Kish 1965), which is the
variance of the mean with whole groups as units over that with items as units. Draws depend on the values, not on their order.
"""

import math
from collections.abc import Callable, Hashable, Sequence

import numpy as np
from scipy.special import ndtr, stdtrit

from lm.evals.stats.measures import mean
from lm.evals.stats.significance import Z

DRAWS = 2000
CHUNK = 1 << 22  # numbers drawn at a time

Interval = tuple[float, float] | tuple[None, None]
NOTHING = (None, None)


def named(name: str, interval: Interval) -> dict[str, float | None]:
    return {f"{name}_low": interval[0], f"{name}_high": interval[1]}


def wilson(hits: int, n: int, z: float = Z) -> tuple[float, float]:
    """Return the score interval of a binomial share (Wilson 1927): all p with |hits/n − p| ≤ z·√(p(1−p)/n).

    Without trials it is (0, 1).
    """
    if not n:
        return 0.0, 1.0
    p = hits / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (0.0 if hits == 0 else centre - half), (1.0 if hits == n else centre + half)


def effective(values: Sequence[float], groups: Sequence[Hashable] | None = None) -> float:
    """Return the effective number of independent items: n / deff · (z/t)².

    deff = (G/(G−1) · Σ_g (Σ_{i in g} (y_i − ȳ))²) / (n/(n−1) · Σ_i (y_i − ȳ)²) for G groups. z and t are the 97.5 % points of
    the normal distribution and of Student's with G − 1 degrees of freedom; z/t corrects for few groups (Korn and Graubard
    1998). The result is n if deff ≤ 1 or deff is undefined.
    """
    n = len(values)
    totals: dict[Hashable, float] = {}
    middle = math.fsum(values) / n if n else 0.0
    for value, group in zip(values, groups or range(n), strict=True):
        totals[group] = totals.get(group, 0.0) + value - middle
    squares = math.fsum((value - middle) ** 2 for value in values)
    if len(totals) < 2 or not squares:
        return float(n)
    G = len(totals)
    deff = math.fsum(total * total for total in totals.values()) * G / (G - 1) / (squares * n / (n - 1))
    return float(n / deff * (Z / stdtrit(G - 1, 0.975)) ** 2) if deff > 1 else float(n)


def of_share(hits: Sequence[float], groups: Sequence[Hashable] | None = None) -> Interval:
    """Return the score interval (Wilson 1927) of the mean of values 0…1, at the effective number of items."""
    if not hits:
        return NOTHING
    n = effective(hits, groups)
    return wilson(math.fsum(hits) / len(hits) * n, n)


def of_signs(signs: Sequence[float], groups: Sequence[Hashable] | None = None) -> Interval:
    """Return the adjusted Wald interval of a mean of values −1…1, within −1…1.

    It adds one +1 and one −1 (Bonett and Price 2012, for differences of paired shares), so that a few equal items do not give
    an interval of width 0."""
    if not signs:
        return NOTHING
    n = effective(signs, groups)
    scale = n / len(signs)
    middle = scale * math.fsum(signs) / (n + 2)
    variance = (scale * math.fsum(sign * sign for sign in signs) + 2) / (n + 2) - middle * middle
    half = Z * math.sqrt(variance / (n + 2))
    return max(-1.0, middle - half), min(1.0, middle + half)


def share(name: str, hits: Sequence[float], groups: Sequence[Hashable] | None = None) -> dict[str, float | None]:
    """Return {name, name_stderr, name_low, name_high}: the mean of values 0…1 with the interval `of_share`."""
    return mean(name, hits) | named(name, of_share(hits, groups))


def signed_mean(name: str, signs: Sequence[float], groups: Sequence[Hashable] | None = None) -> dict[str, float | None]:
    """Return {name, name_stderr, name_low, name_high}: the mean of values −1…1 with the interval `of_signs`."""
    return mean(name, signs) | named(name, of_signs(signs, groups))


def resampled(
    name: str, units: Sequence[np.ndarray], statistic: Callable[[np.ndarray], np.ndarray], draws: int = DRAWS, seed: int = 0
) -> dict[str, float | None]:
    """Return {name: value, name_stderr, name_low, name_high}, with errors from the bootstrap over units (Efron 1979).

    The interval corrects for few units (Hesterberg 2015, expanded percentiles): its ends are the quantiles at
    Φ(±√(n/(n−1)) · t), with t the 97.5 % point of Student's distribution with n − 1 degrees of freedom.

    Args:
      units: arrays [n, K], one row per unit. Several arrays are strata: each is resampled separately, and the mean is the mean
        of their means.
      statistic: maps means [B, K] to values [B]. Values that are not finite are left out; as the result they become None.
    """
    units = [array for array in units if len(array)]
    n = sum(len(array) for array in units)
    value, drawn = math.nan, np.zeros(0)
    with np.errstate(all="ignore"):
        if n:
            value = float(statistic(np.mean([array.mean(axis=0) for array in units], axis=0)[None])[0])
        if n > 1:
            drawn = statistic(_means(units, draws, seed))
            drawn = drawn[np.isfinite(drawn)]
    result = {name: value if math.isfinite(value) else None, f"{name}_stderr": None}
    if len(drawn) < 2 or result[name] is None:
        return result | named(name, NOTHING)
    tail = ndtr(-math.sqrt(n / (n - 1)) * stdtrit(n - 1, 0.975))
    low, high = np.quantile(drawn, (tail, 1 - tail)).tolist()
    return result | {f"{name}_stderr": float(drawn.std(ddof=1))} | named(name, (low, high))


def _means(units: Sequence[np.ndarray], draws: int, seed: int) -> np.ndarray:
    """Return resampled means [draws, K]. Equal units are drawn together, with multinomial counts."""
    random = np.random.default_rng(seed)
    arrays = [np.unique(array, axis=0, return_counts=True) for array in units]
    arrays.sort(key=lambda array: (array[0].tolist(), array[1].tolist()))
    means = np.zeros((draws, arrays[0][0].shape[1]))
    for distinct, counts in arrays:
        n = counts.sum()
        rows = max(1, CHUNK // len(counts))
        for begin in range(0, draws, rows):
            part = means[begin : begin + rows]
            part += random.multinomial(n, counts / n, size=len(part)) @ distinct / n / len(arrays)
    return means


def permuted(
    values: Sequence[float], labels: Sequence[int], strata: Sequence[Hashable] | None = None, draws: int = DRAWS, seed: int = 0
) -> tuple[list[float], float]:
    """Test whether labels are independent of values (Fisher's permutation test).

    Labels 0…G−1, at least two, are permuted within strata. p = (1 + draws at least as extreme) / (1 + draws).

    Returns: p for each label, of |its mean − the mean of all others|, and p for the highest mean − the lowest.
    """
    order = sorted(range(len(values)), key=lambda i: (str(strata[i]) if strata else "", labels[i], values[i]))
    y, label = np.array([values[i] for i in order], np.float64), np.array([labels[i] for i in order])
    names = {name: number for number, name in enumerate(dict.fromkeys(strata[i] for i in order))} if strata else {}
    stratum = np.array([names[strata[i]] for i in order]) if strata else np.zeros(len(y), int)
    G = int(label.max()) + 1
    sizes = np.bincount(label, minlength=G)

    def spreads(label: np.ndarray) -> np.ndarray:
        sums = np.bincount(label, weights=y, minlength=G)
        means = sums / sizes
        others = (y.sum() - sums) / (len(y) - sizes)
        return np.append(np.abs(means - others), means.max() - means.min())

    observed, hits, random = spreads(label), np.ones(G + 1), np.random.default_rng(seed)
    for _ in range(draws):
        hits += spreads(label[np.lexsort((random.random(len(y)), stratum))]) >= observed - 1e-12
    p = hits / (1 + draws)
    return p[:-1].tolist(), float(p[-1])
