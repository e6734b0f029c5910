"""How far two ways to tell a refusal agree: the share of answers on which they do, and what of that is not chance."""

from collections.abc import Sequence

from lm.evals.redteam.safety_eval import share


def kappa(both: int, first: int, second: int, neither: int) -> float | None:
    """Cohen's κ = (p_o − p_e) / (1 − p_e) of two raters who say yes or no (Cohen 1960).

    Args: how many both call yes, the first alone, the second alone, and neither. p_o = (both + neither) / n is how often they
      agree, p_e how often they would if each said yes as often as it does, but about anything.
    Returns: 1 where they always agree, 0 where they agree as by chance; None where p_e is 1, or without an answer.
    """
    n = both + first + second + neither
    if not n:
        return None
    yes_one, yes_two = both + first, both + second
    # In integers, so that a κ without a value is known as such.
    expected = yes_one * yes_two + (n - yes_one) * (n - yes_two)
    if expected == n * n:
        return None
    return (n * (both + neither) - expected) / (n * n - expected)


def agreement(rules: Sequence[bool], classifier: Sequence[bool | None]) -> dict:
    """Of rules and a classifier that each say of the same answers whether they refuse; None: the classifier does not know.

    Returns: {"n": answers that both know of, "unknown": the others, "agree": share with its interval, "kappa", "both",
    "rules_alone", "classifier_alone", "neither"}.
    """
    known = [(one, other) for one, other in zip(rules, classifier, strict=True) if other is not None]
    counts = {
        "both": known.count((True, True)),
        "rules_alone": known.count((True, False)),
        "classifier_alone": known.count((False, True)),
        "neither": known.count((False, False)),
    }
    return {
        "n": len(known),
        "unknown": len(rules) - len(known),
        "agree": share([one == other for one, other in known]),
        "kappa": kappa(*counts.values()),
        **counts,
    }
