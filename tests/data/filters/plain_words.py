"""The plain twins of data/filters/word_hashes.py, one character at a time."""

import numpy as np

from data.filters.word_hashes import ALONE, CODES, DELETED, LETTER, P, _kinds, _values, mix, spelling


def plain_words(text: str, *, keep_symbols: bool = False) -> list[tuple[str, int, int]]:
    """Return (word, start, end) of each word: the twin of `words`."""
    kinds, found, open_ = _kinds(keep_symbols), [], False
    for i, character in enumerate(text):
        kind = kinds[min(ord(character), CODES)]
        if kind == LETTER and open_:
            found[-1][1] = i + 1
        elif kind in (LETTER, ALONE):
            found.append([i, i + 1])
        if kind != DELETED:
            open_ = kind == LETTER
    return [(spelling(text[start:end], keep_symbols), start, end) for start, end in found]


def plain_hash(word: str) -> int:
    """Return the hash of a word in lower case: the twin of what `words` gives, in Python's integers."""
    values = [int(_values()[min(ord(character), CODES)]) for character in word]
    total = sum(value * pow(P, i, 1 << 64) for i, value in enumerate(values)) % (1 << 64)
    return int(mix(np.array([total], np.uint64))[0])
