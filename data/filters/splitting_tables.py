"""What the compiled splitter knows of characters and words, made of the sets of data/filters/splitting.py."""

import functools
import re
from collections.abc import Collection, Iterable
from itertools import accumulate

import numpy as np

from data.filters import splitting
from data.filters.characters import ICONS, LETTERS, LOWER, UPPER, is_alphanumeric
from data.filters.compiled import splitting as loops
from data.filters.compiled.splitting import Tables


@functools.cache
def tables() -> Tables:
    """Return the tables, made of the sets of data/filters/splitting.py. It takes about a tenth of a second, once a process."""
    classes = np.where(is_alphanumeric(loops.CODES), loops.WORD, 0).astype(np.uint16)
    singles = "".join(mark for mark in splitting.CURRENCIES if len(mark) == 1)
    marks = (
        *(
            (splitting.QUOTES, loops.QUOTE),
            (splitting.BEFORE, loops.BEFORE),
            (splitting.AFTER, loops.AFTER),
            (singles, loops.CURRENCY),
        ),
        *((splitting.BEFORE_FULL_STOP, loops.BEFORE_FULL_STOP), (".…+-*^,–—~:<>=/", loops.INNER), ("_", loops.WORD)),
    )
    for some, bit in marks:
        classes[list(map(ord, some))] |= bit
    for some, bit in ((LETTERS, loops.LETTER), (LOWER, loops.LOW), (UPPER, loops.HIGH), (ICONS, loops.ICON | loops.INNER)):
        for match in re.finditer("(.)-(.)|.", some, re.DOTALL):
            first, last = match.groups() if match[1] else (match[0], match[0])
            classes[ord(first) : ord(last) + 1] |= bit
    exceptions, after_digit = _placed(splitting.EXCEPTIONS), _placed(splitting.AFTER_DIGIT)
    words, parts = np.zeros((2, len(exceptions)), np.uint16)
    longest = splitting.LONGEST_EXCEPTION, max(map(len, splitting.AFTER_DIGIT))
    made = Tables(classes, exceptions, words, parts, after_digit, *longest)
    texts, sizes = "".join(splitting.EXCEPTIONS), np.array(list(map(len, splitting.EXCEPTIONS)), np.int32)
    begins, is_cut = np.cumsum(sizes, dtype=np.int64) - sizes, np.zeros(len(texts) + 1, bool)
    # How the rules cut them if they know no exception.
    loops.cut(np.array(list(map(ord, texts)), np.uint32), begins, sizes, made._replace(longest=0), is_cut)
    for (text, own), begin in zip(splitting.EXCEPTIONS.items(), begins.tolist()):
        slot = loops.find(exceptions, _key(text))
        words[slot] = _mask(accumulate(map(len, own[:-1])))
        parts[slot] = _mask(np.flatnonzero(is_cut[begin : begin + len(text)]).tolist())
    return made


def _placed(texts: Collection[str]) -> np.ndarray:
    keys = np.zeros(1 << (4 * len(texts)).bit_length(), np.uint64)
    for text in dict.fromkeys(texts):
        slot = -1 - loops.find(keys, _key(text))
        keys[slot] = _key(text)
    return keys


def _key(text: str) -> np.uint64:
    return np.uint64(loops.key_of(np.array(list(map(ord, text)), np.uint32), 0, len(text)))


def _mask(places: Iterable[int]) -> int:
    """Return a number whose bit k is set for each place k > 0."""
    return sum(1 << k for k in places) & ~1
