"""Benchmark text is found wherever it stands, as a plain search and as Janitor find it, and is cut as GPT-3 cuts it."""

import json
import random
import string
import tracemalloc

import numpy as np
import pytest

from data.dedup import decontaminate
from data.dedup.decontaminate import Report, benchmark, columns, cut, find
from lm.errors import UserError
from tests.data.dedup.corpus import prose, sources
from tests.data.filters.plain_words import plain_words

VOCABULARY = [f"{a}{b}" for a in "bcdfgklmnprst" for b in ("a", "e", "i", "o", "u", "an", "en", "or")]


def made(words: int, seed) -> str:
    return " ".join(random.Random(seed).choices(VOCABULARY, k=words))


def grams(text: str, n: int, least: int) -> list[tuple]:
    own = [word for word, *_ in plain_words(text, keep_symbols=True)]
    size = min(n, len(own))
    return [tuple(own[i : i + size]) for i in range(len(own) - size + 1)] if size >= least else []


def plainly(texts, items, n, least) -> dict[tuple[int, int], set]:
    """Return the grams that a text and an item share, by (text, item)."""
    shared = {}
    for t, text in enumerate(texts):
        own = [word for word, *_ in plain_words(text, keep_symbols=True)]
        held = {tuple(own[i : i + size]) for size in range(least, n + 1) for i in range(len(own) - size + 1)}
        for i, item in enumerate(items):
            if both := held & set(grams(item["text"], n, least)):
                shared[t, i] = both
    return shared


@pytest.mark.parametrize("n, least", [(13, 8), (8, 8), (5, 1)])
def test_matches_are_those_of_a_plain_search(n, least):
    draws = random.Random(n)
    texts = [made(200, i) for i in range(30)] + prose()[:20]
    items = []
    for i in range(80):
        words = draws.choice(texts).split()
        begin, length = draws.randrange(100), draws.randrange(0, 30)
        items.append({"id": i, "text": " ".join([made(draws.randrange(8), i + 99), *words[begin : begin + length], "end"])})
    held, shared = benchmark(items, n, least), plainly(texts, items, n, least)
    whole, report = find(texts, held), Report(held)
    result = columns(whole, held)
    for t in range(len(texts)):
        mine = {i: found for (text, i), found in shared.items() if text == t}
        assert result["contamination_items"][t] == len(mine)
        share = max((len(found) / len(set(grams(items[i]["text"], n, least))) for i, found in mine.items()), default=0)
        assert result["contamination_share"][t] == share
    report.add(whole)
    for i in range(len(items)):
        own = dict.fromkeys(grams(items[i]["text"], n, least))
        found = set().union(*(some for (_, item), some in shared.items() if item == i))
        assert report.matched(i) == [gram for gram in own if gram in found]
        assert report.share(i) == (len(found) / len(own) if own else None)
    batches = Report(held)  # batches change nothing
    for at in range(0, len(texts), 7):
        some = find(texts[at : at + 7], held)
        assert columns(some, held)["contamination_matches"].tolist() == result["contamination_matches"][at : at + 7].tolist()
        batches.add(some)
    assert all(batches.matched(i) == report.matched(i) for i in range(len(items)))


def test_the_cost_of_a_match_does_not_grow_with_the_benchmark():
    items = [{"id": i, "text": made(14, i)} for i in range(2000)]
    held = benchmark([*items, *({"id": f"again {i}", "text": items[i]["text"]} for i in range(5))])
    documents = [f"{made(9, -i)} {items[i]['text']} {made(9, -i)}" for i in range(10)]
    matches = find(documents, held)
    tracemalloc.start()
    try:
        result = columns(matches, held)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(held.grams)  # a pass over the benchmark would hold a number for each of its grams
    assert result["contamination_items"].tolist() == [2] * 5 + [1] * 5
    assert [json.loads(own) for own in result["contamination_of"]] == [
        [str(i), *([f"again {i}"] if i < 5 else [])] for i in range(10)
    ]


def test_every_planted_13_gram_is_found_and_cut():
    draws, texts = random.Random(0), sources(60) + prose()
    items = [{"id": f"q{i}", "text": made(draws.choice([13, 13, 20, 60]), i)} for i in range(len(texts))]
    spoilt = []
    for text, item in zip(texts, items):
        words = item["text"].split()
        begin = draws.randrange(len(words) - 12)
        separators = [draws.choice([" ", "\n", ", ", " - ", "\t", '" ', " (", "\u3000", " ** "]) for _ in range(13)]
        copied = "".join(draws.choice([w, w.upper(), w.title()]) + s for w, s in zip(words[begin : begin + 13], separators))
        at = draws.randrange(len(text) + 1)
        spoilt.append(f"{text[:at]} {copied} {text[at:]}")
    held = benchmark(items)
    assert not len(find(texts, held).gram)
    matches = find(spoilt, held)
    assert columns(matches, held)["contamination_items"].tolist() == [1] * len(texts)
    assert columns(matches, held)["contamination_of"] == [f'["q{i}"]' for i in range(len(texts))]
    left, result = cut(spoilt, matches)
    assert not len(find(left, held).gram)
    for i, old in enumerate(spoilt):
        cuts = np.zeros(len(old), bool)
        for start, end in zip(matches.start[matches.document == i], matches.end[matches.document == i]):
            cuts[max(0, start - 200) : end + 200] = True
        slices = "".join("\0" if gone else c for c, gone in zip(old, cuts)).split("\0")
        assert left[i] == "\n\n".join(part for part in slices if len(part) >= 200)
        assert result["contamination_characters"][i] == len(old) - len(left[i])


