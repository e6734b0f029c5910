"""How sure is a figure? Intervals of 95 %, of items that may come in groups, and a permutation test.

Items that vary one template are not independent. Where they come in groups, n items are taken for n / deff: the design effect
deff is the variance of the mean with whole groups as the units over the one with items as the units (Kish 1965).
All draws have a fixed seed, and depend on the values alone, not on their order.
"""

import math
from collections.abc import Callable, Hashable, Sequence

import numpy as np
from scipy.special import ndtr, stdtrit

Z = 1.959963984540054
DRAWS = 2000
CHUNK = 1 << 22  # numbers drawn at a time

Interval = tuple[float, float] | tuple[None, None]
NOTHING = (None, None)


def named(name: str, interval: Interval) -> dict[str, float | None]:
    return {f"{name}_low": interval[0], f"{name}_high": interval[1]}


def wilson(hits: int, n: int, z: float = Z) -> tuple[float, float]:
    """The score interval of a binomial share (Wilson 1927): all p with |hits/n − p| ≤ z·√(p(1−p)/n). z: 95 % by default.

    (0, 1) without trials: nothing is known.
    """
    if not n:
        return 0.0, 1.0
    p = hits / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (0.0 if hits == 0 else centre - half), (1.0 if hits == n else centre + half)


def effective(values: Sequence[float], groups: Sequence[Hashable] | None = None) -> float:
    """How many independent items tell as much as these: n / deff · (z/t)².

    deff = (G/(G−1) · Σ_g (Σ_{i in g} (y_i − ȳ))²) / (n/(n−1) · Σ_i (y_i − ȳ)²), of G groups. z/t, of the normal and of
    Student's distribution with G − 1 degrees of freedom, makes up for few groups (Korn and Graubard 1998). n where deff is not
    above 1, or cannot be told.
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
    """Of the share that a mean of values 0…1 is: the score interval (Wilson 1927) at the effective number of items."""
    if not hits:
        return NOTHING
    n = effective(hits, groups)
    return wilson(math.fsum(hits) / len(hits) * n, n)


def of_signs(signs: Sequence[float], groups: Sequence[Hashable] | None = None) -> Interval:
    """Of a mean of values −1…1: the adjusted Wald interval, with one more +1 and one more −1 (Bonett and Price 2012, of
    differences of paired shares), so that a few items which are all alike do not pass for certain. Within −1…1."""
    if not signs:
        return NOTHING
    n = effective(signs, groups)
    scale = n / len(signs)
    middle = scale * math.fsum(signs) / (n + 2)
    variance = (scale * math.fsum(sign * sign for sign in signs) + 2) / (n + 2) - middle * middle
    half = Z * math.sqrt(variance / (n + 2))
    return max(-1.0, middle - half), min(1.0, middle + half)


def resampled(
    name: str, units: Sequence[np.ndarray], statistic: Callable[[np.ndarray], np.ndarray], draws: int = DRAWS, seed: int = 0
) -> dict[str, float | None]:
    """A figure as results have it, its standard error and interval by the bootstrap over units (Efron 1979).

    The interval has the ends that make up for few units (Hesterberg 2015, expanded percentiles): the quantiles at
    Φ(±√(n/(n−1)) · t), t the 97.5 % point of Student's distribution with n − 1 degrees of freedom.

    Args:
      units: arrays [n, K] of what is known of each unit. Several are strata: each is resampled by itself, and the mean is the
        mean of their means.
      statistic: of means [B, K] its values [B]; those that are not finite are left out, as a figure None.
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
    """[draws, K]. Units that are alike are drawn together: how often each is drawn is multinomial."""
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
    """Had the labels nothing to do with the values, how often would they differ as much? (Fisher's permutation test)

    Labels 0…G−1, at least two, change places within strata. Each p is (1 + draws at least as far) / (1 + draws).

    Returns: p of each label, of |its mean − the mean of all others|, and p of the highest mean − the lowest.
    """
    order = sorted(range(len(values)), key=lambda i: (str(strata[i]) if strata else "", labels[i], values[i]))
    y, label = np.array([values[i] for i in order], np.float64), np.array([labels[i] for i in order])
    names = {name: number for number, name in enumerate(dict.fromkeys(strata[i] for i in order))} if strata else {}
    stratum = np.array([names[strata[i]] for i in order]) if strata else np.zeros(len(y), int)
    G = int(label.max()) + 1
    sizes = np.bincount(label, minlength=G)

    def told(label: np.ndarray) -> np.ndarray:
        sums = np.bincount(label, weights=y, minlength=G)
        means = sums / sizes
        others = (y.sum() - sums) / (len(y) - sizes)
        return np.append(np.abs(means - others), means.max() - means.min())

    found, hits, random = told(label), np.ones(G + 1), np.random.default_rng(seed)
    for _ in range(draws):
        hits += told(label[np.lexsort((random.random(len(y)), stratum))]) >= found - 1e-12
    p = hits / (1 + draws)
    return p[:-1].tolist(), float(p[-1])
