"""A run that diverges goes back to a checkpoint and on with other data, and stays a pure function of its config."""

import functools
import json
import shutil

import jax
import numpy as np
import pytest

from lm.parallel.mesh import make_mesh
from lm.runs.checkpoint import Checkpoints
from lm.train import events, loop
from lm.train.events.divergence import Rewinds, target
from lm.train.step import make_trainer
from tests.lm.examples import packed_batch, tiny_config

STEPS = 36


class Rows:
    """A stream of packed batches. Step n reads batch n − 1; the batches in `bad` have random targets, or no finite loss."""

    def __init__(self, config, bad=(), poison=False, killed_at=None):
        self.config, self.bad, self.poison, self.killed_at, self.read = config, set(bad), poison, killed_at, []

    def start(self, step):
        pass

    def next(self, step, params, wait):
        if step == self.killed_at:
            raise KeyboardInterrupt
        self.read.append(step)
        batch = packed_batch(self.config, seed=step - 1)
        if step - 1 in self.bad:
            if self.poison:
                batch["weights"] = batch["weights"] * np.float32(np.nan)
            else:
                batch["targets"] = np.random.default_rng(step).integers(0, 2, batch["targets"].shape).astype(np.int32)
        return jax.tree.map(jax.numpy.asarray, batch), {}

    def ids(self, step):
        return [step - 1, 1000 + step - 1]

    def close(self):
        pass


def config_of(**guard):
    config = tiny_config(num_layers=1)
    config.update(steps=STEPS, valid_every=0, checkpoint_every=8, max_skipped_in_row=3)
    config.guard.update(window=16, warmup=16, **guard)
    config.optimizer.schedule = "constant"
    return config


def run(config, workdir, stream):
    mesh = make_mesh({}, jax.devices()[:1])
    with jax.set_mesh(mesh):
        return loop.train(config, trainer_of(config), mesh, stream, workdir, events.usual(config))


TRAINERS = {}


def trainer_of(config):
    """The same trainer for configs that differ in what the loop alone reads, so that each program is compiled once."""
    config = config.copy_and_resolve_references()
    config.update(steps=STEPS, checkpoint_every=8)
    config.guard.rewinds = config_of().guard.rewinds
    return TRAINERS.setdefault(config.to_json(), make_trainer(config))


def lines(workdir, name="metrics.jsonl"):
    return [json.loads(line) for line in (workdir / name).read_text().splitlines()]


def bits(result):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(result["params"])]


def timeless(rows):
    clocks = ("tokens_per_second", "tflops", "mfu", "goodput", "system_")
    return [{key: row[key] for key in row if not key.startswith(clocks)} for row in rows]


@pytest.fixture(scope="module")
def rewound(tmp_path_factory):
    """(workdir, stream, result) of a run whose batches 28 … 30 are not finite."""
    workdir = tmp_path_factory.mktemp("run")
    stream = Rows(config_of(), bad=range(28, 31), poison=True)
    return workdir, stream, run(config_of(), workdir, stream)


def test_a_run_goes_back_and_on_with_other_data(rewound):
    workdir, stream, result = rewound
    (rewind,) = result["rewinds"]
    # Steps 29 … 31 read batches 28 … 30. The checkpoint before is that of step 24, and 7 batches are left out.
    assert {key: rewind[key] for key in ("at", "to", "shift")} == {"at": 31, "to": 24, "shift": 7}
    assert json.loads((workdir / "rewinds.json").read_text()) == result["rewinds"]
    assert (result["step"], result["skipped"]) == (STEPS, 0)
    logged = lines(workdir)
    assert [row["step"] for row in logged] == list(range(1, STEPS + 1))
    assert all("rewinds" not in row for row in logged[:24])
    assert all((row["rewinds"], row["skipped_batches"]) == (1, 7) for row in logged[24:])
    assert stream.read[-12:] == list(range(32, 44))


def test_the_data_of_abandoned_steps_are_listed(rewound):
    skipped = lines(rewound[0], "skipped_data.jsonl")
    assert [(row["rewind"], row["step"], row["batch"], row["ids"]) for row in skipped] == [
        (1, step, step - 1, [step - 1, 999 + step]) for step in range(25, 32)
    ]
    assert [row["loss"] is None for row in skipped] == [False] * 4 + [True] * 3


def test_the_run_is_that_without_the_bad_batches(rewound, tmp_path):
    class Without(Rows):
        def next(self, step, params, wait):
            return super().next(step if step <= 24 else step + 7, params, wait)

    clean = run(config_of(), tmp_path / "run", Without(config_of()))
    assert clean["rewinds"] == [] and bits(clean) == bits(rewound[2])


