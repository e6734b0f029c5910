"""MMLU: the letter that a response settles on, accuracy by subject."""

import pytest

from lm.evals.score import letter
from lm.evals.score import mmlu as score

NUMBERS = ("0", "4", "2", "6")
GROUPS = ("A group", "B-trees", "C is closed", "6.5")


@pytest.mark.parametrize(
    "response, choices, found",
    [
        ("B", NUMBERS, "B"),
        ("b", NUMBERS, "B"),
        (" (C).", NUMBERS, "C"),
        ("**D**", NUMBERS, "D"),
        ("B. 4", NUMBERS, "B"),
        ("A) 0, since nothing is left", NUMBERS, "A"),
        ("C because it divides both", NUMBERS, "C"),
        ("2", NUMBERS, "C"),  # the text of a choice, not its number
        ("Answer: D", NUMBERS, "D"),
        ("The answer is A because nothing is left.", NUMBERS, "A"),
        ("The correct answer is **(B)**.", NUMBERS, "B"),
        ("The answer is option C.", NUMBERS, "C"),
        ("A cannot be. First I thought the answer is B, but the answer is D", NUMBERS, "D"),
        (r"Thus $\boxed{C}$", NUMBERS, "C"),
        (r"Thus $\boxed{\text{C}}$", NUMBERS, "C"),
        ("It must be (B) since 4 is even.", NUMBERS, "B"),
        ("I would take option D", NUMBERS, "D"),
        ("A group.", GROUPS, "A"),
        ("B-trees", GROUPS, "B"),
        ("C is closed", GROUPS, "C"),
        ("A finite thing is no field", NUMBERS, None),
        ("The answer is a field", NUMBERS, None),
        ("The answer is A or B", NUMBERS, None),
        ("Either (A) or (B)", NUMBERS, None),
        ("Option A is wrong, so it may be option B.", NUMBERS, None),
        ("B-trees are no groups", NUMBERS, None),
        ("C++ is a language", NUMBERS, None),
        ("D'Alembert found it", NUMBERS, None),
        ("E", NUMBERS, None),
        ("7", NUMBERS, None),
        ("", NUMBERS, None),
        ("4", ("4", "4", "2", "6"), None),
    ],
)
def test_the_letter_of_a_response(response, choices, found):
    assert letter(response, choices) == found


def rows(*answers, subject):
    return [{"question": "…", "A": "0", "B": "4", "C": "2", "D": "6", "answer": a, "subject": subject} for a in answers]


def test_accuracy_by_subject():
    items = rows("A", "B", "C", subject="algebra") + rows("D", subject="law")
    results, samples = score(items, [{"id": i, "response": said} for i, said in enumerate(["A", "B", "no idea", "D"])])
    assert results["acc"] == 3 / 4 and results["n"] == 4
    assert results["subjects"]["algebra"]["acc"] == pytest.approx(2 / 3)
    assert results["subjects"]["algebra"]["acc_stderr"] == pytest.approx((2 / 9 / 2) ** 0.5)
    assert results["subjects"]["law"] == {"acc": 1, "acc_stderr": None, "n": 1}
    assert results["problems"] == {"responses_without_letter": {"n": 1, "examples": ["2: 'no idea'"]}}
    assert samples[2]["letter"] is None and not samples[2]["correct"]


def test_choices_in_a_list_and_a_numbered_answer():
    item = {"question": "…", "choices": list(NUMBERS), "answer": 1, "subject": "algebra"}
    assert score([item], [{"id": 0, "response": "4"}])[0]["acc"] == 1


@pytest.mark.parametrize(
    "change", [{"answer": "E"}, {"answer": 4}, {"answer": True}, {"answer": None}, {"A": None}, {"choices": ["0", "1"]}]
)
def test_malformed_items_are_named(change):
    results, _ = score([*rows("A", subject=""), rows("A", subject="")[0] | change], [{"id": 0, "response": "A"}])
    assert results["n"] == 1 and results["problems"]["malformed_items"]["n"] == 1
