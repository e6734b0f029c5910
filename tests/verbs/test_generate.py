"""lm.generate: completes prompts of a finished run."""

import shutil
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import lm
from lm.convert.to_published import to_published
from tests.verbs import runs


def generate(*flags: str):
    return runs.run([sys.executable, "-m", "lm.generate", *flags])


def test_completes_prompts(finished):
    flags = (f"--checkpoint={finished}", "--prompt=ab cd", "--prompt=xyz", "--max_new_tokens=16")
    first, again, other = generate(*flags), generate(*flags), generate(*flags, "--seed=1")
    assert first.returncode == 0 and first.stderr == ""
    assert first.stdout.startswith("ab cd") and "\nxyz" in first.stdout
    assert len(first.stdout) > len("ab cd\nxyz\n")
    assert again.stdout == first.stdout
    assert other.stdout != first.stdout


def test_reading_leaves_the_run_as_it_is(finished, tmp_path):
    """Also what a killed save left: the run itself, perhaps at work in another process, sweeps that away."""
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    left = workdir / "checkpoints" / f"{runs.STEPS + 20}.orbax-checkpoint-tmp"
    left.mkdir()
    before = sorted(workdir.rglob("*"))
    done = generate(f"--checkpoint={workdir}", "--prompt=a", "--max_new_tokens=2")
    assert done.returncode == 0, done.stderr
    assert sorted(workdir.rglob("*")) == before


def test_mistakes(tmp_path, finished):
    for flags, words in (
        ((f"--checkpoint={tmp_path / 'none'}", "--prompt=a"), "none: no such folder; name a workdir"),
        ((f"--checkpoint={finished}",), "--prompt is missing"),
        (("--prompt=a",), "--checkpoint is missing"),
        ((f"--checkpoint={finished}", "--prompt=a", "--max_new_tokens=0"), "max_new_tokens"),
        ((f"--checkpoint={finished}", "--promt=a"), "promt"),
    ):
        done = generate(*flags)
        assert done.returncode == 2 and done.stdout == ""
        assert words in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.slow
def test_parameters_that_are_not_finite_end_the_verbs_with_one_line(finished, tmp_path):
    exported = tmp_path / "exported"
    to_published(finished, exported)
    file = exported / "model.safetensors"
    weights = load_file(file)
    weights["model.norm.weight"][0] = np.nan
    save_file(weights, file)
    (tmp_path / "mmlu").mkdir()
    (tmp_path / "mmlu" / "facts_test.csv").write_text("What is it?,one,two,three,four,B\n")
    evaluate = [
        sys.executable,
        "evaluate.py",
        "--config=configs/evaluate/default.py",
        f"--workdir={tmp_path / 'evals'}",
        f"--config.checkpoint={exported}",
        "--config.tasks=mmlu",
        f"--config.data_dir={tmp_path}",
    ]
    for done in (generate(f"--checkpoint={exported}", "--prompt=a"), runs.run(evaluate)):
        assert done.returncode == 2
        line = runs.complaint(done.stderr)[-1]
        assert "NaN or infinite; norm.scale holds NaN or infinity in 1 of 32 values" in line
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "evals" / "results.json").exists()


@pytest.mark.slow
def test_a_chat_on_the_terminal(finished):
    flags = (f"--checkpoint={finished}", "--max_new_tokens=8", "--temperature=0")
    done = generate(*flags, "--prompt=ab cd", "--chat", "--system=be <|end|> brief")
    assert done.returncode == 0 and done.stderr == ""
    model, tokenizer = lm.load(finished)
    messages = [{"role": "system", "content": "be <|end|> brief"}, {"role": "user", "content": "ab cd"}]
    answer = lm.generate(model, tokenizer, [messages], max_new_tokens=8, temperature=0)[0]
    assert done.stdout == f"ab cd\n{answer}\n"
    spelled = generate(*flags, "--prompt=<|user|>ab", "--prompt=ab<|end|>")
    assert spelled.returncode == 0 and spelled.stderr.count("\n") == 1 and "--chat" in spelled.stderr
    wrong = generate(*flags, "--prompt=a", "--system=a")
    assert wrong.returncode == 2 and "add --chat" in wrong.stderr
