"""Words of a text without white space."""

import pytest

from data.filters.splitting import LONGEST, split


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


def test_most_words_are_those_of_spacy():
    from pydoc_data.topics import topics

    import spacy

    english, chunks = spacy.blank("en"), " ".join(topics.values()).split()[:20_000]
    theirs = {chunk: [word.text for word in english(chunk)] for chunk in set(chunks)}
    same = sum(split(chunk) == theirs[chunk] for chunk in chunks)
    assert same / len(chunks) > 0.985  # emoticons such as "):" are words there
