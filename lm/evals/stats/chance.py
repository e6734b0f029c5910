"""Is a result better than guessing? Chance levels of metrics, and the comparison of a result with them.

A result is above chance if its whole 95 % interval is. Of 40 models that guess, about one is above chance by accident.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from lm.evals.stats.measures import interval, is_number, scale

# Metrics for which a guess among an item's choices scores the task's `chance`.
OF_CHOICES = tuple(
    "acc acc_norm acc_bytes acc_per_token acc_mutual_info acc_ambig acc_disambig acc_pro acc_anti mc1 mc2 precision_at_1 "
    "precision_at_1_bytes".split()
)
FIXED = {"core": 0.0, "core_partial": 0.0, "lms": 50.0, "auroc": 0.5, "auroc_p_true": 0.5}  # the same in every task


def chance(metric: str, result: Mapping[str, Any], guessed: float | None = None) -> float | None:
    """Return the value that guessing gives on average; None if the metric has no such level.

    guessed: the mean of `guess` over the task's samples, for results that hold no `chance`.
    """
    if metric in OF_CHOICES:
        return result["chance"] if is_number(result.get("chance")) else guessed
    return FIXED.get(metric)


def above_chance(metric: str, result: Mapping[str, Any], level: float | None) -> bool | None:
    """Return whether a metric's whole 95 % interval is above `level`; None if there is no level or no interval."""
    pair = interval(result, metric)
    return None if level is None or pair is None else pair[0] > level


def words(metric: str, level: float | None, above: bool | None) -> str:
    """Return the comparison in plain words; "" if it is not known.

    >>> words("acc", 0.25, False), words("acc", 0.25, True)
    ('no better than chance (25 %)', 'above chance (25 %)')
    """
    if level is None or above is None:
        return ""
    return f"{'above' if above else 'no better than'} chance ({value_text(metric, level)})"


def value_text(metric: str, value: float) -> str:
    """Return a value as text: a share as a percentage, others as a number.

    >>> value_text("acc", 1 / 3), value_text("perplexity", 12.5)
    ('33.3 %', '12.5')
    """
    return f"{100 * value:.3g} %" if scale(metric, value) == "share" else f"{value:.3g}"


def guess(sample: Mapping[str, Any]) -> float | None:
    """Return the chance of guessing an item's right answer: right choices / choices.

    None if the item has no choices, or if its `acc` is not that of the likeliest choice, so that guessing means something else.
    """
    choices, target = sample.get("options") or sample.get("choices"), sample.get("target")
    right = target if isinstance(target, list) else [target]
    if not choices or len(choices) < 2 or not right or not all(isinstance(i, int) and 0 <= i < len(choices) for i in right):
        return None
    scores, hit = sample.get("loglikelihoods"), (sample.get("metrics") or {}).get("acc")
    if not sample.get("options") and scores and is_number(hit) and all(map(is_number, scores)):
        best = {i for i, score in enumerate(scores) if score == max(scores)}
        if hit not in {float(i in right) for i in best}:
            return None
    return len(set(right)) / len(choices)


def mean_guess(samples: Iterable[Mapping[str, Any]]) -> float | None:
    """Return the mean of `guess`; None if there is no sample, or one without it."""
    shares = [guess(sample) for sample in samples]
    return None if not shares or None in shares else sum(shares) / len(shares)
