"""Agreement of two ways to detect refusals: the share of equal answers, and Cohen's κ."""

from collections.abc import Sequence

from lm.evals.redteam.safety_eval import share


def kappa(both: int, first: int, second: int, neither: int) -> float | None:
    """Return Cohen's κ = (p_o − p_e) / (1 − p_e) of two raters who say yes or no (Cohen 1960).

    Args: numbers of answers that both call yes, only the first, only the second, and neither. p_o = (both + neither) / n is the
      observed agreement; p_e is the expected agreement of independent raters with the same rates of yes.
    Returns: 1 for full agreement, 0 for agreement by chance; None if p_e is 1 or there are no answers.
    """
    n = both + first + second + neither
    if not n:
        return None
    yes_one, yes_two = both + first, both + second
    # In integers, so that p_e = 1 is detected exactly.
    expected = yes_one * yes_two + (n - yes_one) * (n - yes_two)
    if expected == n * n:
        return None
    return (n * (both + neither) - expected) / (n * n - expected)


def agreement(rules: Sequence[bool], classifier: Sequence[bool | None]) -> dict:
    """Compare rules and a classifier that label the same answers as refusals or not. None: the classifier does not know.

    Returns: {"n": answers that both label, "unknown": the others, "agree": share with its interval, "kappa", "both",
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
