"""What a figure of an evaluation says: whether more of it is better, what it would ideally be, on which scale it lies.

Metrics are told by their names; one that no table names is a share of right answers, of which more is better.
"""

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

from lm.evals.stats.significance import Z

# Shell patterns of metrics' names; the first table that has one decides.
NEUTRAL = (
    "*length*",
    "*tokens*",
    "*seconds*",
    "abstain*",
    "abstention*",
    "answered",
    "coverage*",
    "unknown*",
    "n_*",
    "*agreement*",
    "regard",
    "effect_size*",
    "new_entities*",
)
IDEAL = {
    "s_amb*": 0.0,
    "s_dis*": 0.0,
    "*bias_score*": 0.0,
    "*log_odds*": 0.0,
    "gap": 0.0,
    "*_gap": 0.0,
    "difference": 0.0,
    "pct_stereotype*": 0.5,
    "stereotype_share*": 0.5,
    "ss": 50.0,
}
LOWER_IS_BETTER = (
    "*perplexity*",
    "*bits_per_*",
    "*nll*",
    "*loss*",
    "ece*",
    "*_ece",
    "*brier*",
    "*aurc*",
    "*risk*",
    "*hallucinat*",
    "*contradicted*",
    "*unsupported*",
    "*inconsisten*",
    "*attack_success*",
    "asr*",
    "*_asr",
    "*over_refusal*",
    "*harmful*",
    "*toxic*",
    "*disparity*",
    "*flip*",
    "*repeat*",
    "*repetition*",
    "*error*",
    "*magnitude*",
    "likelihood_diff*",
)
# Scales that a value does not tell: without ends, from −1, to 100. All others are shares if they are in 0…1.
OPEN = (
    "*perplexity*",
    "*bits_per_*",
    "*nll*",
    "*loss*",
    "*length*",
    "*log_odds*",
    "likelihood_diff*",
    "*magnitude*",
    "*margin*",
    "*context_gain*",
    "new_entities*",
    "entity_graph",
)
SIGNED = ("truthful_score*", "regard", "*bias_score*")
PERCENT = ("ss", "lms", "icat")
BESIDE = ("_stderr", "_low", "_high", "_interval", "_p")  # what a metric is accompanied by
NO_METRIC = ("chance", "low", "high", "at_most", "p")

Scale = Literal["share", "signed", "percent", "open"]  # 0…1, −1…1, 0…100, any


def ideal(metric: str) -> float | None:
    """What the metric would be of a model without fault, where that is in the middle."""
    return next((value for pattern, value in IDEAL.items() if fnmatchcase(metric, pattern)), None)


def badness(metric: str, value: float) -> float | None:
    """A number that is the smaller the better the value is, in the metric's units; None for a metric without a direction."""
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


def level(metric: str, value: float, chance: float | None = None) -> float | None:
    """Where a value lies between the worst (or chance, where it is known) and the best: 0…1. None without such ends."""
    kind, bad = scale(metric, value), badness(metric, value)
    if kind == "open" or bad is None:
        return None
    least, most = {"share": (0.0, 1.0), "signed": (-1.0, 1.0), "percent": (0.0, 100.0)}[kind]
    if (middle := ideal(metric)) is not None:
        reached = 1 - bad / max(middle - least, most - middle)
    elif _is(metric, LOWER_IS_BETTER):
        reached = 1 - (bad - least) / (most - least)
    else:
        floor = least if chance is None else chance
        reached = (value - floor) / (most - floor) if floor < most else None
    return None if reached is None else min(1.0, max(0.0, reached))


def metrics(result: Mapping[str, Any]) -> list[str]:
    """The metrics of a task's results, in their order: floats, and what stands beside an error or an interval though it is
    None."""
    return [
        key
        for key, value in result.items()
        if (isinstance(value, float) or any(key + end in result for end in BESIDE))
        and key not in NO_METRIC
        and not key.endswith(BESIDE)
    ]


def main_metric(result: Mapping[str, Any]) -> str | None:
    """The metric that a task stands for: what its results name as "main", else the first that is known, else the first."""
    names = metrics(result)
    if result.get("main") in names:
        return result["main"]
    return next((name for name in names if is_number(result.get(name))), names[0] if names else None)


def interval(result: Mapping[str, Any], metric: str) -> tuple[float, float] | None:
    """The 95 % interval of a figure: the one that stands beside it, else 1.96 standard errors to each side, within the scale's
    ends. Of a share of 0 or 1, whose standard error is 0 and says nothing, Wilson's."""
    value = result.get(metric)
    if not is_number(value):
        return None
    given = result.get(f"{metric}_interval") or (result.get(f"{metric}_low"), result.get(f"{metric}_high"))
    if metric == "rate":  # as lm/evals/redteam/safety_eval.py has shares
        given = (result.get("low"), result.get("high"))
    if len(given) == 2 and all(map(is_number, given)):
        return given[0], given[1]
    stderr, n = result.get(f"{metric}_stderr"), result.get("n")
    kind = scale(metric, value)
    if stderr == 0 and kind == "share" and value in (0, 1) and isinstance(n, int) and n:
        return (0.0, Z * Z / (n + Z * Z)) if value == 0 else (n / (n + Z * Z), 1.0)
    if not is_number(stderr):
        return None
    low, high = {"share": (0.0, 1.0), "signed": (-1.0, 1.0), "percent": (0.0, 100.0), "open": (-math.inf, math.inf)}[kind]
    return max(low, value - Z * stderr), min(high, value + Z * stderr)


def tasks(results: Mapping[str, Any]) -> dict[str, dict]:
    """The tasks of a results.json: what has a count of items; the rest tells of the run."""
    return {name: value for name, value in results.items() if isinstance(value, Mapping) and "n" in value}


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is(metric: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(metric, pattern) for pattern in patterns)


def mean(name: str, values: Sequence[float]) -> dict[str, float | None]:
    """{name: their mean, name_stderr: sample standard deviation / √n}; None where too few values tell nothing."""
    n = len(values)
    if not n:
        return {name: None, f"{name}_stderr": None}
    middle = sum(values) / n
    squares = sum((value - middle) ** 2 for value in values)
    return {name: middle, f"{name}_stderr": math.sqrt(squares / (n - 1) / n) if n > 1 else None}
