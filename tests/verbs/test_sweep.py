"""python -m lm.sweep on real runs: killed and resumed, pruned, wrong commands, and the best learning rate."""

import contextlib
import json
import random
import signal
import sqlite3
import sys

import pytest

from tests.verbs import runs

FEW = {"steps": 16, "checkpoint_every": 8, "valid_every": 8}


RATE = "optimizer.learning_rate"
RATES = "FloatDistribution(1e-5, 1, log=True)"


def command(workdir, rates, *arguments, key=RATE, **settings) -> list[str]:
    """The command of a sweep over one key. rates: the text of its distribution."""
    space = workdir.with_name(f"{workdir.name}.py")
    space.write_text(f"from optuna.distributions import *\n\n\ndef get_config():\n    return {{{key!r}: {rates}}}\n")
    own = {"data__log_ids": False, "optimizer__learning_rate": None, "optimizer__warmup": 2} | settings
    return [sys.executable, "-m", "lm.sweep", *runs.line(workdir, **own)[2:], f"--space={space}", *arguments]


def grid(*values) -> str:
    return f"CategoricalDistribution({list(values)})"


def states(workdir) -> list[tuple[int, str]]:
    """(number, state) of each trial in the workdir's storage, without those that a grid has not begun."""
    if not (workdir / "study.db").exists():
        return []
    with contextlib.closing(sqlite3.connect(f"file:{workdir / 'study.db'}?mode=ro", uri=True)) as base:
        try:
            return base.execute("select number, state from trials where state != 'WAITING' order by number").fetchall()
        except sqlite3.OperationalError:  # the tables are just being made
            return []


def swept(line) -> str:
    done = runs.run(line)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow
def test_a_killed_sweep_goes_on_in_the_trial_that_it_left(text, tmp_path):
    workdir = tmp_path / "sweep"
    steps = 160  # the trial must still be under way when it hears that its sweep was killed
    often = {"checkpoint_every": 40, "valid_every": 80}
    line = command(workdir, grid(0.001, 0.01), "--sampler=grid", data__input=text, steps=steps, **often)
    process, trial = runs.start(line), workdir / "trials" / "0001"
    assert runs.wait(process, lambda: len(runs.training(trial)) >= 9), runs.said_by(line).read_text()
    process.kill()
    process.wait()
    assert states(workdir) == [(0, "COMPLETE"), (1, "RUNNING")]
    said = swept(line)
    assert states(workdir) == [(0, "COMPLETE"), (1, "COMPLETE")] and "trial 0:" not in said
    for number, starts in ((0, 1), (1, 2)):
        folder = workdir / "trials" / f"{number:04d}"
        assert [values["step"] for values in runs.training(folder)] == list(range(1, steps + 1))
        assert len(runs.lines(folder / "starts.jsonl")) == starts
    assert runs.lines(trial / "starts.jsonl")[1]["step"] >= 9  # it went on from a checkpoint
    rates = [json.loads((workdir / f"trials/000{i}/config.json").read_text())["optimizer"]["learning_rate"] for i in (0, 1)]
    assert rates == [0.001, 0.01]
    losses = [runs.validation(workdir / f"trials/000{i}")[-1]["valid_loss"] for i in (0, 1)]
    assert f"trial {losses.index(min(losses))} is the best of 2: {min(losses):.6g}" in said
    assert f"{min(losses):.5g}" in (workdir / "sweep.html").read_text()


@pytest.mark.parametrize(
    "key, rates, arguments, message",
    [
        ("optimizer.lerning_rate", RATES, ["--trials=2"], "did you mean optimizer.learning_rate?"),
        (RATE, RATES, [], "--trials is missing"),
        (RATE, RATES, ["--sampler=grid"], "needs a range with a step"),
        (RATE, RATES, ["--trials=2", "--config.optimizer.learning_rate=1"], "is given, and --space sweeps it"),
        (RATE, "1e-4", ["--trials=2"], "is 0.0001, not a distribution"),
        (RATE, "FloatDistribution(1, 0)", ["--trials=2"], "must hold"),
        ("optimizer.name", grid("adamw", "adamm"), ["--sampler=grid"], "optimizer.name='adamm' is none of"),
        (RATE, grid("high"), ["--sampler=grid"], "optimizer.learning_rate='high' must be of type float"),
    ],
)
def test_a_wrong_command_costs_a_line_and_leaves_nothing(key, rates, arguments, message, text, tmp_path):
    done = runs.run(command(tmp_path / "sweep", rates, *arguments, key=key, data__input=text))
    (line,) = runs.complaint(done.stderr)
    assert done.returncode == 2 and line.startswith("lm.sweep: ") and message in line
    assert not (tmp_path / "sweep").exists()


