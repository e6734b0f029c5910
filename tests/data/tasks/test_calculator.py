"""Products of the calculator task are right, held out both ways round, and demonstrated with a call that templates render."""

import itertools
import re

import pytest

from data.chat.template import render
from data.tasks import task
from data.tasks.arithmetic import CALCULATOR, calculator
from lm.errors import UserError


def first(count, split="train", seed=0, **options):
    return list(itertools.islice(calculator(split, seed, **options), count))


def operands(record):
    return tuple(sorted(map(int, re.findall(r"\d+", record["prompt"]))))


@pytest.mark.parametrize("digits", [1, 2, 5])
def test_no_product_of_valid_is_in_train(digits):
    train, valid = first(3000, digits=digits), first(300, "valid", seed=1, digits=digits)
    assert valid and not {operands(r) for r in train} & {operands(r) for r in valid}
    assert all(len(str(n)) == digits for r in train + valid for n in operands(r))


def test_a_demonstration_calls_the_calculator_and_says_what_it_answered():
    for record in first(200):
        a, b = map(int, re.findall(r"\d+", record["prompt"]))
        asked, calls, told, answers = record["messages"]
        assert asked == {"role": "user", "content": record["prompt"]}
        assert calls["tool_calls"][0]["function"] == {"name": "calculator", "arguments": {"expression": f"{a} * {b}"}}
        assert told == {"role": "tool", "content": str(a * b)} and answers == {"role": "assistant", "content": str(a * b)}
        assert record["answer"] == record["completion"] == str(a * b) != record["rejected"]
        assert record["tools"] == [CALCULATOR]
    text = render(record["messages"], tools=record["tools"])
    assert f'<|tool|>{{"name": "calculator", "arguments": {{"expression": "{a} * {b}"}}}}<|end|><|tool|>{a * b}<|end|>' in text


def test_without_the_tool_the_answer_is_given_at_once():
    record = first(1, tool=False)[0]
    assert [m["role"] for m in record["messages"]] == ["user", "assistant"] and "tools" not in record
    assert record["prompt"] == first(1)[0]["prompt"]


def test_it_depends_on_split_seed_and_options_alone():
    assert first(20) == first(20) != first(20, seed=1)
    assert list(task("calculator", "valid", 0, {"digits": "3", "valid": "7"})) == first(99, "valid", digits=3, valid=7)
    assert len({r["prompt"].split("0")[0] for r in first(200)}) > 4
    with pytest.raises(UserError, match="digits=0"):
        calculator("train", 0, digits=0)
