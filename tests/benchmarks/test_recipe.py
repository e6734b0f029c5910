"""The judge of recipes: each arm at its best rate, its steps, and controls that must not learn."""

import argparse

import numpy as np
import pytest

from benchmarks.recipe import RATE_SEED, adamw, arms_scores, compared, shuffled, sized

BEST = {"good": 2.0, "bad": 0.5}  # factors


def runs(**run):
    """Scores that are better near an arm's best factor, with more steps, and for the arm `good`; by seed they vary."""
    name = run["arm"].partition(":")[0]
    score = 3 + 0.1 * abs(run["factor"] - BEST[name]) - run["steps"] / 1000 - (name == "good") + 0.01 * (run["seed"] % 7)
    return {"bits_per_byte": score, "cpu_per_step": 2.0 if name == "good" else 1.0, "run": run, **run}


OPTIONS = argparse.Namespace(steps=100, seeds=5)


def test_an_arm_is_scored_at_its_best_rate_which_other_seeds_choose():
    scores = arms_scores(runs, "good", "1M", OPTIONS)
    assert [score["seed"] for score in scores] == [0, 1, 2, 3, 4] and RATE_SEED not in range(5)
    assert {(score["factor"], score["steps"]) for score in scores} == {(2.0, 100)}
    assert {score["arm"] for score in arms_scores(runs, "bad:again", "1M", OPTIONS)} == {"bad:again"}


def test_a_share_of_the_steps_and_equal_seconds():
    base = arms_scores(runs, "bad", "1M", OPTIONS)
    assert arms_scores(runs, "good@0.5", "1M", OPTIONS, base)[0]["steps"] == 50
    assert arms_scores(runs, "good@1s", "1M", OPTIONS, base)[0]["steps"] == 50  # a step costs twice as much
    assert arms_scores(runs, "good@0.5s", "1M", OPTIONS, base)[0]["steps"] == 25


def test_a_planted_gain_is_found_and_an_equal_arm_is_not():
    bad, good = (arms_scores(runs, arm, "1M", OPTIONS) for arm in ("bad", "good"))
    found = compared(bad, good)
    assert found["difference"] == pytest.approx(-1) and found["p"] < 0.01
    assert compared(good, bad)["difference"] > 0
    assert compared(bad, bad)["p"] == 1


def test_shuffled_targets_keep_their_frequencies_and_their_places_without_weight():
    weights = np.array([[1, 1, 1, 1, 0, 0, 1, 1]] * 4, np.float32)
    targets = np.arange(32).reshape(4, 8)
    rows = shuffled({"targets": targets, "weights": weights}, seed=0, n=3)
    assert not np.array_equal(rows["targets"], targets) and sorted(rows["targets"].flat) == sorted(targets.flat)
    np.testing.assert_array_equal(rows["targets"][:, 4:6], targets[:, 4:6])


def test_the_former_default_is_frozen():
    config = adamw(sized("1M", "text"))
    o = config.optimizer
    assert (o.name, o.schedule, o.learning_rate, o.embedding_rate, o.b1) == ("adamw", "cosine", 4e-3, 1.0, 0.9)
    assert (config.model.init, config.model.qk_norm) == ("gpt2", "none")
