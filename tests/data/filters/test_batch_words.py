"""Words, lines and sentences of a batch, and repeated n-grams, against plain twins."""

from pydoc_data.topics import topics

import numpy as np
import pytest
import xxhash

from data.filters.heuristics import ngrams
from data.filters.words import LETTER, SYMBOL, Words, sums
from tests.data.filters.plain_splitting import split

TEXTS = [
    "",
    " \n ",
    "One line. Two sentences!\n\nAnd (a) third... ",
    "x",
    *list(topics.values())[:25],
    "a b a b a b a b\nc c c c c c c",
    "a b b a x b a a b y a b b a x b a a b " * 3,
    "x\x85y z\u2028w\r\nq\r\n\n\x1c\x1d a\x1fb\u3000c\u00a0d\v",
]


def words_of(text: str) -> list[str]:
    return [word for chunk in text.split() for word in split(chunk)]


def test_counts_hashes_and_sizes():
    words = Words(TEXTS)
    plain = [words_of(text) for text in TEXTS]
    assert words.words_N.tolist() == [len(some) for some in plain]
    assert words.characters_N.tolist() == [len(text) for text in TEXTS]
    flat = [word for some in plain for word in some]
    assert words.size_W.tolist() == [len(word) for word in flat]
    numbers = {word: number for word, number in zip(flat, words.number_W.tolist())}
    assert len(set(numbers.values())) == len(numbers) and [numbers[word] for word in flat] == words.number_W.tolist()
    assert words.hash_W.tolist() == [xxhash.xxh3_64_intdigest(word.encode()) for word in flat]
    assert words.count(LETTER).tolist() == [sum(any(map(str.isalpha, word)) for word in some) for some in plain]
    lines = [line for text in TEXTS for line in text.splitlines()]
    assert words.chunks_L.tolist() == [len(line.split()) for line in lines]
    assert words.words_L.tolist() == [len(words_of(line)) for line in lines]
    assert words.longest_L.tolist() == [max(map(len, line.split()), default=0) for line in lines]


def test_a_batch_does_not_change_its_documents():
    together = Words(TEXTS)
    for n, text in enumerate(TEXTS):
        alone = Words([text])
        assert alone.lines_N[0] == together.lines_N[n] == len(text.splitlines())
        assert alone.words_N[0] == together.words_N[n] and alone.count(SYMBOL)[0] == together.count(SYMBOL)[n]
        assert together.spelled(n) == alone.spelled(0) == words_of(text)


@pytest.mark.parametrize(
    "line, sentences",
    [
        ("", 0),
        ("No end", 1),
        ("One. Two", 2),
        ("One.", 1),
        ('"One." Two! (Three?) ', 3),
        ("It is 3.14 e.g. here. So", 2),
        ("... x", 1),
    ],
)
def test_sentences(line, sentences):
    assert Words([line]).sentences_L.tolist() == ([sentences] if line else [])


def top_characters(words: list[str], n: int) -> int:
    """Return the top characters of one document, given its words."""
    counts: dict[tuple[str, ...], int] = {}
    for k in range(len(words) - n + 1):
        gram = tuple(words[k : k + n])
        counts[gram] = counts.get(gram, 0) + 1
    best = max(counts, key=counts.__getitem__, default=())
    return counts[best] * len(" ".join(best)) if counts else 0


def duplicate_characters(words: list[str], n: int) -> int:
    """Return the duplicate characters of one document, given its words."""
    seen, characters, k = set(), 0, 0
    while k + n <= len(words):
        gram = tuple(words[k : k + n])
        if gram in seen:
            characters += sum(map(len, gram))
            k += n
        else:
            seen.add(gram)
            k += 1
    return characters


@pytest.mark.parametrize("n", [2, 3, 4, 5, 10])
def test_repeated_n_grams_are_those_of_the_plain_twins(n):
    top, duplicate = ngrams.characters(Words(TEXTS), n)
    plain = [words_of(text) for text in TEXTS]
    assert top[-1].tolist() == [top_characters(some, n) for some in plain]
    assert duplicate[-1].tolist() == [duplicate_characters(some, n) for some in plain]


def test_groups():
    assert sums(np.array([1, 2, 3]), np.array([0, 2, 0, 1])).tolist() == [0, 3, 0, 3]
