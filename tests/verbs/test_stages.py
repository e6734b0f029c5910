"""train.py with stages: from text to report, and on from there without them."""

import json

import numpy as np
import pytest

from tests.verbs import runs

pytestmark = pytest.mark.slow
SETTINGS = {
    "model__num_layers": 4,
    "valid_every": 10,
    "checkpoint_every": 10,
    "samples": "('The ',)",
    "optimizer__schedule": "constant",
    "optimizer__warmup": 5,
}


def losses(workdir):
    return [line["loss"] for line in runs.training(workdir)]


def test_a_run_with_stages_writes_its_report_and_goes_on_without_them(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("".join(f"The {n} of {n * n} is a number, and {n + 7} is another one.\n\n" for n in range(2000)))
    settings = SETTINGS | {"data__input": text}
    staged, alone = tmp_path / "staged", tmp_path / "alone"
    runs.train(staged, runs.fake_devices(4), **settings, steps=10, mesh__stage=2, model__pipeline__microbatches=4)
    report = json.loads((staged / "report.json").read_text())
    assert report["finished"] and (staged / "report.html").is_file()
    runs.train(staged, runs.fake_devices(2), **settings, steps=20)
    runs.train(alone, **settings, steps=20)
    np.testing.assert_allclose(losses(staged), losses(alone), atol=1e-5)
