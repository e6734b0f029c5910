"""A run with Muon, int8 moments and a moving average resumes bit for bit, and evaluates what it saves."""

import shutil

import pytest

from tests.slow import all_but
from tests.verbs import runs


@pytest.mark.slow
def test_resumes_bit_for_bit(text, tmp_path):
    keys = {"data__input": text, "steps": 12, "checkpoint_every": 6, "ema": 0.9}
    keys |= {"optimizer__name": "muon", "optimizer__state_dtype": "int8"}
    whole, again = tmp_path / "whole", tmp_path / "again"
    runs.train(whole, **keys)
    shutil.copytree(whole, again)
    shutil.rmtree(again / "checkpoints" / "12")
    runs.train(again, **keys)
    runs.assert_same_run(again, whole, step=12)

    done = runs.run(runs.line(again, **keys | {"optimizer__name": "lion", "steps": 15}))
    assert done.returncode == 2 and "optimizer.name is muon" in done.stderr, done.stderr


BAD = [
    ("optimizer.name", "adam", "optimizer.name='adam' is none of normuon, muon, adamw, lion"),
    ("optimizer.state_dtype", "int4", "optimizer.state_dtype='int4' is none of"),
    ("ema", "1.0", "ema=1.0 must be at least 0"),
]


@pytest.mark.parametrize("key, value, message", all_but(BAD[:1], BAD))
def test_bad_values(tmp_path, key, value, message):
    done = runs.run([*runs.line(tmp_path / "run"), f"--config.{key}={value}"])
    assert done.returncode == 2 and message in done.stderr and not (tmp_path / "run").exists()
