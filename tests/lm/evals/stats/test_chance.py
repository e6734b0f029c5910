"""Which results are better than guessing, and what guessing gives."""

import pytest

from lm.evals.run import result_line
from lm.evals.stats.chance import above_chance, chance, guess, mean_guess, words


def test_a_result_is_above_chance_if_its_whole_interval_is():
    for value, above in ((0.30, False), (0.40, True), (0.10, False)):
        result = {"acc": value, "acc_stderr": 0.05, "chance": 0.25, "n": 80}
        assert chance("acc", result) == 0.25 and above_chance("acc", result, 0.25) is above
    assert words("acc", 0.25, False) == "no better than chance (25 %)" and words("acc", 0.25, True) == "above chance (25 %)"


def test_a_given_interval_decides_before_the_standard_error():
    result = {"acc": 0.4, "acc_stderr": 0.01, "acc_low": 0.2, "acc_high": 0.6, "chance": 0.25, "n": 60}
    assert above_chance("acc", result, 0.25) is False


def test_what_cannot_be_guessed_has_no_chance():
    result = {"exact_match": 0.4, "exact_match_stderr": 0.1, "chance": 0.25, "n": 80}
    assert chance("exact_match", result, 0.25) is None and above_chance("exact_match", result, None) is None
    assert above_chance("acc", {"acc": 0.5, "acc_stderr": None, "n": 1}, 0.25) is None
    assert words("acc", None, None) == words("acc", 0.25, None) == ""
    assert chance("core", {"core": 0.1, "n": 22}) == 0.0 and chance("lms", {"lms": 60.0}) == 50.0


def test_a_guess_is_right_as_often_as_choices_are_right():
    item = {"choices": [" A", " B", " C"], "loglikelihoods": [-1.0, -2.0, -3.0], "target": 1, "metrics": {"acc": 0.0}}
    assert guess(item) == pytest.approx(1 / 3)
    assert guess(item | {"target": [0, 1, 1], "metrics": {"acc": 1.0}}) == pytest.approx(2 / 3)
    assert guess({"options": ["x", "y"], "target": 0, "metrics": {"acc": 0.0}}) == 0.5
    for other in ({"choices": [" A"]}, {"target": "A"}, {"target": 3}, {"target": None}, {"target": {}}, {"choices": None}):
        assert guess(item | other) is None
    # Where acc is not that of the likeliest choice, its chance level is not known.
    assert guess(item | {"metrics": {"acc": 1.0}}) is None
    assert mean_guess([item, item | {"choices": [" A", " B"], "loglikelihoods": [-1.0, -2.0]}]) == pytest.approx(5 / 12)
    assert mean_guess([]) is None and mean_guess([item, item | {"target": None}]) is None


def test_the_terminal_says_so():
    result = {"acc": 0.3, "acc_stderr": 0.06, "chance": 0.25, "n": 60, "problems": {"tied_choices": {"n": 2, "examples": []}}}
    assert result_line("mmlu", result) == "mmlu: acc 0.3 ± 0.06, no better than chance (25 %), n 60, 2 problems"
    assert (
        result_line("gsm8k", {"exact_match": 0.3, "exact_match_stderr": 0.06, "n": 6}) == "gsm8k: exact_match 0.3 ± 0.06, n 6"
    )
