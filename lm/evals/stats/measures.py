"""Properties of metrics by name: direction, ideal value, scale; and functions over a task's results.

A metric that no table lists is a share of right answers: higher is better.
"""

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

from lm.evals.stats.significance import Z

# Shell patterns of metric names. The first table with a match decides.
NEUTRAL = tuple(
    "*length* *tokens* *seconds* abstain* abstention* answered coverage* unknown* n_* *agreement* regard effect_size*".split()
)
IDEAL = dict.fromkeys("s_amb* s_dis* *bias_score* *log_odds* gap *_gap *_gap_macro difference".split(), 0.0) | {
    "pct_stereotype*": 0.5,
    "stereotype_share*": 0.5,
    "ss": 50.0,
}
LOWER_IS_BETTER = tuple(
    "*perplexity* *bits_per_* *nll* *loss* ece* *_ece *brier* *aurc* *risk* *hallucinat* *contradicted* *unsupported* "
    "*inconsisten* *attack_success* asr* *_asr *over_refusal* *harmful* *toxic* *disparity* *flip* *repeat* *repetition* "
    "*error* *magnitude* likelihood_diff*".split()
)
# Scales that cannot be told from a value: unbounded, −1…1, 0…100. Any other metric in 0…1 is a share.
OPEN = tuple("*perplexity* *bits_per_* *nll* *loss* *length* *log_odds* likelihood_diff* *magnitude* *margin*".split())
SIGNED = ("truthful_score*", "regard", "*bias_score*")
PERCENT = ("ss", "lms", "icat")
BESIDE = ("_stderr", "_low", "_high", "_interval", "_p")  # suffixes of values that accompany a metric
NO_METRIC = ("chance", "low", "high", "at_most", "p")

Scale = Literal["share", "signed", "percent", "open"]  # 0…1, −1…1, 0…100, any


def ideal(metric: str) -> float | None:
    """Return the value of a perfect model for a metric whose ideal is in the middle of its scale, else None."""
    return next((value for pattern, value in IDEAL.items() if fnmatchcase(metric, pattern)), None)


def badness(metric: str, value: float) -> float | None:
    """Return a number, in the metric's units, that is smaller for better values; None if the metric has no direction."""
    if _is(metric, NEUTRAL):
        return None
    if (middle := ideal(metric)) is not None:
        return abs(value - middle)
    return value if _is(metric, LOWER_IS_BETTER) else -value


def scale(metric: str, value: float) -> Scale:
    if _is(metric, OPEN):
        return "open"
    if _is(metric, PERCENT):
        return "percent"
    if value < 0 or ideal(metric) == 0.0 or _is(metric, SIGNED):
        return "signed" if -1 <= value <= 1 else "open"
    return "share" if value <= 1 else "percent" if value <= 100 else "open"


def metrics(result: Mapping[str, Any]) -> list[str]:
    """Return the names of the metrics in a task's results, in order: floats, and values (even None) that have an error or an
    interval beside them."""
    return [
        key
        for key, value in result.items()
        if (isinstance(value, float) or any(key + end in result for end in BESIDE))
        and key not in NO_METRIC
        and not key.endswith(BESIDE)
    ]


def main_metric(result: Mapping[str, Any]) -> str | None:
    """Return a task's main metric: its results' "main", else the first with a known value, else the first."""
    names = metrics(result)
    if result.get("main") in names:
        return result["main"]
    return next((name for name in names if is_number(result.get(name))), names[0] if names else None)


def interval(result: Mapping[str, Any], metric: str) -> tuple[float, float] | None:
    """Return a metric's 95 % interval: the given one, else ±1.96 standard errors within the ends of the scale.

    A share of 0 or 1 has a standard error of 0, which says nothing; it gets Wilson's interval."""
    value = result.get(metric)
    if not is_number(value):
        return None
    ends = result.get(f"{metric}_interval") or (result.get(f"{metric}_low"), result.get(f"{metric}_high"))
    if metric == "rate":  # the names that lm/evals/redteam/safety_eval.py uses
        ends = (result.get("low"), result.get("high"))
    if len(ends) == 2 and all(map(is_number, ends)):
        return ends[0], ends[1]
    stderr, n = result.get(f"{metric}_stderr"), result.get("n")
    kind = scale(metric, value)
    if stderr == 0 and kind == "share" and value in (0, 1) and isinstance(n, int) and n:
        return (0.0, Z * Z / (n + Z * Z)) if value == 0 else (n / (n + Z * Z), 1.0)
    if not is_number(stderr):
        return None
    low, high = {"share": (0.0, 1.0), "signed": (-1.0, 1.0), "percent": (0.0, 100.0), "open": (-math.inf, math.inf)}[kind]
    return max(low, value - Z * stderr), min(high, value + Z * stderr)


def tasks(results: Mapping[str, Any]) -> dict[str, dict]:
    """Return the tasks of a results.json: the entries with a count of items."""
    return {name: value for name, value in results.items() if isinstance(value, Mapping) and "n" in value}


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is(metric: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(metric, pattern) for pattern in patterns)


def pass_at_k(n: int, c: int, k: int) -> float:
    """Return the chance that of k answers, taken from n of which c are right, at least one is: 1 − C(n−c, k) / C(n, k).

    An unbiased estimate of the chance that one of k fresh answers is right (Chen et al. 2021, "Evaluating Large Language Models
    Trained on Code", eq. 1).
    """
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def pass_hat_k(n: int, c: int, k: int) -> float:
    """Return the chance that all of k attempts, taken from n of which c succeeded, succeed: C(c, k) / C(n, k).

    An unbiased estimate of the chance that k fresh attempts all succeed, written pass^k (Yao et al. 2024, "τ-bench").
    """
    return math.comb(c, k) / math.comb(n, k)


def mean(name: str, values: Sequence[float]) -> dict[str, float | None]:
    """Return {name: mean, name_stderr: sample standard deviation / √n}; None if there are too few values."""
    n = len(values)
    if not n:
        return {name: None, f"{name}_stderr": None}
    middle = sum(values) / n
    squares = sum((value - middle) ** 2 for value in values)
    return {name: middle, f"{name}_stderr": math.sqrt(squares / (n - 1) / n) if n > 1 else None}


def ratio(values: Sequence[float], sizes: Sequence[float]) -> tuple[float | None, float | None]:
    """Return r = Σv/Σs of n random items and its standard error √(n/(n−1) · Σ(v − r·s)²) / Σs, to first order (Cochran 1977,
    "Sampling Techniques", chapter 6); None if there are too few items."""
    if not sizes:
        return None, None
    total, n = sum(sizes), len(sizes)
    r = math.fsum(values) / total
    squares = math.fsum((value - r * size) ** 2 for value, size in zip(values, sizes, strict=True))
    return r, math.sqrt(squares * n / (n - 1)) / total if n > 1 else None