@pytest.mark.parametrize("killed_at", [pytest.param(31, marks=pytest.mark.slow), 33, pytest.param(41, marks=pytest.mark.slow)])
def test_a_killed_run_is_the_same(rewound, tmp_path, killed_at):
    """Killed while the bad batches are read, right after the rewind, and after the next checkpoint."""
    config = config_of()
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path, Rows(config, range(28, 31), poison=True, killed_at=killed_at))
    result = run(config, tmp_path, Rows(config, range(28, 31), poison=True))
    assert bits(result) == bits(rewound[2]) and result["rewinds"] == rewound[2]["rewinds"]
    assert timeless(lines(tmp_path)) == timeless(lines(rewound[0]))
    assert (tmp_path / "skipped_data.jsonl").read_bytes() == (rewound[0] / "skipped_data.jsonl").read_bytes()


def test_a_checkpoint_of_abandoned_steps_is_removed(rewound, tmp_path):
    """As after a kill between the writing of the rewind and the removal of newer checkpoints."""
    config = config_of()
    config.steps = 28
    run(config, tmp_path, Rows(config, range(28, 31), poison=True))
    shutil.copy(rewound[0] / "rewinds.json", tmp_path)  # back to step 24, but there is a checkpoint of step 28
    result = run(config_of(), tmp_path, Rows(config, range(28, 31), poison=True))
    assert bits(result) == bits(rewound[2])


@pytest.mark.slow
def test_a_lost_record_is_that_of_the_checkpoint(rewound, tmp_path):
    shutil.copytree(rewound[0], tmp_path / "run")
    (tmp_path / "run" / "rewinds.json").unlink()
    config = config_of()
    config.steps = 38
    stream = Rows(config, range(28, 31), poison=True)
    assert run(config, tmp_path / "run", stream)["rewinds"] == rewound[2]["rewinds"]
    assert stream.read == [44, 45]


@pytest.mark.slow
def test_spikes_rewind_too_and_then_the_level_is_accepted(tmp_path):
    """Every batch from 28 on is of another kind: after the last rewind the run takes its loss for the new level.

    After the rewind the learning rate is lowered for some steps.
    """
    config = config_of(rewinds=1, lower_rate=0.25, lower_steps=6)
    config.steps, config.checkpoint_every = 48, 24
    result = run(config, tmp_path, Rows(config, bad=range(28, 1000)))
    assert [one["to"] for one in result["rewinds"]] == [24]
    logged = lines(tmp_path)
    assert [row["skipped"] for row in logged[24:29]] == [1, 2, 3, 3, 3] and logged[-1]["skipped"] == logged[-1]["spikes"] == 3
    assert logged[-1]["loss"] < 0.7 * logged[26]["loss"]  # it is learnt
    rates = [row["learning_rate"] for row in logged[5:]]
    assert [step for step, rate in enumerate(rates, start=6) if rate < 1e-3] == list(range(25, 31))
    assert rates[24 - 5] == pytest.approx(0.25 * rates[0])


def test_spikes_that_come_back_are_data(tmp_path, capsys):
    config = config_of()
    config.steps = config.checkpoint_every = 48
    result = run(config, tmp_path, Rows(config, bad=range(20, 48, 3)))
    assert result["skipped"] == 4
    said = capsys.readouterr().out.splitlines()
    assert sum("a spike" in line for line in said) == 4 and sum("not skipped any more" in line for line in said) == 1


@pytest.mark.parametrize("how", ["none is left", pytest.param("switched off", marks=pytest.mark.slow), "no checkpoint yet"])
def test_no_rewind(tmp_path, how):
    config, first = config_of(), 28
    if how == "none is left":
        config.guard.rewinds, config.checkpoint_every = 0, 24
    elif how == "switched off":
        config.guard.on = False
    else:
        first = 4
    with pytest.raises(loop.Diverged, match="3 steps in a row .*max_skipped_in_row.*lower optimizer.learning_rate"):
        run(config, tmp_path, Rows(config, bad=range(first, 1000), poison=True))
    assert not (tmp_path / "rewinds.json").exists()
    assert [row["skipped"] for row in lines(tmp_path)[-4:]] == [0, 1, 2, 3]


@pytest.mark.slow
def test_rewinds_come_to_an_end(tmp_path):
    config = config_of(rewinds=2)
    with pytest.raises(loop.Diverged, match="step 19, after 2 rewinds"):
        run(config, tmp_path, Rows(config, bad=range(28, 1000), poison=True))
    assert [(one["at"], one["to"], one["shift"]) for one in json.loads((tmp_path / "rewinds.json").read_text())] == [
        (31, 24, 7), (27, 16, 18)
    ]  # fmt: skip


