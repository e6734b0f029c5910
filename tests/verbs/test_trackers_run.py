"""A run that is killed and resumed leaves in each tracker, as its own package reads it, what metrics.jsonl holds, once."""

import math
import signal
from collections import Counter
from pathlib import Path

import pytest

from tests.trackers import READERS
from tests.verbs import runs

pytestmark = pytest.mark.slow


def numbers(workdir: Path) -> dict[tuple[str, int], float]:
    """(metric, step) -> value of metrics.jsonl; a metric that is logged twice at a step keeps its first value."""
    found = {}
    for line in runs.lines(workdir / "metrics.jsonl"):
        for name, value in line.items():
            if name != "step" and value is not None:
                found.setdefault((name, line["step"]), value)
    return found


@pytest.fixture(scope="module")
def tracked(text, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("tracked") / "run"
    variables = {"HOME": str(workdir.parent / "home")}  # without an account
    settings = dict(data__input=text, trackers="wandb, mlflow,trackio", steps=60)
    for target, signum in ((25, signal.SIGTERM), (55, signal.SIGKILL)):  # SIGTERM lets the trackers finish
        process = runs.start(runs.line(workdir, **settings), **variables)
        runs.wait(process, lambda: len(runs.training(workdir)) >= target)  # noqa: B023 (called at once)
        process.send_signal(signum)
        process.wait()
    done = runs.run(runs.line(workdir, **settings, keep_last=3), **variables)
    assert done.returncode == 0 and "is off" not in done.stdout, done.stdout + done.stderr[-4000:]
    return workdir


@pytest.mark.parametrize("name", READERS)
def test_a_tracker_has_each_number_once_and_what_the_run_is(name, tracked):
    config, rows = READERS[name](tracked)
    expected = numbers(tracked)
    counts = Counter((name, step) for name, step, _ in rows)
    assert set(counts.values()) == {1} and counts.keys() == expected.keys()
    exact = {"tokens", "skipped", "learning_rate"}  # of a rewound step, a tracker may have the clock of the first time
    for name, step, value in rows:
        if name in exact or name.startswith(("loss", "grad", "valid_")):
            assert math.isclose(value, expected[name, step], rel_tol=1e-12), (name, step)
    assert {("system_memory_gib", 60), ("valid_loss", 60), ("loss", 1)} <= expected.keys()
    assert str(config["optimizer.learning_rate"]) == "0.002" and str(config["model.num_layers"]) == "1"
    assert "train.py --config=configs/train/tiny.py" in config["run.command"]
    assert config["run.machine.jax"] and "cpu cpu" in "".join(config)
    (hash,) = [path.name for path in tracked.glob("data/*") if path.is_dir()]
    assert config[f"run.data.prepared.{hash}"] and config["run.data.tokenizer"]


def test_each_start_is_recorded_in_the_workdir(tracked):
    starts = runs.lines(tracked / "starts.jsonl")
    assert [start["step"] for start in starts] == sorted(start["step"] for start in starts) and len(starts) == 3
    assert starts[0]["step"] == 0 and starts[-1]["step"] >= 20
    assert "keep_last=3" in starts[-1]["command"] and "keep_last" not in starts[0]["command"]