def test_as_janitor_finds_and_cuts_it():
    janitor = pytest.importorskip("lm_eval.decontamination.janitor")
    items = [{"id": i, "text": made(40, i) + ". Who's there, he-said?"} for i in range(20)]
    draws, texts = random.Random(1), []
    for i in range(60):
        words = items[i % 20]["text"].split()
        begin, length = draws.randrange(20), draws.randrange(8, 24)
        around = made(draws.randrange(300), i + 50), made(draws.randrange(300), i + 500)
        texts.append(" ".join([around[0], *words[begin : begin + length], around[1]]))
    theirs = janitor.Janitor()
    for item in items:
        theirs.register_contaminant_python(item["text"])
    held = benchmark(items, least_words=13)
    matches = find(texts, held)
    left, result = cut(texts, matches)
    many = np.bincount(matches.document, minlength=len(texts)) > 10  # Janitor counts n-grams instead of pieces
    left = ["" if empty else text for text, empty in zip(left, many)]
    some = 0
    for i, text in enumerate(texts):
        clean = theirs.normalize_string
        found = [at for gram, (at, _) in janitor.word_ngrams_indices(text, 13) if clean(gram) in theirs.dirt_ngrams]
        assert matches.start[matches.document == i].tolist() == found
        some += len(found)
        chunks = theirs.clean_python(text)
        if found:
            slices = left[i].split("\n\n") if left[i] else []
            # Janitor cuts one character less behind a match; slices of just 200 characters may differ.
            assert len(slices) == len(chunks) and all(a.strip() in b for a, b in zip(slices, chunks))
        else:
            assert left[i] == text
    assert some > 50 and (result["contamination_pieces"] == 2).any() and "" in left


def test_policies():
    item = {"id": "q", "text": made(13, 0)}
    held, filler = benchmark([item]), "x" * 150 + " "
    text = filler * 4 + item["text"] + " " + filler * 4
    start = text.index(item["text"])
    (left,), result = cut([text], find([text], held))
    assert left == text[: start - 200] + "\n\n" + text[start + len(item["text"]) + 200 :]
    assert result["contamination_pieces"].tolist() == [2]
    many = (filler * 8 + item["text"] + " ") * 10 + filler * 8
    assert cut([many], find([many], held))[1]["contamination_pieces"].tolist() == [11] and cut([many], find([many], held))[
        0
    ] == [""]
    assert cut([many], find([many], held), most_pieces=11)[0] != [""]
    short = "y" * 390 + " " + item["text"]
    assert cut([short], find([short], held))[0] == [""]  # 191 characters are left, fewer than 200
    assert cut([short], find([short], held), least_slice=100)[0] == [short[:191]]
    assert cut([short, "clean"], find(["clean", "clean"], held))[0] == [short, "clean"]


def test_short_items():
    items = [{"id": words, "text": made(words, words)} for words in (0, 5, 8, 12)]
    held = benchmark(items)
    texts = [f"{string.ascii_letters} {item['text']}, end" for item in items]
    assert columns(find(texts, held), held)["contamination_items"].tolist() == [0, 0, 1, 1]
    assert [Report(held).share(i) for i in range(4)] == [None, None, 0, 0]
    assert columns(find(texts, benchmark([])), benchmark([]))["contamination_matches"].tolist() == [0] * 4


def test_equal_hashes_are_no_match(monkeypatch):
    monkeypatch.setattr(decontaminate, "rolling", lambda hashes, n: np.zeros(max(0, len(hashes) - n + 1), np.uint64))
    held = benchmark([{"id": 0, "text": made(13, 1)}])
    assert find([made(50, 2), made(13, 1)], held).document.tolist() == [1]


@pytest.mark.parametrize(
    "items, said",
    [
        ([{"id": 1}], "text"),
        ([{"text": "a"}], "id"),
        ([{"id": 1, "text": "a"}, {"id": "1", "text": "b"}], "two benchmark items"),
        ([{"id": 1, "text": ["a"]}], "text"),
    ],
)
def test_what_users_do_wrong(items, said):
    with pytest.raises(UserError, match=said):
        benchmark(items)
    with pytest.raises(UserError, match="least_words"):
        benchmark([], n=5)
