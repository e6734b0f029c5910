"""Mistakes end in one line that names what, where and the cure, with exit code 2, and nothing is lost or left behind."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from data.text import sentencepiece_tokenizer as tokenizer
from tests.verbs import runs


def refused(command: list[str], *words: str, **variables: str) -> str:
    """Runs the command, which must end with code 2 and one line with these words; returns the line."""
    done = runs.run(command, **variables)
    said = runs.complaint(done.stderr)
    assert done.returncode == 2, (done.returncode, done.stderr[-4000:])
    assert len(said) == 1, done.stderr[-4000:]
    for word in words:
        assert word in said[0], said[0]
    return said[0]


@pytest.mark.parametrize(
    "argument, words",
    [
        ("--config.optimizer.learning_rte=1", ["optimizer.learning_rte", "did you mean optimizer.learning_rate?"]),
        ("--config.stpes=3", ["stpes", "did you mean steps?"]),
        ("--config.steps=many", ["steps=many", "int", "such as"]),
        ("--config.model.num_layers=1.5", ["model.num_layers=1.5", "int"]),
        ("--config.data.log_ids=perhaps", ["data.log_ids=perhaps", "bool"]),
        ("--wrkdir=x", ["wrkdir", "workdir"]),
        ("stray", ["'stray'", "--name=value"]),
        ("--config.steps=-1", ["steps=-1", "at least 0"]),
        ("--config.optimizer.schedule=cosin", ["optimizer.schedule='cosin'", "cosine, wsd, constant"]),
        ("--config.dtype=float64", ["dtype='float64'", "bfloat16"]),
        ("--config.model.remat=some", ["model.remat='some'", "matmuls"]),
        ("--config.model.num_heads=3", ["num_heads=3"]),
        ("--config.profile=12-10", ["profile='12-10'", "such as 10-12"]),
        ("--config.profile=1000-1001", ["profile=1000-1001", f"only {runs.STEPS} steps"]),
        ("--config.mesh.slices=3", ["mesh.slices=3 must divide the 8 devices"]),
        ("--config.samples=3", ["samples", "texts"]),
        ("--config.data.weights=code", ["data.weights='code'", "code=2,docs=1"]),
        ("--config.mesh.fsdp=3", ["mesh.fsdp=3", "has 8"]),
        ("--config.mesh.sequence=1", ["--config.mesh.sequence: no such key in configs/train/tiny.py"]),
        ("--config.mesh.tensor=8", ["mesh.tensor=8 does not divide model.num_heads=2"]),
        ("--config.batch_size=12", ["batch_size=12 is not a positive multiple", "8 × 1 × 1"]),
        ("--config.tokenizer=nowhere/tokenizer.model", ["tokenizer", "nowhere/tokenizer.model"]),
        ("--config.tokenizer=LICENSE", ["tokenizer", "LICENSE", "not a SentencePiece model"]),
        ("--config.model.vocab_size=100", ["model.vocab_size=100", "least"]),
    ],
)
def test_flags(argument, words, text, tmp_path):
    key = argument.split("=")[0].removeprefix("--config.").replace(".", "__")  # ours gives way: absl warns of a key named twice
    workdir = tmp_path / "deep" / "run"
    refused([*runs.line(workdir, data__input=text, **{key: None}), argument], *words, **runs.fake_devices(8))
    assert list(tmp_path.iterdir()) == []


def test_a_section_as_a_whole(tmp_path):
    line = runs.line(tmp_path / "run", data__valid_fraction=None, data__log_ids=None)
    refused([*line, "--config.data={}"], "data.input", "left out of its section")
    refused([*line, "--config.data=nowhere.txt"], "data.input='nowhere.txt'")  # short for its input


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--workdir=W"], ["--config is missing", "configs/train/"]),
        (["--config=configs/train/tiny.py"], ["--workdir is missing"]),
        (["--config=configs/train/tyni.py", "--workdir=W"], ["configs/train/tyni.py", "did you mean configs/train/tiny.py?"]),
        (["--config=configs/train/tiny.py", "--workdir=LICENSE"], ["LICENSE is a file"]),
        (["--config=configs/train/tiny.py", "--workdir=LICENSE/run"], ["LICENSE is a file"]),
    ],
)
def test_missing_or_wrong_flags(arguments, words, tmp_path):
    arguments = [argument.replace("=W", f"={tmp_path}/run") for argument in arguments]
    refused([sys.executable, "train.py", *arguments], *words)
    assert list(tmp_path.iterdir()) == []


def a_misspelt_path(folder: Path) -> tuple[str, list[str]]:
    (folder / "corpus").mkdir()
    return f"{folder}/corpsu", ["corpsu", "nearest", "corpus"]


def an_empty_folder(folder: Path) -> tuple[str, list[str]]:
    (folder / "empty").mkdir()
    return f"{folder}/empty", ["empty", ".jsonl"]


def a_name_of_nothing(folder: Path) -> tuple[str, list[str]]:
    return "lm2b", ["'lm2b'", "nearest: 'lm1b'"]


def text_that_is_not_utf8(folder: Path) -> tuple[str, list[str]]:
    (folder / "a.txt").write_bytes(b"good\n" * 1000 + b"\xff\n")
    return f"{folder}/a.txt", ["a.txt", "byte 5000", "UTF-8"]


def json_without_text(folder: Path) -> tuple[str, list[str]]:
    (folder / "a.jsonl").write_text('{"text": "good"}\n{"body": "bad"}\n')
    return f"{folder}/a.jsonl", ["a.jsonl:2", "no 'text'", "'body'", "data.text_key"]


def text_without_a_document(folder: Path) -> tuple[str, list[str]]:
    (folder / "a.txt").write_text(" \n")
    return f"{folder}/a.txt", ["data.input"]


@pytest.mark.parametrize(
    "make",
    [a_misspelt_path, an_empty_folder, a_name_of_nothing, text_that_is_not_utf8, json_without_text, text_without_a_document],
)
def test_input(make, tmp_path):
    (tmp_path / "input").mkdir()
    given, words = make(tmp_path / "input")
    refused(runs.line(tmp_path / "run", data__input=given), *words)
    assert not (tmp_path / "run").exists()


def test_a_workdir_of_another_architecture(finished, text, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    before = contents(workdir)
    command = runs.line(workdir, data__input=text, model__num_layers=2)
    refused(command, "model.num_layers", str(workdir), "--workdir")
    assert contents(workdir) == before
    (workdir / "config.json").unlink()  # then the checkpoint itself tells
    refused(command, f"{workdir}/checkpoints/{runs.STEPS}", "another architecture", "--workdir")
    assert runs.steps_saved(workdir) == runs.steps_saved(finished)


def test_another_learning_rate_for_a_finished_run(finished, text, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    before = contents(workdir)
    command = runs.line(workdir, data__input=text, optimizer__learning_rate=1e-3)
    refused(command, str(workdir), "optimizer.learning_rate: 0.002 → 0.001", "use another --workdir", "raise steps")
    assert contents(workdir) == before


def test_a_workdir_with_another_tokenizer(finished, text, tmp_path):
    workdir, other = tmp_path / "run", tmp_path / "other.model"
    shutil.copytree(finished, workdir)
    tokenizer.train([file.read_text() for file in text.iterdir()], other, vocab_size=320, sample_bytes=10**6, seed=0, threads=2)
    before = contents(workdir)
    refused(runs.line(workdir, data__input=text, tokenizer=other), "tokenizer", "another --workdir")
    assert contents(workdir) == before


def test_the_python_installation_leaves_nothing_behind_either(tmp_path):
    settings = dict(data__input=None, data__max_bytes=100_000, model__vocab_size=100)
    refused(runs.line(tmp_path / "run", **settings), "model.vocab_size=100", "least", TMPDIR=str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextlib.contextmanager
def small_disk(folder: Path, size: str):
    """A file system of its own; it takes root to make one."""
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True)
    if made.returncode:
        pytest.skip("no right to mount a small file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, leave: int) -> Path:
    """Takes all of the disk but `leave` bytes."""
    filler = folder / "filler"
    with open(filler, "wb") as file:
        free = os.statvfs(folder)
        file.write(bytes(free.f_bavail * free.f_frsize - leave))
    return filler


@pytest.mark.slow
@pytest.mark.parametrize("size", [pytest.param("16k", marks=pytest.mark.slow), "160k"])
def test_a_full_disk_while_preparing(size, text, tmp_path):
    with small_disk(tmp_path / "disk", size) as disk:
        workdir = disk / "run"
        refused(runs.line(workdir, data__input=text), "space", str(disk), "run the same command again")
        assert not [path for path in workdir.glob("data/*") if not path.name.startswith(".")]
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        runs.train(workdir, data__input=text, steps=2)


@pytest.mark.parametrize(
    "leave", [pytest.param(0, marks=pytest.mark.slow), 8192, pytest.param(150_000, marks=pytest.mark.slow)]
)
def test_a_full_disk_while_training(leave, finished, text, tmp_path):
    """Whatever is written when the room ends, log or checkpoint: what was saved stays, and with room the run goes on."""
    with small_disk(tmp_path / "disk", "64m") as disk:
        workdir = disk / "run"
        workdir.mkdir()
        shutil.copytree(finished / "data", workdir / "data")
        shutil.copy(finished / "tokenizer.model", workdir)
        command = runs.line(workdir, data__input=text)
        process = runs.start(command)
        runs.wait(process, lambda: runs.steps_saved(workdir))
        process.send_signal(signal.SIGTERM)
        process.wait(runs.DEADLINE)
        saved = runs.steps_saved(workdir)
        before = contents(workdir / "checkpoints" / str(saved[-1]))
        filler = fill(disk, leave)

        refused(command, "No space left on device", str(workdir), "run the same command again")
        assert contents(workdir / "checkpoints" / str(saved[-1])) == before
        filler.unlink()
        runs.train(workdir, data__input=text)
        runs.assert_same_run(workdir, finished)
