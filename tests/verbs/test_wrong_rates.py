"""A learning rate that is far too high for ten steps, then the right one: the run is what it would have been, or goes back."""

import json

import pytest

from tests.verbs import runs

pytestmark = pytest.mark.slow
KEYS = dict(checkpoint_every=10, valid_every=0, optimizer__warmup=1, optimizer__schedule="constant")


def finished(workdir, steps, text, **keys):
    return runs.run(runs.line(workdir, data__input=text, **(KEYS | {"steps": steps} | keys)))


def losses(workdir):
    return {row["step"]: row["loss"] for row in map(json.loads, open(workdir / "metrics.jsonl")) if "loss" in row}


@pytest.mark.parametrize("keys", [{}, {"checkpoint_every": 1}, {"optimizer__name": "muon"}, {"dtype": "bfloat16"}])
def test_1e38_leaves_the_run_as_it_was(keys, text, tmp_path):
    for workdir in (tmp_path / "wrong", tmp_path / "right"):
        assert finished(workdir, 40, text, **keys).returncode == 0
    wrong = finished(tmp_path / "wrong", 50, text, optimizer__learning_rate=1e38, **keys)
    assert wrong.returncode == 1 and ("were not saved" in wrong.stderr or "overflows" in wrong.stderr)
    for workdir in (tmp_path / "wrong", tmp_path / "right"):
        assert finished(workdir, 60, text, **keys).returncode == 0
    runs.assert_same_run(tmp_path / "wrong", tmp_path / "right", step=60)


@pytest.mark.parametrize("rate", ["1e3", "1e10", "1"])
def test_a_rate_with_finite_numbers_does_not_cost_the_last_good_checkpoint(rate, text, tmp_path):
    assert finished(tmp_path, 60, text).returncode == 0
    good = losses(tmp_path)[60]
    wrong = finished(tmp_path, 90, text, optimizer__learning_rate=rate)
    assert {50, 60} & set(runs.steps_saved(tmp_path))  # a second rewind goes back one checkpoint more
    again = finished(tmp_path, 120, text)
    if again.returncode == 0 and losses(tmp_path)[120] < 1.05 * good:
        return  # it went back by itself
    assert "to go back to it, delete the newer ones" in wrong.stdout + again.stdout
