"""The extension of the context: look-ups have the asked size, one answer a question, and the mixture has its shares."""

import json
import random
import re
import sys

import numpy as np
import pytest

from benchmarks import extension


class Words:
    """A tokenizer of names, values, " is" and full stops; other ids are the characters of a text."""

    pieces = [*extension.NAMES, *extension.VALUES, " is", "."]

    def encode(self, text):
        found = re.findall("|".join(map(re.escape, self.pieces)) + "|.", text)
        return [self.pieces.index(piece) if piece in self.pieces else 1000 + ord(piece) for piece in found]

    def decode(self, ids):
        return "".join(self.pieces[i] if i < 1000 else chr(i - 1000) for i in map(int, ids))


@pytest.fixture
def corpus():
    hay = np.asarray(Words().encode("for line in text: " * 4000))
    return extension.Corpus(Words(), hay, hay)


@pytest.mark.parametrize("size, asked", [(64, 0), (512, 0), (256, 8), (2048, 8)])
def test_a_lookup_has_its_size_and_every_answer_is_in_it(corpus, size, asked):
    parts, questions = extension.lookup(size, corpus.train, random.Random(size), asked)
    ids = extension.encoded(corpus.tokenizer, parts, questions)
    assert len(ids) == size and len(questions) == (asked or {64: 11, 512: 7}[size])
    facts = {part for part in parts if isinstance(part, str)}
    assert {" is".join(question) + "." for question in questions} <= facts
    messages = extension.spoken(corpus.tokenizer, parts, questions)
    assert [message["content"] for message in messages[1::2]] == [f"{value}." for _, value in questions]
    assert corpus.tokenizer.encode("".join(message["content"] for message in messages)) == ids


def test_documents_mix_text_and_lookups_up_to_the_length(corpus):
    stage = extension.Stage("8k", 8192, 2, 30, 1e-3)
    rows = list(extension.documents(stage, corpus, random.Random(0)))
    texts = [row["completion"] for row in rows if "completion" in row]
    lookups = ["".join(message["content"] for message in row["messages"]) for row in rows if "messages" in row]
    sizes = [len(corpus.tokenizer.encode(text)) for text in lookups]
    assert 4096 < max(sizes) < stage.length and min(sizes) < 2048
    assert max(map(len, texts)) < extension.SHORT
    assert sum(map(len, texts)) == pytest.approx(sum(sizes), rel=0.25)


def test_methods_train_as_many_tokens():
    long, short = (sum(s.length * s.rows * s.steps for s in extension.stages_of(name)) for name in ("theta", "short"))
    assert long == short and {stage.length for stage in extension.stages_of("short")} == {extension.SHORT}


def test_measured_models_are_kept(tmp_path, monkeypatch, capsys):
    """A second call reads what the first one measured, and trains nothing; the table has a row a model."""
    right = {"2k": 0, "theta": 1}
    monkeypatch.setattr(extension, "prepared", lambda out: None)
    monkeypatch.setattr(extension, "through", lambda stages, start, folder, *rest: folder)
    names = [*(f"needle {size}" for size in extension.LENGTHS), "far"]
    for seed in (0, 1):
        (tmp_path / str(seed)).mkdir()
        for model, hit in right.items():
            row = {name: float(hit) for name in names} | {"bpb 2048": 2.0 + 0.01 * hit, "bpb 32768": 2.5}
            row["hits"] = {name: [[bool(hit)] * 4] * 3 for name in names}
            (tmp_path / str(seed) / f"{model}.json").write_text(json.dumps(row))
    monkeypatch.setattr(sys, "argv", ["extension", f"--out={tmp_path}", "--seeds=0,1", "--methods=theta", "--texts=3"])
    extension.main()
    *_, before, after, report = capsys.readouterr().out.splitlines()
    assert before.startswith("| 2k | 2 | 0.000 (0.000–") and after.startswith("| theta | 2 | 1.000 (0.8")
    assert "2.0100 (+0.50%)" in after and len(json.loads(report)["theta"]) == 2
