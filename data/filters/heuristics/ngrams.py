"""Repeated word n-grams of documents, for Gopher's rules against repetition (Rae et al. 2021, A.1.1).

The compiled loop is in data/filters/compiled/ngrams.py; the functions *_reference here are its plain twins.
"""

import numpy as np

from data.filters.compiled import ngrams
from data.filters.words import Words


def characters(words: Words, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the characters of top n-grams, and of duplicate ones, int64 [longest − 1, N] each, row k for n = k + 2.

    Top: occurrences of the most frequent n-gram × its characters with single spaces; the earliest one wins ties.
    Duplicate: the characters, without spaces, of n-grams that occurred before in their document. A document is read from its
    beginning. An n-gram that was read before counts, and reading goes on behind it; another one is remembered, and reading goes
    on with the next word.
    """
    top, duplicate = np.zeros((2, longest - 1, len(words)), np.int64)
    ngrams.count(words.number_W, words.size_W, words.words_N, top, duplicate)
    return top, duplicate


def top_characters_reference(words: list[str], n: int) -> int:
    """Return the top characters of one document, given its words."""
    counts: dict[tuple[str, ...], int] = {}
    for k in range(len(words) - n + 1):
        gram = tuple(words[k : k + n])
        counts[gram] = counts.get(gram, 0) + 1
    best = max(counts, key=counts.__getitem__, default=())
    return counts[best] * len(" ".join(best)) if counts else 0


def duplicate_characters_reference(words: list[str], n: int) -> int:
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
