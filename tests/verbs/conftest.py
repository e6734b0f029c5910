"""Shared by the verb tests: a folder of text, one finished run, and new workdirs whose data are prepared already."""

import random
import shutil
from pathlib import Path

import pytest

from tests.verbs import runs


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory):
    """Runs of one test session share what XLA compiled, as JAX's own variables allow; it is half of a tiny run's time."""
    runs.CACHE["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path_factory.mktemp("xla"))


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    """Forty files of sentences made of four hundred words."""
    folder = tmp_path_factory.mktemp("input") / "text"
    folder.mkdir()
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 8))) for _ in range(400)]
    for i in range(40):
        sentences = (" ".join(draw.choices(words, k=8)) for _ in range(60))
        (folder / f"{i:02}.txt").write_text(". ".join(sentences) + "\n")
    return folder


@pytest.fixture(scope="session")
def finished(text, tmp_path_factory) -> Path:
    """The workdir of a run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    runs.train(workdir, data__input=text)
    return workdir


@pytest.fixture
def fresh(finished, tmp_path) -> Path:
    """A workdir with the data and the tokenizer of `finished`, and nothing else."""
    workdir = tmp_path / "run"
    workdir.mkdir()
    shutil.copytree(finished / "data", workdir / "data")
    shutil.copy(finished / "tokenizer.model", workdir)
    return workdir
