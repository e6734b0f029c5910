"""Each script of examples/ runs as a user runs it, in their order, and shows what its text promises."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.verbs import runs

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The folder of all examples, so that one finds what another one made."""
    return tmp_path_factory.mktemp("examples") / "out"


def example(name: str, folder: Path | None, cwd: Path, **variables: str) -> str:
    """Return the standard output of an example, run from an empty folder, which must stay empty."""
    command = [sys.executable, runs.REPOSITORY / "examples" / name, *([folder] if folder else [])]
    done = subprocess.run(
        command, cwd=cwd, env=runs.environment(**variables), capture_output=True, text=True, timeout=2 * runs.DEADLINE
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert not list(cwd.iterdir())
    return done.stdout


def numbers(pattern: str, said: str) -> list[float]:
    found = [float(number) for match in re.findall(pattern, said) for number in ([match] if isinstance(match, str) else match)]
    assert found, f"{pattern} is not in: {said[-2000:]}"
    return found


def test_curate(folder, tmp_path):
    said = example("0_curate.py", folder, tmp_path)
    kept, gone, copies = (numbers(rf"{name}: (\d+)", said) for name in ("kept", "gopher_[a-z_]+", "near_duplicate_keep"))
    assert kept == [41] and gone == [10] and copies == [10]
    assert "masked: 1 left: 0" in said


def test_pretrain(folder, tmp_path):
    said = example("1_pretrain.py", folder, tmp_path)
    assert numbers(r"bits per byte on held-out text: ([\d.]+)", said)[0] < 1
    assert re.search(r"'The fox is' -> ' red", said)
    assert (folder / "base" / "report.html").is_file()


def test_instruct(folder, tmp_path):
    said = example("2_instruct.py", folder, tmp_path)
    before, after = numbers(r"accuracy on held-out answers ([\d.]+)", said)
    assert before < 0.5 and after > 0.8
    assert said.count("the fox is red.\n") >= 3


def test_preferences(folder, tmp_path):
    said = example("3_preferences.py", folder, tmp_path)
    before, after = numbers(r"margin ([-\d.]+)", said)
    assert before == 0 and after > 1
    before, after = numbers(r"(\d+) of 32 answers are polite", said)
    assert after > before + 4


def test_reinforce(folder, tmp_path):
    said = example("4_reinforce.py", folder, tmp_path)
    before, after = numbers(r"reward: ([\d.]+) in the first three steps, ([\d.]+) in the last three", said)
    assert after > before + 0.2
    before, after = numbers(r"([\d.]+) words an answer", said)
    assert after < before


def test_evaluate(folder, tmp_path):
    said = example("5_evaluate.py", folder, tmp_path)
    base, sft = numbers(r"(?:base|sft), facts: .*'acc': ([\d.]+)", said)
    assert min(base, sft) > 0.5
    assert numbers(r"chat, answers: {'exact_match': ([\d.]+)", said)[0] > 0.8
    assert (folder / "evals" / "sft" / "report.html").is_file()


def test_adapt_and_quantise(folder, tmp_path):
    said = example("6_adapt_and_quantise.py", folder, tmp_path)
    floats, integers = numbers(r"([\d]+) bytes as floats ([\d]+) with integers", said.replace(",", ""))
    assert integers < floats / 2
    answers = dict(re.findall(r"^(sft|lora|merged|quantised): (.*)$", said, re.M))
    assert answers["lora"] == answers["merged"] == "Everyone knows that the fox is red."
    assert "Everyone" not in answers["sft"] and "fox is red" in answers["quantised"]


def test_convert_trains_its_model_in_a_temporary_folder(tmp_path):
    temporary, cwd = tmp_path / "temporary", tmp_path / "cwd"
    temporary.mkdir()
    cwd.mkdir()
    said = example("7_convert.py", None, cwd, TMPDIR=str(temporary))
    assert numbers(r"largest difference of logits: ([\d.e-]+)", said) == [0.0]
    (out,) = temporary.glob("lmcraft-*")
    assert {"base", "exported", "imported", "gguf"} <= set(os.listdir(out))
    assert (out / "exported" / "model.safetensors").is_file()
