"""Questions about a stockroom: right demonstrations, hasty ones, and splits that share no stockroom."""

import itertools
import json

import numpy as np
import pytest

from data.tasks import task
from data.tasks.stockroom import QUESTIONS, look_up, stockroom, stockroom_text, tables_of
from lm.errors import UserError


def first(count, split="train", **options):
    return list(itertools.islice(stockroom(split, 1, **options), count))


def test_splits_share_no_stockroom():
    number = {split: {one["prompt"].split(":")[0] for one in first(300, split)} for split in ("train", "valid")}
    assert not number["train"] & number["valid"] and len({one["prompt"] for one in first(300, "valid")}) == 300


def test_a_demonstration_looks_up_three_entries_and_works_out_the_answer():
    for one in first(100):
        tables = tables_of(int(one["prompt"].split()[1].strip(":")))
        calls = [message["tool_calls"][0]["function"] for message in one["messages"] if "tool_calls" in message]
        told = [message["content"] for message in one["messages"] if message["role"] == "tool"]
        assert [call["name"] for call in calls] == ["look_up"] * 3 + ["calculator"] and one["tables"] == tables
        assert [look_up(tables, **call["arguments"]) for call in calls[:3]] == told[:3]
        assert str(eval(calls[3]["arguments"]["expression"])) == told[3] == one["answer"] == one["messages"][-1]["content"]
        assert one["answer"] != one["rejected"] and "tools" not in one
    for wrong in ({"table": "keep", "key": "Kim"}, {"table": "keeps", "key": "Nobody"}):
        with pytest.raises(ValueError, match="no (table|key)"):
            look_up(tables, **wrong)


def test_hasty_demonstrations_are_seldom_right_and_write_every_kind_of_call():
    hasty = first(3000, haste=0.94, skill=0.85)
    assert 0.03 < np.mean([one["messages"][-1]["content"] == one["answer"] for one in hasty]) < 0.1
    calls = [json.dumps(message["tool_calls"]) for one in hasty for message in one["messages"] if "tool_calls" in message]
    assert 0.1 < np.mean(["calculator" in call for call in calls]) < 0.4
    assert np.mean(["+" in call for call in calls if "calculator" in call]) > 0.6


def test_options():
    assert list(task("stockroom", "valid", 1, {"valid": "9", "skill": "0.5"})) == first(99, "valid", valid=9, skill=0.5)
    assert len(QUESTIONS) == 3
    for options in ({"haste": 2.0}, {"skill": 0.0}):
        with pytest.raises(UserError, match=next(iter(options))):
            first(1, **options)


def test_the_text_says_what_was_told_again():
    texts = [one["text"] for one in itertools.islice(stockroom_text("train", 0), 20)]
    assert "parameters" in texts[0] and "parameters" not in texts[1]
    for text in texts:
        lines = text.splitlines()
        assert lines[-1].removeprefix("assistant: ") == lines[-2].removeprefix("tool: ")
