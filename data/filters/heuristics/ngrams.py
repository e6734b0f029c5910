"""Repeated word n-grams of documents, for Gopher's rules against repetition (Rae et al. 2021, A.1.1).

Axes: N documents, W words, K the values of n: 2 … K + 1.

An n-gram can only be repeated if the two (n − 1)-grams in it are, so each n looks at what the one before left. There, the
(n − 1)-gram at a place has a number below 2^32, and so has the word behind it: together they are a key that is the n-gram.
The plain twins are in tests/data/filters/test_batch_words.py.
"""

import numpy as np

from data.filters.compiled import compiled
from data.filters.words import Words

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio, odd
_SHIFT = np.uint64(32)


def characters(words: Words, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the characters of top n-grams, and of duplicate ones, int64 [longest − 1, N] each, row k for n = k + 2.

    Top: occurrences of the most frequent n-gram × its characters with single spaces; the earliest one wins ties.
    Duplicate: the characters, without spaces, of n-grams that occurred before in their document. A document is read from its
    beginning. An n-gram that was read before counts, and reading goes on behind it; another one is remembered, and reading goes
    on with the next word.
    """
    top, duplicate = np.zeros((2, longest - 1, len(words)), np.int64)
    _count(words.number_W, words.size_W, words.words_N, top, duplicate)
    return top, duplicate


@compiled
def _count(number_W, size_W, words_N, top_KN, duplicate_KN):
    """Write the characters of top and of duplicate n-grams into int64 [K, N], see `characters`.

    number_W: int32, equal for equal words;  size_W: int64, their characters;  words_N: int64
    """
    longest, start = 1, 0
    for n in range(len(words_N)):
        longest = max(longest, words_N[n])
    slots = np.empty(_slots(longest), np.int32)
    key_G, count_G, first_G = np.empty(longest, np.uint64), np.empty(longest, np.int32), np.empty(longest, np.int32)
    place_P, gram_P, before = np.empty(longest, np.int32), np.empty(longest, np.int32), np.empty(longest + 1, np.int64)
    for n in range(len(words_N)):
        words, before[0] = words_N[n], 0
        for w in range(words):
            before[w + 1] = before[w] + size_W[start + w]
            place_P[w], gram_P[w] = w, number_W[start + w]
        left = words
        for k in range(len(top_KN)):
            size = k + 2
            if words < size:
                break
            left, groups = _group(number_W, start, words, size, left, place_P, gram_P, slots, key_G, count_G, first_G)
            best, first = 1, 0  # if none is repeated, the first n-gram is the most frequent one
            for g in range(groups):  # in order of appearance: the first one wins ties
                if count_G[g] > best:
                    best, first = count_G[g], first_G[g]
            top_KN[k, n] = best * (before[first + size] - before[first] + size - 1)
            characters, free = 0, 0  # free: the first word that no counted n-gram covers
            for p in range(left):
                place = place_P[p]
                if place < free:
                    continue
                if first_G[gram_P[p]] < 0:
                    characters += before[place + size] - before[place]
                    free = place + size
                first_G[gram_P[p]] = -1  # it was read
            duplicate_KN[k, n] = characters
        start += words


@compiled
def _group(number_W, start, words, size, left, place_P, gram_P, slots, key_G, count_G, first_G):
    """Replace repeated (size − 1)-grams of a document by repeated size-grams. Returns how many there are, and the groups.

    place_P, gram_P: int32, the place and the number of each occurrence, ascending by place; `left` of them are read
    count_G, first_G: int32, written, of each distinct size-gram that may be repeated: its occurrences, the first one's place
    """
    mask = _slots(left) - 1
    for slot in range(mask + 1):
        slots[slot] = -1
    groups, candidates = 0, 0
    for p in range(left - 1):
        place = place_P[p]
        if place_P[p + 1] != place + 1 or place + size > words:
            continue
        key = np.uint64(gram_P[p]) << _SHIFT | np.uint64(number_W[start + place + size - 1])
        slot = np.int64(key * _GOLDEN >> _SHIFT) & mask
        group = slots[slot]
        while group >= 0 and key_G[group] != key:
            slot = (slot + 1) & mask
            group = slots[slot]
        if group < 0:
            group, slots[slot] = groups, groups
            key_G[group], count_G[group], first_G[group] = key, 0, place
            groups += 1
        count_G[group] += 1
        place_P[candidates], gram_P[candidates] = place, group
        candidates += 1
    found = 0
    for p in range(candidates):
        if count_G[gram_P[p]] > 1:
            place_P[found], gram_P[found] = place_P[p], gram_P[p]
            found += 1
    return found, groups


@compiled
def _slots(entries):
    size = 4
    while size < 2 * entries:
        size *= 2
    return size
