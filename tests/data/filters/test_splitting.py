"""Words of a text without white space, by the plain rules and by the compiled ones."""

import random
import sysconfig
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest

from data.filters.splitting import LONGEST, split
from data.filters.words import Words


@pytest.mark.parametrize(
    "chunk, words",
    [
        ("word", ["word"]),
        ("(don't", ["(", "do", "n't"]),
        ("we'll,", ["we", "'ll", ","]),
        ("dog’s", ["dog", "’s"]),
        ("cannot.", ["can", "not", "."]),
        ("10km", ["10", "km"]),
        ("€5.", ["€", "5", "."]),
        ("well-known", ["well", "-", "known"]),
        ("end.Begin", ["end", ".", "Begin"]),
        ("3.14", ["3.14"]),
        ("e.g.,", ["e.g.", ","]),
        ("Mr.", ["Mr."]),
        ("U.S.", ["U.S."]),
        ("USA.", ["USA", "."]),
        ("a.", ["a."]),
        ("wait...", ["wait", "..."]),
        ("[1]:", ["[", "1", "]", ":"]),
        ("<https://example.org/a?b=c>,", ["<", "https://example.org/a?b=c", ">", ","]),
        ("me@example.org.", ["me@example.org", "."]),
        ("**bold**", ["*", "*", "bold", "*", "*"]),
        ("naïve", ["naïve"]),
        ("日本語です。", ["日", "本", "語", "で", "す", "。"]),
        ("★★x", ["★", "★", "x"]),
        ("...", ["..."]),
        (".", ["."]),
    ],
)
def test_words(chunk, words):
    assert split(chunk) == words


def test_nothing_is_lost_or_added():
    marks = "ab.,'\"()-1+$€…:/@n’té日 "
    for seed in range(2000):
        chunk = "".join(marks[(seed * 7919 + k * k * 31 + k * seed) % len(marks)] for k in range(1 + seed % 12)).replace(
            " ", ""
        )
        if chunk:
            assert "".join(split(chunk)) == chunk, chunk
            assert all(split(chunk))


def test_what_is_no_prose_stays_whole():
    assert split("(" * (LONGEST + 1)) == ["(" * (LONGEST + 1)]


def words_of(chunks: list[str]) -> list[list[str]]:
    """Return the words of each chunk, as a batch of documents has them."""
    words = Words(chunks)
    found, word, sizes = [], 0, words.size_W.tolist()
    for chunk, count in zip(chunks, words.words_N.tolist()):
        ends = np.cumsum([0, *sizes[word : word + count]]).tolist()
        found.append([chunk[a:b] for a, b in zip(ends[:-1], ends[1:])])
        word += count
    return found


def test_compiled_rules_are_the_plain_ones():
    library = Path(sysconfig.get_path("stdlib"))
    texts = [*topics.values(), *(path.read_text(errors="replace") for path in sorted(library.glob("a*.py")))]
    chunks = {chunk for text in texts for chunk in text.split()}
    some, marks = random.Random(0), "abXY.,'\"()-1+2$€…:/@n’té日sSmkgd—–~*^%²=<>#?_&°★😀½٣ßЖ·µ§l"
    others = [chr(code) for code in range(0x21, 0x3000) if not chr(code).isspace()]
    for _ in range(30_000):
        chunks.add("".join(some.choice(others if some.random() < 0.1 else marks) for _ in range(some.randint(1, 9))))
    chunks |= {"x" * LONGEST + ".", "x" * (LONGEST - 1) + ".", "\ud800x."}
    assert words_of(sorted(chunks)) == [split(chunk) for chunk in sorted(chunks)]


def test_most_words_are_those_of_spacy():
    import spacy

    english, chunks = spacy.blank("en"), " ".join(topics.values()).split()[:20_000]
    theirs = {chunk: [word.text for word in english(chunk)] for chunk in set(chunks)}
    same = sum(split(chunk) == theirs[chunk] for chunk in chunks)
    assert same / len(chunks) > 0.985  # emoticons such as "):" are words there
