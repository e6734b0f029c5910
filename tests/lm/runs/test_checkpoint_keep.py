"""Which checkpoints stay: by number, multiples, hours and validation loss; and a disk that does not keep what is written."""

import json
import os

import jax
import numpy as np
import pytest

from configs.train import tiny
from lm.errors import UserError
from lm.runs.checkpoint import Checkpoints
from lm.train.events.saves import Losses, opened


def values(step):
    return jax.random.normal(jax.random.key(step), (64, 64))


def save(checkpoints, *steps):
    for step in steps:
        checkpoints.save(step, {"params": {"a": values(step)}}, {"tokens": step})


def stay(workdir):
    return sorted(path.name for path in (workdir / "checkpoints").iterdir() if path.name[0].isdigit())


@pytest.mark.parametrize(
    "keep, left",
    [
        (dict(keep_last=2), ["5", "6"]),
        (dict(keep_last=1, keep_every=4), ["4", "6"]),
        (dict(keep_last=1, keep_hours=1e-9), ["1", "6"]),  # a second at least; all but the first come within it
        (dict(keep_last=1, keep_chosen=[min]), ["1", "6"]),
        (dict(keep_last=1, keep_chosen=[lambda steps: None]), ["6"]),
        (dict(keep_last=1, keep_every=5, keep_chosen=[min, lambda steps: 3 if 3 in steps else None]), ["1", "3", "5", "6"]),
    ],
)
def test_what_is_kept(tmp_path, keep, left):
    checkpoints = Checkpoints(tmp_path, **keep)
    if "keep_hours" in keep:
        keep_apart(checkpoints)
    save(checkpoints, 1, 2, 3, 4, 5, 6)
    checkpoints.wait()
    checkpoints.close()
    assert stay(tmp_path) == left


def keep_apart(checkpoints):
    """Let an hour be longer than the test."""
    for policy in checkpoints._manager._options.preservation_policy.policies:
        if hasattr(policy, "interval_secs"):
            assert policy.interval_secs == 1
            policy.interval_secs = 3600


def kept(workdir, keep_best, *losses):
    """Save a checkpoint a step with its validation and training loss, each before the other is known, and return what stays."""
    config = tiny.get_config()
    config.update(keep_last=1, keep_best=keep_best, checkpoint_every=1)
    checkpoints, record = opened(config, workdir)
    for step, (valid, trained) in enumerate(losses, start=1):
        record.trained(trained)
        record.saving(step, checkpoints.steps())
        save(checkpoints, step)
        record.validated(step, {"loss": valid})  # as in the loop: a checkpoint is validated after it was saved
    checkpoints.wait()
    checkpoints.close()
    return stay(workdir)


def test_a_best_one_that_is_beaten_goes(tmp_path):
    losses = [(5.0, 5.0), (3.0, 4.9), (4.0, 4.8), (2.0, 4.7), (2.5, 4.6)]
    assert kept(tmp_path / "best", True, *losses) == ["4", "5"]
    assert kept(tmp_path / "last", False, *losses) == ["5"]


@pytest.mark.parametrize(
    "losses, left",
    [
        ([5.0, 4.0, 4.1, 4.1], ["4"]),  # noise
        ([5.0, 4.0, 7.0, 7.0], ["2", "4"]),
        ([5.0, 4.0, None, float("nan"), 4.0], ["5"]),  # it is good again
        ([None, None, None], ["3"]),
        ([0.1, -1.0, -0.9], ["2", "3"]),
    ],
)
def test_the_last_checkpoint_with_a_low_loss_stays(losses, left, tmp_path):
    assert kept(tmp_path, False, *[(1.0, loss) for loss in losses]) == left


def test_losses_are_read_from_the_log(tmp_path):
    lines = [
        *({"step": step, "loss": 9.0 - step / 10} for step in range(1, 31)),
        {"step": 10, "valid_loss": 3.0, "valid_bits_per_byte": 1.0},
        {"step": 20, "valid_reward": 0.5},
        {"step": 30, "valid_loss": None},
        {"step": 31, "loss": None},
        {"step": 31, "loss": "x", "valid_loss": [1]},
        {"step": 31, "valid_reward": "x"},
        {"step": 40, "loss": 1.0, "valid_loss": 0.1},
    ]
    log = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(log + '{"step": 40, "valid_l')
    config = tiny.get_config()
    config.checkpoint_every = 10
    kept = Losses(config, tmp_path)
    kept.read(begin=31)
    assert kept.best([10, 20, 30, 40]) == 20 and kept.best([10, 30]) == 10 and kept.best([30]) is None
    assert kept.healthy([10, 20, 30]) == 30 and kept.healthy([10]) is None
    for _ in range(10):
        kept.trained(9.0)
    assert "was 6.45 at step 30. Checkpoint 30 stays" in kept.saving(40, [30]) and kept.healthy([30, 40]) == 30
    assert kept.saving(50, [30]) is None  # it was said
    assert json.loads((tmp_path / "healthy.json").read_text()) == {"step": 30}


@pytest.fixture
def disk(monkeypatch):
    """A disk that flips a byte of the file of the array while `bad` is not 0, which counts down."""
    state = {"bad": 0}

    def lies(file, *args):
        path = os.readlink(f"/proc/self/fd/{file}")
        if state["bad"] and "/d/" in path and os.path.getsize(path) > 10_000:
            state["bad"] -= 1
            with open(path, "r+b") as other:
                other.seek(50)
                byte = other.read(1)
                other.seek(50)
                other.write(bytes([byte[0] ^ 0xFF]))

    monkeypatch.setattr(os, "posix_fadvise", lies)
    return state


def test_a_save_that_went_wrong_is_set_aside_and_the_older_one_stays(tmp_path, disk, capfd):
    checkpoints = Checkpoints(tmp_path, keep_last=1)
    save(checkpoints, 1)
    checkpoints.wait()
    disk["bad"] = 1
    save(checkpoints, 2)
    save(checkpoints, 3)  # the next occasion; waits for the save before
    assert checkpoints.latest() == 3
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1 and "checkpoints/2 is damaged" in said[0] and "2.damaged" in said[0]
    checkpoints.wait()
    checkpoints.close()
    assert stay(tmp_path) == ["2.damaged", "3"]
    reader = Checkpoints(tmp_path, read_only=True)
    assert reader.whole() == 3
    np.testing.assert_array_equal(reader.read_params(3, reader.stored_params(3))["a"], values(3))
    reader.close()


def test_the_last_save_is_repeated(tmp_path, disk):
    checkpoints = Checkpoints(tmp_path, keep_last=1)
    save(checkpoints, 1)
    checkpoints.wait()
    disk["bad"] = 1
    save(checkpoints, 2)
    checkpoints.wait(lambda: save(checkpoints, 2))
    assert stay(tmp_path) == ["2", "2.damaged"] and checkpoints.whole() == 2

    disk["bad"] = 2
    save(checkpoints, 3)
    with pytest.raises(UserError, match=r"does not keep what is written \(state/.* was written wrongly\)"):
        checkpoints.wait(lambda: save(checkpoints, 3))
    assert stay(tmp_path) == ["2", "2.damaged", "3.damaged", "3.damaged-1"] and checkpoints.latest() == 2
    checkpoints.close()