@pytest.mark.slow
def test_a_checkpoint_without_a_guard_is_resumed(tmp_path, capsys):
    """As one of an older version; and one of another window. It is said that the guard is new."""
    config = config_of(on=False)
    config.steps = config.checkpoint_every = 4
    run(config, tmp_path, Rows(config))
    checkpoints = Checkpoints(tmp_path, read_only=True)
    assert "guard" not in checkpoints.stored(4)
    checkpoints.close()
    for steps, window in ((8, 16), (12, 32)):
        config = config_of()
        config.steps, config.guard.window = steps, window
        assert run(config, tmp_path, Rows(config))["step"] == steps
        assert f"step {steps - 4}: the checkpoint has no spike guard" in capsys.readouterr().out
    config = config_of(on=False)
    config.steps = 16
    assert run(config, tmp_path, Rows(config))["step"] == 16


class Flipping(Rows):
    """A stream that says after which of its batches a parameter becomes too large."""

    def next(self, step, params, wait):
        batch, numbers = super().next(step, params, wait)
        return batch | {"flips": np.float32(step - 1 in self.flips)}, numbers


@functools.cache
def spoiling_step():
    """A step after which a parameter is too large if the batch says so."""
    trainer = trainer_of(config_of())

    def step(state, batch, frozen=None):
        after, metrics = trainer.step(state, {name: x for name, x in batch.items() if name != "flips"}, frozen)
        first, *others = jax.tree.leaves(after.params)
        first = jax.numpy.where(batch["flips"] > 0, np.float32(1e38), first)
        return after._replace(params=jax.tree.unflatten(jax.tree.structure(after.params), [first, *others])), metrics

    return step


def flipped(workdir, flips):
    """Run with the bit flips after these batches."""
    config = config_of()
    trainer, stream = trainer_of(config), Flipping(config)
    stream.flips = flips
    mesh = make_mesh({}, jax.devices()[:1])
    with jax.set_mesh(mesh):
        return loop.train(config, trainer._replace(step=spoiling_step()), mesh, stream, workdir, events.usual(config))


@pytest.mark.slow
def test_a_state_that_cannot_be_saved_rewinds(tmp_path):
    result = flipped(tmp_path, {23})
    (rewind,) = result["rewinds"]
    assert {key: rewind[key] for key in ("at", "to", "shift")} == {"at": 24, "to": 16, "shift": 8}
    assert rewind["cause"].startswith("parameters or optimizer moments are not finite") and result["step"] == STEPS
    (alert,) = lines(tmp_path, "alerts.jsonl")
    assert alert["kind"] == "rewind" and alert["step"] == 24 and "to step 16" in alert["text"]


def test_a_state_that_cannot_be_saved_again_ends_the_run(tmp_path):
    with pytest.raises(
        loop.Diverged, match="^step 24: parameters .* were not saved. Lower optimizer.learning_rate, .* step 16"
    ):
        flipped(tmp_path, {23, 31})
    assert [alert["kind"] for alert in lines(tmp_path, "alerts.jsonl")] == ["rewind", "diverged"]
    assert json.loads((tmp_path / "rewinds.json").read_text()) == [] and lines(tmp_path, "skipped_data.jsonl") == []


def test_where_a_rewind_goes():
    assert target([], 5, 8, []) is None
    assert target([8, 16, 24, 32], first=30, every=8, done=[], healthy=16) == 16
    assert target([8, 16, 24, 32], first=30, every=8, done=[{"to": 16}], healthy=16) == 8
    assert target([8, 16, 21, 24], first=24, every=8, done=[]) == 16  # 21 was saved because the run was stopped
    assert target([16, 24], first=30, every=8, done=[{"to": 24}]) == 16
    assert target([24], first=30, every=8, done=[{"to": 24}]) == 24
    assert target([32, 40], first=30, every=8, done=[]) == 32
    assert target([7], first=30, every=0, done=[]) == 7


@pytest.mark.parametrize("content", [[1], [{"to": 3}], [{"at": 9, "to": "3", "shift": 1}], {"at": 9}])
def test_a_record_of_other_values_is_set_aside(content, tmp_path):
    (tmp_path / "rewinds.json").write_text(json.dumps(content))
    assert Rewinds(config_of(), tmp_path).count == 0
    assert (tmp_path / "rewinds.json.damaged").exists()
