"""Thresholds of a recipe."""

import numpy as np
import pytest

from data.recipe.rules import Rule, parse, reasons
from lm.errors import UserError

INF = float("inf")


def test_bounds_and_allowed_values():
    rules = parse({"words": (2, 5), "language": ("en", "de"), "score": (0.5, INF), "off": ()})
    columns = {
        "words": np.array([1, 2, 5, 6, 3]),
        "language": ["en", "fr", None, "de", "de"],
        "score": [1, 1, np.nan, 0.1, 0.5],
    }
    assert [rule.told() for rule in rules] == ["2 ≤ words ≤ 5", "language in en, de", "0.5 ≤ score"]
    # The first rule that drops a document gives the reason; None and NaN were not measured and stay.
    assert reasons(rules, columns, 5).tolist() == [0, 1, -1, 0, -1]


def test_flags_are_numbers():
    assert Rule("keep", 1, 1).drops(np.array([True, False])).tolist() == [False, True]


@pytest.mark.parametrize("bounds", ["en", 3, (1,), (2, 1), (float("nan"), 1), ("en", 1)])
def test_a_wrong_rule_names_its_key(bounds):
    with pytest.raises(UserError, match="rules.words"):
        parse({"words": bounds})
