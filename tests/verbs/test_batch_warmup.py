"""A run whose batches grow: the same rows once each, also when it resumes on another mesh."""

import itertools
import shutil

import pytest

from tests.verbs import runs


@pytest.mark.slow
def test_rows_and_losses_are_the_same_on_another_mesh(text, tmp_path):
    keys = {"data__input": text, "steps": 16, "checkpoint_every": 8, "batch_warmup": "5: 2; 11: 4"}
    whole, again = tmp_path / "whole", tmp_path / "again"
    runs.train(whole, **keys)
    read = [line["ids"] for line in runs.lines(whole / "ids.jsonl")]
    assert [len(ids) for ids in read] == [2] * 5 + [4] * 6 + [8] * 5
    ids = list(itertools.chain(*read))
    assert len(set(ids)) == len(ids)
    shutil.copytree(whole, again)
    shutil.rmtree(again / "checkpoints" / "16")
    runs.train(again, runs.fake_devices(2), mesh__data=2, **keys)
    runs.assert_same_run(again, whole, tolerance=1e-5, step=16)


def test_batches_that_do_not_fit_the_mesh(text, tmp_path):
    command = runs.line(tmp_path / "run", data__input=text, batch_warmup="12: 3", mesh__data=2)
    done = runs.run(command, **runs.fake_devices(2))
    assert done.returncode == 2 and "batch_size=3 is not a positive multiple" in done.stderr and not (tmp_path / "run").exists()
