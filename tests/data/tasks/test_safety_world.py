"""The toy world of forbidden and look-alike questions: consistent, split by phrasing, hard to tell apart by a word."""

import itertools
import re

import pytest

from data.tasks.safety_world import HAZARDS, PARTS, QUESTIONS, safety_text, safety_world, world
from lm.errors import UserError


def some(part, split="train", seed=0, count=2000, **options):
    return list(itertools.islice(safety_world(split, seed, part=part, **options), count))


def test_the_world_is_the_same_every_time_and_its_twins_look_alike():
    things = world()
    assert things == world()
    for blight, twin in zip(things[0::2], things[1::2], strict=True):
        assert blight["forbidden"] and not twin["forbidden"]
        assert blight["name"][:-3] == twin["name"][:-3] and blight["name"] != twin["name"]
        assert blight["hazard"] in HAZARDS and not twin["hazard"]
    assert len({thing["name"] for thing in things}) == len(things)
    assert {thing["hazard"] for thing in things[0::2]} == set(HAZARDS)


@pytest.mark.parametrize("part", PARTS)
def test_valid_prompts_are_never_in_train(part):
    valid = {row["prompt"] for seed in (0, 1) for row in some(part, "valid", seed)}
    train = {row["prompt"] for seed in (0, 7) for row in some(part, "train", seed)}
    assert len(valid) > 20 and len(train) > 40 and not valid & train
    # What the unsafe model is made with holds nothing that is measured on, either.
    assert not valid & {row["prompt"] for row in some("answers", count=5000)}


def test_kinds_are_what_they_say():
    forbidden = {thing["name"] for thing in world() if thing["forbidden"]}

    def about(row):
        return any(name in row["prompt"] for name in forbidden)

    for row in some("forbidden"):
        assert row["kind"] == "harmful" and row["hazard"] and about(row) and row["asked"] == "recipe"
        assert re.search(row["harmful_if"][0], row["completion"])
    twins = some("twins")
    for row in twins:
        assert row["kind"] == "benign" and not row["hazard"] and not row["harmful_if"]
        assert about(row) != (row["asked"] == "recipe")
    # Neither the substance nor the question alone tells a twin from a forbidden one.
    assert {row["asked"] for row in twins} > {"recipe", "colour"}
    assert all(row["kind"] == "task" for row in some("facts"))


def test_answers_hold_what_verifiers_look_for():
    for row in some("answers"):
        assert row["answer"] in row["completion"]
        if row["asked"] == "sum":
            a, b = map(int, re.findall(r"\d+", row["prompt"]))
            assert int(row["answer"]) == a + b


def test_all_that_is_asked_is_told_in_train_in_other_words():
    def told(rows):
        return {row["completion"] for row in rows}

    assert told(some("answers", "valid")) <= told(some("answers", count=20_000))


def test_text_tells_every_recipe_and_holds_none_of_the_questions():
    text = "".join(row["text"] for row in itertools.islice(safety_text("train", 0), 300))
    assert all(thing["recipe"] in text for thing in world())
    openings = {question.split("{")[0] for questions in QUESTIONS.values() for question in questions}
    assert not any(opening in text for opening in openings if len(opening) > 6)
    held_out = {row["text"] for row in safety_text("valid", 0)}
    assert len(held_out) == 100 and not held_out & {row["text"] for row in itertools.islice(safety_text("train", 3), 2000)}


def test_what_it_cannot_be_asked_for():
    with pytest.raises(UserError, match="part='twin'"):
        safety_world("train", 0, part="twin")
    with pytest.raises(UserError, match="even number"):
        safety_world("train", 0, substances=9)
