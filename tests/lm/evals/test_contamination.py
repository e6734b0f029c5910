"""Overlap with the training text: against a plain search, at the thresholds, and of text that a run has packed."""

import json
import random
import re

import pytest

from data.sources import open_sources
from data.text.dataset import prepare
from data.text.sentencepiece_tokenizer import train
from data.text.split import survey
from lm.errors import UserError
from lm.evals import contamination
from lm.evals.contamination import BenchmarkItem, check, of_samples, query

WORDS = [f"{a}{b}" for a in "bcdfgklmnprst" for b in ("a", "e", "i", "o", "u", "an", "en", "or")]


def text(n: int, seed) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=n))


def plainly(item: str, texts: list[str], size: int) -> float | None:
    """The share of an item's grams, each as a string, that stand in a text."""

    def grams(text):
        words = re.findall(r"\w+", text.lower())
        return [" ".join(words[i : i + size]) for i in range(len(words) - size + 1)]

    known = {gram for text in texts for gram in grams(text)}
    own = grams(item)
    return sum(gram in known for gram in own) / len(own) if own else None


def test_as_a_plain_search_has_it():
    texts = [text(300, i) for i in range(20)]
    draws, items = random.Random(0), []
    for i in range(60):
        words = texts[i % 20].split()
        begin, length = draws.randrange(280), draws.randrange(0, 30)
        items.append(
            BenchmarkItem("t", i, " ".join([text(draws.randrange(20), i + 999), *words[begin : begin + length], "end"]))
        )
    found = check(items, texts)
    assert {one["dirty"] for one in found} == {True, False, None}
    for item, one in zip(items, found, strict=True):
        assert one["overlap"] == plainly(item.text, texts, 8) and one["overlap_13"] == plainly(item.text, texts, 13)
        assert one["dirty"] == (None if one["overlap"] is None else bool(one["overlap_13"]) or one["overlap"] >= 0.7)
    assert check(items[::-1], texts[::-1]) == found[::-1]  # the order of neither changes a thing


def test_thresholds():
    words = text(13, 1).split()
    corpus = ["Some words before: " + " ".join(words) + ", and some behind."]
    cases = {
        " ".join(words): True,  # one 13-gram
        " ".join(words[:12]): True,  # no 13-gram, but all of its 8-grams
        "x " + " ".join(words[:12]) + " y": True,  # 5 of 7 8-grams
        "x " + " ".join(words[:11]) + " y": False,  # 4 of 6
        " ".join(words[:8]) + " " + text(20, 2): False,
        " ".join(words[:7]): None,  # too short to tell
        "": None,
        " ".join(words).upper().replace(" ", ", "): True,  # case and punctuation do not matter
    }
    found = check([BenchmarkItem("t", i, case) for i, case in enumerate(cases)], corpus)
    assert [one["dirty"] for one in found] == list(cases.values())
    assert found[0]["matched"] == [" ".join(words)] and found[4]["matched"] == [" ".join(words[:8])]
    assert [one["dirty"] for one in check([BenchmarkItem("t", 0, " ".join(words))], [])] == [False]
    assert check([], corpus) == []


def test_scores_without_what_is_dirty():
    seen, unseen = [text(30, i) for i in range(4)], [text(30, 100 + i) for i in range(4)]
    samples = [
        {"task": "t", "doc_id": i, "prompt": f"An example\n\n{asked}", "metrics": {"acc": float(i < 6), "note": None}}
        for i, asked in enumerate([*seen, *unseen, "too short", "as well"])
    ]
    samples.append(samples[0] | {"family": "again"})
    found = of_samples(samples, seen)
    assert found["tasks"]["t"]["items"] == 10 and found["tasks"]["t"]["dirty"] == 4 and found["tasks"]["t"]["untold"] == 2
    scores = found["tasks"]["t"]["metrics"]["acc"]
    assert scores["dirty"] == 1.0 and scores["clean"] == 0.5 and scores["all"] == 7 / 11
    assert scores["clean_stderr"] == pytest.approx((1 / 3 / 4) ** 0.5)
    assert [one["doc_id"] for one in found["items"]] == [0, 1, 2, 3]
    assert json.loads(json.dumps(found)) == found


def test_what_is_asked_is_told_from_the_examples():
    assert query({"query": "a", "prompt": "b"}) == "a"
    assert query({"prompt": "Question: 1\nAnswer: 2\n\nQuestion: 3\nAnswer:"}) == "Question: 3\nAnswer:"
    turns = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}, {"role": "user", "content": "3"}]
    assert query({"messages": turns, "prompt": "<user>1…"}) == "3"
    assert query({}) == ""


def test_training_text_from_files_and_from_a_packed_dataset(tmp_path):
    documents = [text(200, i) for i in range(40)]
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    items = [BenchmarkItem("t", i, document[:150]) for i, document in enumerate(documents)]
    assert all(one["dirty"] for one in check(items, contamination.texts(folder)))

    workdir, sources = tmp_path / "run", open_sources(str(folder))
    workdir.mkdir()
    tokenizer = train(iter(documents), workdir / "tokenizer.model", vocab_size=400, sample_bytes=100_000, seed=0, threads=1)
    kept = survey(sources, valid_fraction=0.2, seed=0)
    prepare(workdir / "data" / "hash", sources, tokenizer, sequence_length=128, survey=kept)
    held_out = {document.text for document, split in kept.documents(sources[0]) if split == "valid"}
    for place in (workdir, workdir / "data" / "hash"):
        dirty = {items[i].text for i, one in enumerate(check(items, contamination.texts(place))) if one["dirty"]}
        assert dirty == {item.text for item, document in zip(items, documents) if document not in held_out}
    (workdir / "tokenizer.model").unlink()
    with pytest.raises(UserError, match="no tokenizer in"):
        next(contamination.texts(workdir))
    with pytest.raises(UserError, match="nowhere"):
        next(contamination.texts(tmp_path / "nowhere"))
