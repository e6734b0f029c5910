"""The judge of recipes: each arm at its best rate, its steps, and controls that must not learn."""

import argparse
import json
import subprocess
import sys

import numpy as np
import pytest

from benchmarks.recipe import RATE_SEED, REPO, adamw, arms_scores, best_of_rates, compared, judged, shuffled, sized

BEST = {"good": 2.0, "bad": 0.5}  # factors


def runs(**run):
    """Scores that are better near an arm's best factor, with more steps, and for the arm `good`; by seed they vary."""
    name = run["arm"].partition(":")[0]
    score = 3 + 0.1 * abs(run["factor"] - BEST[name]) - run["steps"] / 1000 - (name == "good") + 0.01 * (run["seed"] % 7)
    return {"bits_per_byte": score, "cpu_per_step": 2.0 if name == "good" else 1.0, "run": run, **run}


BAD = """
from benchmarks import recipe


def bad(config):
    config.optimizer.embedding_rate = config.optimizer.head_rate = 1.0
    return recipe.default(config)
"""
OPTIONS = argparse.Namespace(steps=100, seeds=5)


def test_an_arm_is_scored_at_its_best_rate_which_other_seeds_choose():
    scores = arms_scores(runs, "good", "1M", OPTIONS)
    assert [score["seed"] for score in scores] == [0, 1, 2, 3, 4] and RATE_SEED not in range(5)
    assert {(score["factor"], score["steps"]) for score in scores} == {(2.0, 100)}
    assert {score["arm"] for score in arms_scores(runs, "bad:again", "1M", OPTIONS)} == {"bad:again"}


def test_other_rates_are_tried_while_the_last_one_is_better():
    assert best_of_rates(runs, (0.125, 0.25, 0.5), arm="good", size="1M", steps=100)["factor"] == 2.0
    assert best_of_rates(runs, (1.0, 2.0, 4.0), arm="bad", size="1M", steps=100)["factor"] == 0.5


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


def test_what_helps_at_one_size_and_hurts_at_another_is_discarded():
    better, worse, unclear = ({"difference": d, "p": p} for d, p in ((-0.1, 0.001), (0.1, 0.02), (-0.1, 0.3)))
    assert judged([better, better]) == "kept"
    assert judged([better, worse]) == judged([worse]) == "discarded"
    assert judged([better, unclear]) == judged([better, {"difference": -0.1, "p": None}]) == "too few to tell"


@pytest.mark.slow
def test_the_judge_discards_a_planted_bad_change_and_keeps_its_inverse(tmp_path):
    (tmp_path / "planted.py").write_text(BAD)
    bad = f"{tmp_path / 'planted.py'}:bad"

    def verdict(base, arm):
        sizes = ["--sizes=0.15M", "--steps=40", "--seeds=3", f"--data={REPO}/docs", f"--out={tmp_path / 'runs'}"]
        command = [sys.executable, "-m", "benchmarks.recipe", f"--arms={base},{arm}", *sizes]
        done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])[f"{arm} is"]

    assert verdict("default", bad) == "discarded"
    assert verdict(bad, "default") == "kept"  # from the same runs
    assert verdict("default", "default:again") == "too few to tell"


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
