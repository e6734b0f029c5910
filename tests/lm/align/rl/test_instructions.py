"""The reward for following verifiable instructions: shares, all or nothing, degenerate answers, and bad records."""

import numpy as np
import pytest

from lm.align.rl.rewards import parse_rewards, scored
from lm.errors import UserError

TOLD = {"instruction_id_list": ["punctuation:no_comma", "startend:end_checker"], "kwargs": [{}, {"end_phrase": "The end."}]}


def rewards(completions: list[str], spec: str = "instructions=1", told: dict = TOLD) -> np.ndarray:
    prompts = [[{"role": "user", "content": "Tell me a story."}]] * len(completions)
    return scored(
        parse_rewards(spec), prompts, completions, {name: [value] * len(completions) for name, value in told.items()}
    )[1]["instructions"]


def test_the_reward_is_the_share_of_followed_instructions():
    answers = ["It rained. The end.", "It rained, and so on. The end.", "It rained.", "Well, it rained."]
    assert rewards(answers).tolist() == [1.0, 0.5, 0.5, 0.0]
    assert rewards(answers, "instructions?all=1=1").tolist() == [1.0, 0.0, 0.0, 0.0]


def test_an_answer_without_words_follows_nothing():
    json = {"instruction_id_list": ["detectable_format:json_format", "punctuation:no_comma"], "kwargs": [{}, {}]}
    assert rewards(["", " \n", "{}"], told=json).tolist() == [0.0, 0.0, 1.0]
    answers = ["{}", '{"a": "b"}', '{"a": "b c d"}']
    assert rewards(answers, "instructions?least_words=4=1", json).tolist() == [0.0, 0.0, 1.0]


def test_it_is_strict():
    assert rewards(["Sure, here it is:\nIt rained. The end."]).tolist() == [0.5]  # loosely, the first line would not count


def test_editions_that_write_every_kwarg_and_records_without_instructions():
    every = {"end_phrase": "The end.", "num_words": None}
    assert rewards(["Rain. The end."], told=TOLD | {"kwargs": [{"end_phrase": None}, every]}).tolist() == [1.0]
    none = {"instruction_id_list": [], "kwargs": []}
    assert np.isnan(rewards(["Rain."], "instructions=1,repetition=1", none)).all()


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"kwargs": [{}]}, "instruction_id_list.*builtin:verifiable"),
        (TOLD | {"kwargs": [{}]}, "not one object for each of punctuation:no_comma"),
        (TOLD | {"kwargs": None}, "not one object"),
        (TOLD | {"kwargs": [{}, {"end": "The end."}]}, "startend:end_checker takes no 'end'"),
        ({"instruction_id_list": ["no_comma"], "kwargs": [{}]}, "'no_comma' is none of the 25"),
    ],
)
def test_bad_records_are_one_line(told, said):
    with pytest.raises(UserError, match=said):
        rewards(["Rain."], told=told)
