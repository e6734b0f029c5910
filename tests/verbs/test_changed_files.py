"""A run whose tokenizer or input was changed under its feet says so in one line, and nothing is written."""

import shutil
import sys

import pytest

from data.text import sentencepiece_tokenizer as tokenizer
from tests.verbs import runs
from tests.verbs.test_bad_input import refused


def files(workdir):
    return {path: path.read_bytes() for path in sorted(workdir.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def swapped(finished, tmp_path_factory):
    """A finished run with a tokenizer.model of as many pieces that is another one."""
    workdir = tmp_path_factory.mktemp("swapped") / "run"
    shutil.copytree(finished, workdir)
    text = ["words of another text and nothing else " * 40]
    tokenizer.train(text, workdir / "tokenizer.model", vocab_size=384, sample_bytes=1 << 20, seed=0, threads=1)
    return workdir


SLOW = ("align", "evaluate", "export")


@pytest.mark.parametrize("verb", ["train", "generate", *(pytest.param(verb, marks=pytest.mark.slow) for verb in SLOW)])
def test_another_tokenizer_is_refused(swapped, text, tmp_path, verb):
    items = tmp_path / "items"
    align = [sys.executable, "align.py", "--config=configs/align/sft.py", f"--config.data.input={items / 'talk.jsonl'}"]
    command = {
        "train": runs.line(swapped, data__input=text, steps=runs.STEPS + 10),
        "generate": [sys.executable, "-m", "lm.generate", f"--checkpoint={swapped}", "--prompt=a"],
        "export": [sys.executable, "-m", "lm.convert", "export", f"--workdir={swapped}", f"--to={tmp_path / 'out'}"],
        "align": [*align, f"--config.init_from={swapped}", f"--workdir={tmp_path / 'run'}"],
        "evaluate": [
            sys.executable,
            "evaluate.py",
            "--config=configs/evaluate/default.py",
            f"--workdir={tmp_path / 'run'}",
            f"--config.checkpoint={swapped}",
            "--config.tasks=perplexity",
            f"--config.data_dir={items}",
        ],
    }[verb]
    (items / "perplexity").mkdir(parents=True)
    (items / "perplexity" / "text.txt").write_text("Some text.")
    (items / "talk.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 9)
    before = files(swapped)
    refused(command, "tokenizer", str(swapped), "put the run's own tokenizer back")
    assert files(swapped) == before
    assert [path.name for path in tmp_path.iterdir() if path.is_dir() and any(path.iterdir())] == ["items"]


@pytest.mark.slow
def test_a_changed_input_is_refused(finished, text, tmp_path):
    shutil.copytree(text, tmp_path / "text")
    runs.train(tmp_path / "run", data__input=tmp_path / "text", steps=2)
    (tmp_path / "text" / "07.txt").write_text("Quite another text.\n")
    before = files(tmp_path / "run")
    command = runs.line(tmp_path / "run", data__input=tmp_path / "text", steps=4)
    refused(command, str(tmp_path / "text"), "changed", "07.txt has another size", "--workdir")
    assert files(tmp_path / "run") == before


@pytest.mark.slow
def test_the_checkpoint_of_another_text_is_refused(finished, text, tmp_path):
    """It has the shapes and the config of the run, and it is whole; only its meta tells that it was trained on other rows."""
    shutil.copytree(text, tmp_path / "text")
    (tmp_path / "text" / "07.txt").write_text("Quite another text.\n")
    runs.train(tmp_path / "other", data__input=tmp_path / "text", tokenizer=finished, steps=2)
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir, ignore=shutil.ignore_patterns("checkpoints"))
    shutil.copytree(tmp_path / "other" / "checkpoints", workdir / "checkpoints")
    before = files(workdir / "checkpoints")
    refused(runs.line(workdir, data__input=text), "checkpoints/2 was trained with another data", "use another --workdir")
    assert files(workdir / "checkpoints") == before
