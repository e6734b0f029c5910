"""IFEval's four accuracies of whole files, by hand, and what cannot be scored."""

import json
import math

import pytest

from lm.evals.tasks.ifeval.task import score


def item(prompt: str, **instructions: dict) -> dict:
    ids = [name.replace("__", ":") for name in instructions]
    return {"prompt": prompt, "instruction_id_list": ids, "kwargs": list(instructions.values())}


TWO_WORDS = {"num_words": 2.0, "relation": "at least", "num_bullets": None}  # as editions that are tables have them
ITEMS = [
    item("A", punctuation__no_comma={}, length_constraints__number_words=TWO_WORDS),
    item("B", punctuation__no_comma={}),
    item("C", startend__quotation={}, punctuation__no_comma={}),
    item("D", punctuation__no_comma={}),
]
ANSWERS = [
    {"prompt": "A", "response": "two words"},
    {"prompt": "B", "response": "Sure, here:\nno comma"},
    {"prompt": "C", "response": "no quotes"},
]


def test_scores_by_hand():
    results, samples = score(ITEMS, ANSWERS)
    assert (results["n"], results["n_instructions"], results["missing"], results["problems"]) == (3, 5, 1, {})
    assert (results["prompt_strict"], results["prompt_loose"]) == (1 / 3, 2 / 3)
    assert results["prompt_strict_stderr"] == pytest.approx(1 / 3)  # √(2/3 / 2 / 3)
    assert (results["instruction_strict"], results["instruction_loose"]) == (3 / 5, 4 / 5)
    # f − r·c of the three: 2 − 6/5, 0 − 3/5, 1 − 6/5.
    assert results["instruction_strict_stderr"] == pytest.approx(math.sqrt((0.64 + 0.36 + 0.04) * 3 / 2) / 5)
    comma, quotation = results["instructions"]["punctuation:no_comma"], results["instructions"]["startend:quotation"]
    assert (comma["n"], comma["strict"], comma["loose"]) == (3, 2 / 3, 1)
    assert comma["strict_stderr"] == pytest.approx(1 / 3)
    assert (quotation["n"], quotation["strict"], quotation["strict_stderr"]) == (1, 0, None)
    assert [(s["prompt"], [(i["strict"], i["loose"]) for i in s["instructions"]]) for s in samples] == [
        ("A", [(True, True), (True, True)]),
        ("B", [(False, True)]),
        ("C", [(False, False), (True, True)]),
    ]
    assert json.loads(json.dumps(results)) == results


def test_what_cannot_be_scored_is_named_and_counted():
    broken = [
        {"malformed": "line 1 is not JSON"},
        {"prompt": "X"},
        item("Y", keywords__existence={}),
        {"prompt": "Z", "instruction_id_list": ["punctuation:no_comma"], "kwargs": []},
        {"prompt": "Z", "instruction_id_list": [7], "kwargs": [{}]},
        {"prompt": "Z", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [None]},
        item("twice", punctuation__no_comma={}),
        item("twice", punctuation__no_comma={}),
    ]
    answers = [
        {"prompt": "D", "response": ""},
        {"prompt": "unknown", "response": "a"},
        {"prompt": "A"},
        {"response": "a"},
        {"prompt": "B", "response": 3},
        {"prompt": "twice", "response": "a"},
        {"prompt": "Y", "response": "a"},
        {"prompt": "C", "response": "a"},
        {"prompt": "C", "response": "b"},
    ]
    results, samples = score(ITEMS + broken, answers)
    counts = {kind: problem["n"] for kind, problem in results["problems"].items()}
    assert counts["malformed_items"] == 6 and counts["duplicate_items"] == 1
    assert counts["malformed_answers"] == 3 and counts["duplicate_answers"] == 1 and counts["empty_responses"] == 1
    assert "keywords:existence lacks 'keywords'" in str(results["problems"]["malformed_items"]["examples"])
    assert [s["prompt"] for s in samples] == ["D"] and (results["n"], results["prompt_loose"]) == (1, 0)
    assert results["missing"] == 2  # A and B


def test_nothing_to_score():
    results, samples = score([], [])
    assert samples == [] and results["n"] == 0
    assert results["prompt_strict"] is results["instruction_loose"] is results["instruction_loose_stderr"] is None
