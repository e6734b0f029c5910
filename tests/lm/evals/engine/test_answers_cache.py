"""Answers outlive a kill, are exact, and a file that is none of ours is refused."""

import dataclasses
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from flax import nnx

from lm.errors import UserError
from lm.evals.engine.answers_cache import Answers, fingerprint, key
from tests.lm.evals import tiny_models

WRITER = """
import sys
from pathlib import Path
from lm.evals.engine.answers_cache import Answers
answers = Answers(Path(sys.argv[1]))
n = 0
while True:
    answers.add({f"{n} {i}".encode(): bytes(1000) for i in range(50)})
    print(n, flush=True)
    n += 1
"""


def test_what_was_added_is_found_again(tmp_path):
    path = tmp_path / "new" / "answers.sqlite"
    answers = Answers(path)
    answers.add({bytes([n % 256, n // 256]): str(n).encode() for n in range(1500)})
    answers.add({b"\0\0": b"another", b"k": b""})
    answers.close()
    again = Answers(path)
    assert again.stored([b"\0\0", b"k", b"none", b"\1\2", b"k"]) == {b"\0\0": b"0", b"k": b"", b"\1\2": b"513"}
    assert len(again.stored(bytes([n % 256, n // 256]) for n in range(1500))) == 1500
    assert again.stored([]) == {}


def test_a_kill_leaves_whole_batches(tmp_path):
    path = tmp_path / "answers.sqlite"
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[4], env=dict(os.environ)
    )
    for _ in range(5):
        last = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    process.stdout.close()
    found = Answers(path).stored(f"{n} {i}".encode() for n in range(last + 200) for i in range(50))
    counts = {}
    for name in found:
        counts[int(name.split()[0])] = counts.get(int(name.split()[0]), 0) + 1
    assert set(range(last + 1)) <= set(counts) and set(counts.values()) == {50}


def test_what_is_no_cache_is_refused(tmp_path):
    text = tmp_path / "text"
    text.write_text("no database " * 100)
    other = tmp_path / "other"
    with sqlite3.connect(other) as file:
        file.execute("CREATE TABLE answers (key BLOB, value BLOB)")
    later = tmp_path / "later"
    with sqlite3.connect(later) as file:
        file.execute("PRAGMA user_version = 99")
    for path, words in ((text, "damaged"), (other, "this version"), (later, "this version"), (tmp_path, str(tmp_path))):
        with pytest.raises(UserError, match=words):
            Answers(path)
    (tmp_path / "empty").touch()
    Answers(tmp_path / "empty").add({b"k": b"v"})


def test_a_damaged_page_is_told(tmp_path):
    path = tmp_path / "answers.sqlite"
    answers = Answers(path)
    answers.add({str(n).encode(): bytes(500) for n in range(200)})
    answers.close()
    content = bytearray(path.read_bytes())
    content[8192:-4096] = b"\xff" * (len(content) - 8192 - 4096)
    path.write_bytes(content)
    with pytest.raises(UserError, match="delete it"):
        Answers(path).stored(str(n).encode() for n in range(200))


def test_keys_tell_questions_apart():
    questions = [
        ("m", "likelihood", {}, [1, 2], [3]),
        ("m", "likelihood", {}, [1], [2, 3]),
        ("n", "likelihood", {}, [1, 2], [3]),
        ("m", "generation", {}, [1, 2], [3]),
        ("m", "likelihood", {"seed": 1}, [1, 2], [3]),
        ("m", "likelihood", {}, [1, 2, 3]),
    ]
    assert len({key(*question) for question in questions}) == len(questions)
    assert key("m", "k", {"a": 1, "b": 2}, [1]) == key("m", "k", {"b": 2, "a": 1}, (1,))


def test_a_fingerprint_is_of_the_blueprint_and_every_parameter():
    model = tiny_models.model()
    graph, params = nnx.split(model)
    assert fingerprint(model) == fingerprint(tiny_models.model())
    leaves, kind = jax.tree.flatten(params)
    for n in (0, len(leaves) - 1):
        changed = [leaf + 1e-6 * (i == n) for i, leaf in enumerate(leaves)]
        assert fingerprint(nnx.merge(graph, jax.tree.unflatten(kind, changed))) != fingerprint(model)
    half = [leaf.astype("bfloat16") for leaf in leaves]
    assert fingerprint(nnx.merge(graph, jax.tree.unflatten(kind, half))) != fingerprint(model)
    other = tiny_models.model()
    other.config = dataclasses.replace(other.config, logit_softcap=30.0)
    assert fingerprint(other) != fingerprint(model)
