"""Epochs beside steps, what is cut or dropped, and validation before continued pretraining, as a user meets them."""

import json
import math

import pytest

from tests.verbs import runs


@pytest.fixture(scope="module")
def trained(tmp_path_factory, text):
    """A run of an eighth of an epoch, and what it said."""
    workdir = tmp_path_factory.mktemp("epochs") / "run"
    done = runs.run(runs.line(workdir, data__input=text, steps=None, epochs=0.12, optimizer__learning_rate=None))
    assert done.returncode == 0, done.stderr[-3000:]
    return workdir, done.stdout


def test_steps_follow_from_epochs(trained):
    workdir, said = trained
    config = json.loads((workdir / "config.json").read_text())
    (row,) = (row for row in said.splitlines() if "epochs of" in row)
    rows = int(row.split("epochs of ")[1].split()[0].replace(",", ""))
    assert config["steps"] == math.ceil(rows * 0.12 / config["batch_size"]) and config["epochs"] == 0.12
    assert len(runs.training(workdir)) == config["steps"]
    assert config["optimizer"]["learning_rate"] == 0.013 and "chosen for random weights" in said


def test_a_finished_run_of_epochs_stays_finished_until_more_are_asked_for(trained, text):
    workdir, _ = trained
    again = runs.run(runs.line(workdir, data__input=text, steps=None, epochs=0.12, optimizer__learning_rate=None))
    assert again.returncode == 0 and "is finished" in again.stdout
    before = len(runs.training(workdir))
    more = runs.run(runs.line(workdir, data__input=text, steps=None, epochs=0.14, optimizer__learning_rate=None))
    assert more.returncode == 0 and len(runs.training(workdir)) > before


def test_both_lengths_are_one_too_many(text, tmp_path):
    done = runs.run(runs.line(tmp_path / "run", data__input=text, steps=3, epochs=1))
    assert done.returncode == 2 and "give one of them" in done.stderr and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_continued_training_shows_where_it_began_and_what_was_cut(trained, text, tmp_path):
    start, _ = trained
    settings = {"data__input": text, "steps": 2, "init_from": start, "data__max_bytes": 20_000}
    settings |= {key: None for key in runs.SETTINGS if key.startswith(("model.", "optimizer."))}
    done = runs.run(runs.line(tmp_path / "run", **settings))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "left out by data.max_bytes=20000" in done.stdout and "continued training, trained weights" in done.stdout
    first, *_, last = (row for row in runs.lines(tmp_path / "run" / "metrics.jsonl") if "valid_loss" in row)
    assert first["step"] == 0 and last["step"] == 2
    assert first["valid_bits_per_byte"] < 6  # not that of random weights, 8
