"""Shared by the verb tests: a folder of text, one finished run, and new workdirs whose data are prepared already."""

import os
import random
import shutil
from pathlib import Path

import filelock
import pytest

from tests.verbs import runs


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Path:
    """A folder of this test session, the same one for all of pytest-xdist's workers."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "verbs"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def text(shared) -> Path:
    """Forty files of sentences made of four hundred words."""
    return made_once(shared / "text", write_text)


def write_text(folder: Path) -> None:
    folder.mkdir()
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 8))) for _ in range(400)]
    for i in range(40):
        sentences = (" ".join(draw.choices(words, k=8)) for _ in range(60))
        (folder / f"{i:02}.txt").write_text(". ".join(sentences) + "\n")


@pytest.fixture(scope="session")
def finished(text, shared) -> Path:
    """The workdir of a run that nothing disturbed. It is read by all: a test that changes it takes a copy."""
    return made_once(shared / "finished" / "run", lambda workdir: runs.train(workdir, data__input=text))


def made_once(path: Path, make) -> Path:
    """The path, which the first worker that asks makes by make(path) while others wait."""
    path.parent.mkdir(exist_ok=True)
    done = path.with_name(path.name + ".made")
    with filelock.FileLock(path.with_name(path.name + ".making")):
        if not done.exists():
            shutil.rmtree(path, ignore_errors=True)  # what a worker left that failed
            make(path)
            done.touch()
    return path


@pytest.fixture
def fresh(finished, tmp_path) -> Path:
    """A workdir with the data and the tokenizer of `finished`, and nothing else."""
    workdir = tmp_path / "run"
    workdir.mkdir()
    shutil.copytree(finished / "data", workdir / "data")
    shutil.copy(finished / "tokenizer.model", workdir)
    return workdir