@pytest.mark.slow
def test_signals_failures_pruning_and_another_sweep(text, tmp_path):
    """Rates that diverge fail the sweep's comparison, not the sweep; Ctrl-C saves; another command is refused."""
    workdir = tmp_path / "sweep"
    rates = grid(0.01, 0.011, 0.012, 0.013, 0.014, 0.015, 1e-7, 3e38)
    line = command(workdir, rates, "--sampler=grid", "--jobs=2", data__input=text, steps=60, valid_every=10)
    process = runs.start(line)
    runs.wait(process, lambda: any(len(runs.training(folder)) >= 5 for folder in workdir.glob("trials/*")))
    process.send_signal(signal.SIGINT)
    assert process.wait(runs.DEADLINE) == 130 and "run the same command to resume" in runs.said_by(line).read_text()
    assert {state for _, state in states(workdir)} == {"RUNNING"} and len(states(workdir)) == 2
    said = swept(line)
    found = dict(states(workdir))
    assert [found[i] for i in range(6)] == ["COMPLETE"] * 6 and found[6] == "PRUNED" and found[7] in ("PRUNED", "FAIL")
    assert len(runs.training(workdir / "trials" / "0006")) < 60 and "is the best of 8" in said
    done = runs.run(command(workdir, RATES, "--sampler=random", "--trials=1", data__input=text, steps=60))
    assert done.returncode == 2 and "another sweep; use another --workdir" in done.stderr


@pytest.mark.slow
def test_twenty_trials_find_the_best_learning_rate_though_killed_twice(text, tmp_path):
    """A grid of powers of ten knows where the loss is lowest; TPE finds the place and a loss as low, in exactly 20 trials."""
    settings = dict(data__input=text, steps=40, valid_every=10, checkpoint_every=10)
    known, workdir = tmp_path / "known", tmp_path / "sweep"
    powers = [10.0**n for n in range(-5, 1)]
    swept(command(known, grid(*powers), "--sampler=grid", "--pruner=none", "--jobs=2", **settings))
    measured = {}
    for folder in sorted(known.glob("trials/*")):
        if folder.is_dir() and runs.validation(folder):
            rate = json.loads((folder / "config.json").read_text())["optimizer"]["learning_rate"]
            measured[rate] = runs.validation(folder)[-1]["valid_loss"]
    lowest = min(measured.values())
    good = [rate for rate, loss in measured.items() if loss <= lowest + 0.02]
    assert len(good) <= 2 and len(measured) == 6 and min(good) > 1e-4  # a small part of the range

    line = command(workdir, RATES, "--trials=20", "--jobs=2", **settings)
    draw = random.Random(0)
    for share in (1, 2):
        process = runs.start(line)
        target = 6 * share + draw.random() * 3
        runs.wait(process, lambda: len(states(workdir)) > target and len(runs.training(last(workdir))) > 3)  # noqa: B023
        process.kill()
        process.wait()
        assert states(workdir)[-1][1] == "RUNNING"
    swept(line)
    assert len(states(workdir)) == 20 and {state for _, state in states(workdir)} <= {"COMPLETE", "PRUNED", "FAIL"}
    results = {}
    for number, state in states(workdir):
        folder = workdir / "trials" / f"{number:04d}"
        if state == "COMPLETE":
            rate = json.loads((folder / "config.json").read_text())["optimizer"]["learning_rate"]
            results[rate] = runs.validation(folder)[-1]["valid_loss"]
            assert [values["step"] for values in runs.training(folder)] == list(range(1, 41))
    found = min(results, key=results.get)
    assert results[found] <= lowest + 0.02 and min(good) / 10**0.5 <= found <= max(good) * 10**0.5
    assert f"{results[found]:.5g}" in (workdir / "sweep.html").read_text()


def last(workdir):
    return max(folder for folder in workdir.glob("trials/*") if folder.is_dir())
