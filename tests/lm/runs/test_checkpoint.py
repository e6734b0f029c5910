"""Checkpoints of which files are damaged: found before they are read, named, set aside, and the one before is taken."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.errors import UserError
from lm.runs.checkpoint import Checkpoints
from lm.runs.damage import damage


def state(step):
    values = jax.random.normal(jax.random.key(step), (300, 70))
    return {"params": {"a": values, "b": jnp.arange(12.0).reshape(3, 4) + step}, "step": jnp.int32(step)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A workdir with the whole checkpoints 1, 2 and 3."""
    workdir = tmp_path_factory.mktemp("saved")
    checkpoints = Checkpoints(workdir, keep_last=3)
    for step in (1, 2, 3):
        checkpoints.save(step, state(step), {"tokens": 100 * step})
    checkpoints.wait()
    checkpoints.close()
    return workdir


@pytest.fixture
def workdir(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


def largest(folder):
    return max((path for path in (folder / "state").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path, at=None):
    data = bytearray(path.read_bytes())
    for i in range(5):
        data[(len(data) // 2 if at is None else at) + i] ^= 0xFF
    path.write_bytes(data)


READABLE_TO_THE_END = {  # what checksums alone find
    "flipped bytes of an array": lambda folder: flipped(largest(folder)),
    "a changed number in meta": lambda folder: (folder / "meta" / "metadata").write_text('{"tokens": 301}'),
    "torn checksums": lambda folder: truncated(folder / "state" / "checksums.json"),
}
DAMAGE = {
    "truncated array": lambda folder: truncated(largest(folder)),
    "empty array file": lambda folder: largest(folder).write_bytes(b""),
    "missing array": lambda folder: largest(folder).unlink(),
    "torn metadata of arrays": lambda folder: truncated(folder / "state" / "_METADATA"),
    "missing metadata of arrays": lambda folder: (folder / "state" / "_METADATA").unlink(),
    "torn manifest": lambda folder: truncated(folder / "state" / "manifest.ocdbt"),
    "missing manifest": lambda folder: (folder / "state" / "manifest.ocdbt").unlink(),
    "torn meta": lambda folder: truncated(folder / "meta" / "metadata"),
    "missing meta": lambda folder: shutil.rmtree(folder / "meta"),
    "missing state": lambda folder: shutil.rmtree(folder / "state"),
}


def without_checksums(folder):
    """As older versions wrote it."""
    for path in folder.glob("*/checksums.json"):
        path.unlink()


@pytest.mark.parametrize("kind", [*DAMAGE, *READABLE_TO_THE_END])
def test_the_one_before_is_taken(workdir, kind):
    (DAMAGE | READABLE_TO_THE_END)[kind](workdir / "checkpoints" / "3")
    check_that_the_one_before_is_taken(workdir)


@pytest.mark.parametrize("kind", DAMAGE)
def test_without_checksums_too(workdir, kind):
    for step in (1, 2, 3):
        without_checksums(workdir / "checkpoints" / str(step))
    DAMAGE[kind](workdir / "checkpoints" / "3")
    check_that_the_one_before_is_taken(workdir)


def check_that_the_one_before_is_taken(workdir):
    folder = workdir / "checkpoints"
    there = sorted(path.name for path in (folder / "3").rglob("*"))
    reader = Checkpoints(workdir, read_only=True)
    with pytest.raises(UserError, match=r"checkpoints/3 is damaged: .*step 2 is whole.* mv "):
        reader.whole()
    reader.close()
    assert {path.name for path in folder.iterdir()} == {"1", "2", "3"}  # a reader writes nothing

    said = []
    checkpoints = Checkpoints(workdir, keep_last=3)
    assert checkpoints.whole(said.append) == 2
    assert len(said) == 1 and "checkpoints/3 is damaged" in said[0] and "step 2" in said[0] and "\n" not in said[0]
    assert sorted(path.name for path in (folder / "3.damaged").rglob("*")) == there
    assert checkpoints.meta(2) == {"tokens": 200}
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(2))
    jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(2, abstract), state(2))
    checkpoints.save(3, state(3), {"tokens": 300})
    checkpoints.wait()
    checkpoints.close()

    checkpoints = Checkpoints(workdir, read_only=True)
    assert checkpoints.whole() == 3
    jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(3, abstract), state(3))
    checkpoints.close()


def test_two_are_damaged(workdir):
    truncated(largest(workdir / "checkpoints" / "3"))
    flipped(largest(workdir / "checkpoints" / "2"))
    said = []
    checkpoints = Checkpoints(workdir)
    assert checkpoints.whole(said.append) == 1
    assert [line.split(" is damaged")[0].split("/")[-1] for line in said] == ["3", "2"]
    checkpoints.close()


@pytest.mark.parametrize("read_only", [False, True])
def test_none_is_whole(workdir, read_only):
    for step in (1, 2, 3):
        truncated(largest(workdir / "checkpoints" / str(step)))
    checkpoints = Checkpoints(workdir, read_only=read_only)
    with pytest.raises(UserError, match=r"checkpoints/3 is damaged.*checkpoints/1 is damaged.*no other checkpoint is whole"):
        checkpoints.whole()
    checkpoints.close()
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == {"1", "2", "3"}  # a second try must not start anew


def test_what_is_whole_is_taken(workdir):
    """With checksums, without them, and without what only tells the time of the save."""
    for change in (lambda folder: None, without_checksums, lambda folder: truncated(folder / "_CHECKPOINT_METADATA")):
        change(workdir / "checkpoints" / "3")
        for read_only in (True, False):
            checkpoints = Checkpoints(workdir, read_only=read_only)
            assert checkpoints.whole() == 3 and checkpoints.meta(3) == {"tokens": 300}
            found = checkpoints.read_params(3, checkpoints.stored_params(3))
            np.testing.assert_array_equal(found["a"], state(3)["params"]["a"])
            checkpoints.close()


def test_a_folder_without_checkpoints(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.whole() is None
    checkpoints.close()


def test_a_relative_path_is_as_good(workdir, monkeypatch):
    monkeypatch.chdir(workdir)
    without_checksums(workdir / "checkpoints" / "2")
    assert damage(Path("checkpoints/2")) is None


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_is_no_folder_is_set_aside(workdir, kind):
    """Orbax does not see it, and could not save its step again."""
    place = workdir / "checkpoints" / "3"
    shutil.rmtree(place)
    place.write_text("a file") if kind == "file" else place.symlink_to("3")
    said = []
    checkpoints = Checkpoints(workdir, keep_last=3)
    assert checkpoints.whole(said.append) == 2
    assert len(said) == 1 and "checkpoints/3 is damaged: it is no folder" in said[0]
    checkpoints.save(3, state(3), {"tokens": 300})
    checkpoints.wait()
    checkpoints.close()
    assert damage(place) is None


def test_a_file_in_place_of_all_checkpoints_is_refused(tmp_path):
    """Else the run would start from scratch."""
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(UserError, match="checkpoints is no folder"):
        Checkpoints(tmp_path)


def test_other_dtypes_are_refused(workdir):
    checkpoints = Checkpoints(workdir, keep_last=3)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(3))
    abstract["params"]["a"] = jax.ShapeDtypeStruct((300, 70), jnp.float16, sharding=abstract["step"].sharding)
    with pytest.raises(UserError, match="checkpoints/3: params.a is float32 there and float16 in this run"):
        checkpoints.restore(3, abstract)
    checkpoints.close()
