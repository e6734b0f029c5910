"""python -m lm.assistant: a plan from the chats, one run of align.py, answers before and after, and commands that run."""

import json
import shlex
import sys

import pytest

from tests.verbs import runs


def chats(path, n):
    rows = ([{"role": "user", "content": f"Who is {i}?"}, {"role": "assistant", "content": f"It is {i}."}] for i in range(n))
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    return path


def assistant(tmp_path, model, n=24):
    flags = {"chats": chats(tmp_path / "chats.jsonl", n), "model": model, "workdir": tmp_path / "mine"}
    return [sys.executable, "-m", "lm.assistant", *(f"--{name}={value}" for name, value in flags.items())]


@pytest.mark.slow
def test_chats_become_an_assistant(finished, tmp_path):
    done = runs.run(assistant(tmp_path, finished))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "24 chats, " in done.stdout and "minutes on this machine" in done.stdout
    assert done.stdout.count("question  Who is ") == 6 == done.stdout.count("before    ") == done.stdout.count("after     ")
    again = runs.run(assistant(tmp_path, finished))
    assert again.returncode == 0 and "is finished" in again.stdout and again.stdout.count("question  ") == 6
    export = shlex.split(next(line for line in done.stdout.splitlines() if "lm.convert" in line))
    exported = runs.run([sys.executable, *export[1:]])
    assert exported.returncode == 0 and (tmp_path / "mine.gguf").stat().st_size > 0, exported.stderr


@pytest.mark.parametrize(
    "change, named",
    [
        (lambda line: [part for part in line if not part.startswith("--chats")], "--chats is missing"),
        (lambda line: [part for part in line if not part.startswith("--model")], "--model is missing"),
        (lambda line: [part.replace("chats.jsonl", "chat.jsonl") for part in line], "--chats="),
    ],
)
def test_what_is_missing_is_named(change, named, finished, tmp_path):
    done = runs.run(change(assistant(tmp_path, finished)))
    assert done.returncode == 2 and named in done.stderr and not (tmp_path / "mine").exists()


def test_two_chats_are_too_few(finished, tmp_path):
    done = runs.run(assistant(tmp_path, finished, 2))
    assert done.returncode == 2 and "2 conversations are too few" in done.stderr
