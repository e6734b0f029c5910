"""Processes × mesh: every layout of eight devices trains as one process does, and continues the checkpoints of all others."""

import json

import numpy as np
import pytest

from tests.verbs import runs
from tests.verbs.test_align import REWARD, command, measured
from tests.verbs.test_hosts import ends, start_all

pytestmark = pytest.mark.slow
LAYOUTS = {  # processes, devices of each, mesh
    "one": (1, 1, {}),
    "eight devices": (1, 8, {"data": 2, "fsdp": 2, "tensor": 2}),
    "two slices": (2, 4, {"slices": 2, "data": 2, "fsdp": 4}),
    "four slices": (4, 2, {"slices": 4, "data": 4, "tensor": 2}),
    "two slices of two processes": (4, 2, {"slices": 2, "data": 2, "fsdp": 2, "tensor": 2}),
}
SEVERAL = [name for name, (processes, *_) in LAYOUTS.items() if processes > 1]
# Each of the first four is followed by each of the others.
VISITS = ("one", "eight devices", "one", "two slices", "one", "four slices", "eight devices", "two slices", "eight devices")
VISITS += ("four slices", "two slices", "four slices", "one")


def run(layout: str, line: list[str], folder) -> None:
    """Run a command in a layout; anything but success fails the test with what the processes said."""
    processes, devices, mesh = LAYOUTS[layout]
    folder.mkdir(exist_ok=True)
    line = [*line, *(f"--config.mesh.{axis}={size}" for axis, size in mesh.items())]
    codes, said = ends(start_all([line] * processes, folder, devices), folder)
    assert codes == [0] * processes, said


@pytest.mark.parametrize("layout", SEVERAL)
def test_a_run_from_text_to_report(layout, finished, text, tmp_path):
    run(layout, runs.line(tmp_path / "run", data__input=text), tmp_path / "said")
    runs.assert_same_run(tmp_path / "run", finished, tolerance=1e-5)
    ours, theirs = (json.loads((folder / "report.json").read_text()) for folder in (tmp_path / "run", finished))
    assert ours["verdict"] == theirs["verdict"] and ours["data"] == theirs["data"]


def test_each_layout_continues_the_checkpoints_of_the_others(fresh, finished, text, tmp_path):
    assert len(set(zip(VISITS, VISITS[1:]))) == 4 * 3
    for n, layout in enumerate(VISITS, start=1):
        # A schedule that does not depend on the number of steps.
        schedule = dict(optimizer__schedule="constant", optimizer__warmup=0)
        settings = dict(steps=4 * n, checkpoint_every=0, data__input=text, valid_every=0, **schedule)
        run(layout, runs.line(fresh, **settings), tmp_path / "said")
    whole = tmp_path / "whole"
    runs.train(whole, **settings)
    runs.assert_same_run(fresh, whole, tolerance=1e-5, step=4 * len(VISITS))
    ours, theirs = runs.arrays(fresh, settings["steps"]), runs.arrays(whole, settings["steps"])
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-4, err_msg=name)


@pytest.mark.parametrize(("method", "layout"), zip(("sft", "dpo", "grpo"), SEVERAL))
def test_alignment(method, layout, finished, tmp_path):
    (tmp_path / "rewards.py").write_text(REWARD)
    for name, workdir in (("one", tmp_path / "one"), (layout, tmp_path / "run")):
        run(name, command(method, workdir, finished, tmp_path, steps=4, optimizer__learning_rate=1e-3), tmp_path / "said")
    for ours, theirs in zip(measured(tmp_path / "run"), measured(tmp_path / "one"), strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            near = {"rel": 1e-5, "abs": 1e-6} if name == "loss" else {"rel": 1e-3 if name == "grad_norm" else 1e-4, "abs": 1e-5}
            assert value == pytest.approx(theirs[name], **near), name
    ours, theirs = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("run", "one"))
    assert ours["verdict"] == theirs["verdict"]
