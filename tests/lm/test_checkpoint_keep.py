"""Which checkpoints stay: by number, multiples, hours and validation loss; and a disk that does not keep what is written."""

import os

import jax
import numpy as np
import pytest

from lm.checkpoint import Checkpoints
from lm.errors import UserError


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
        (dict(keep_last=1, losses={1: 3.0, 3: 1.0, 5: 2.0}), ["3", "6"]),
        (dict(keep_last=1, losses={}), ["6"]),
        (dict(keep_last=1, keep_every=5, losses={2: 1.0, 6: 0.5}), ["5", "6"]),
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


def test_a_best_one_that_is_beaten_goes(tmp_path):
    losses = {}
    checkpoints = Checkpoints(tmp_path, keep_last=1, losses=losses)
    for step, loss in ((1, 5.0), (2, 3.0), (3, 4.0), (4, 2.0)):
        save(checkpoints, step)
        losses[step] = loss  # as in the loop: a checkpoint is validated after it was saved
    save(checkpoints, 5)
    checkpoints.wait()
    checkpoints.close()
    assert stay(tmp_path) == ["4", "5"]
    checkpoints = Checkpoints(tmp_path, keep_last=1, losses={4: 2.0, 5: 1.0})  # another process reads the losses from the log
    save(checkpoints, 6)
    checkpoints.wait()
    checkpoints.close()
    assert stay(tmp_path) == ["5", "6"]


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
    np.testing.assert_array_equal(reader.read_params(reader.whole(), ["a"])["a"], values(3))
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
