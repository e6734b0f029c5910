"""Repeated word n-grams of documents, for Gopher's rules against repetition (Rae et al. 2021, A.1.1).

Axes: N documents, W words, P occurrences of repeated n-grams, G distinct repeated n-grams.
"""

from typing import NamedTuple

import numpy as np

from data.filters.words import Words

# Odd multipliers of the words of an n-gram: the fractional parts of multiples of the golden ratio, in 64 bits.
_MULTIPLIERS = [np.uint64(k * 0x9E3779B97F4A7C15 & (1 << 64) - 1 | 1) for k in range(1, 65)]


class Grams(NamedTuple):
    """The n-grams of a batch that occur more than once in their document.

    position_P: index of an occurrence's first word, ascending;  gram_P: which n-gram it is
    document_G, count_G, first_G: of each distinct n-gram, its document, its occurrences, and the first one's position
    """

    n: int
    position_P: np.ndarray
    gram_P: np.ndarray
    document_G: np.ndarray
    count_G: np.ndarray
    first_G: np.ndarray


def repeated(words: Words, longest: int) -> list[Grams]:
    """Return the repeated n-grams for n = 2 … `longest`. Two n-grams count as equal if their 64-bit hashes are.

    An n-gram can only be repeated if the two (n − 1)-grams in it are, so each n looks at what the one before left.
    """
    W = len(words.hash_W)
    document_W = np.repeat(np.arange(len(words)), words.words_N)
    room_W = np.repeat(np.cumsum(words.words_N), words.words_N) - np.arange(W)  # words from here to the document's end
    salt_N = np.arange(len(words), dtype=np.uint64) * _MULTIPLIERS[-1]
    hash_W, again_W, found = words.hash_W * _MULTIPLIERS[0], np.ones(W + 1, bool), []
    for n in range(2, longest + 1):
        hash_W[: max(0, W - n + 1)] += words.hash_W[n - 1 :] * _MULTIPLIERS[n - 1]
        at = np.flatnonzero(again_W[:-1] & again_W[1:] & (room_W >= n))
        found.append(_grams(n, at, hash_W[at] ^ salt_N[document_W[at]], document_W))
        again_W = np.zeros(W + 1, bool)
        again_W[found[-1].position_P] = True
    return found


def _grams(n: int, at: np.ndarray, key: np.ndarray, document_W: np.ndarray) -> Grams:
    """Group ascending positions by their keys, and keep the groups of at least two."""
    some = _may_repeat(key)  # a sort costs more
    at, key = at[some], key[some]
    order = np.argsort(key)
    key = key[order]
    equal = np.append(False, key[1:] == key[:-1])[: len(key)]
    inside = equal | np.append(equal[1:], False)[: len(key)]
    position, begins = at[order[inside]], ~equal[inside]
    gram = np.cumsum(begins) - 1
    first = np.minimum.reduceat(position, np.flatnonzero(begins)) if len(position) else position
    order = np.argsort(position)
    return Grams(n, position[order], gram[order], document_W[first], np.bincount(gram, minlength=len(first)), first)


def _may_repeat(key: np.ndarray) -> np.ndarray:
    """Return the indices of all keys that occur twice, and of a few others, whose highest bits do."""
    bits = max(1, int(4 * len(key)).bit_length())
    place = (key >> np.uint64(64 - bits)).astype(np.int64)
    last = np.zeros(1 << bits, np.int32)
    last[place] = np.arange(len(key), dtype=np.int32)
    shared = np.zeros(1 << bits, bool)
    shared[place[last[place] != np.arange(len(key), dtype=np.int32)]] = True
    return np.flatnonzero(shared[place])


def top_characters(words: Words, grams: Grams) -> np.ndarray:
    """Return int64 [N]: occurrences of the most frequent n-gram × its characters with single spaces; the earliest wins ties."""
    n, characters_W = grams.n, np.append(0, np.cumsum(words.size_W))
    first_N = np.cumsum(words.words_N) - words.words_N
    # A document whose n-grams all occur once: the first one is the most frequent.
    end_N = np.minimum(first_N + n, len(words.size_W))
    found = np.where(words.words_N >= n, characters_W[end_N] - characters_W[first_N] + n - 1, 0)
    order = np.lexsort((grams.first_G, -grams.count_G, grams.document_G))
    best = order[np.append(True, np.diff(grams.document_G[order]) != 0)[: len(order)]]
    at = grams.first_G[best]
    found[grams.document_G[best]] = grams.count_G[best] * (characters_W[at + n] - characters_W[at] + n - 1)
    return found


def duplicate_characters(words: Words, grams: Grams) -> np.ndarray:
    """Return int64 [N]: characters (without spaces) of n-grams that occurred before in their document.

    A document is read from its beginning. An n-gram that was read before counts, and reading goes on behind it; another one is
    remembered, and reading goes on with the next word.
    """
    n, characters_W, at = grams.n, np.append(0, np.cumsum(words.size_W)), grams.position_P
    seen, free, counted = bytearray(len(grams.count_G)), 0, []  # free: the first word that no counted n-gram covers
    for k, (position, gram) in enumerate(zip(at.tolist(), grams.gram_P.tolist())):
        if position >= free:
            if seen[gram]:
                counted.append(k)
                free = position + n
            else:
                seen[gram] = 1
    at, document = at[counted], grams.document_G[grams.gram_P[counted]]
    found = np.bincount(document, (characters_W[at + n] - characters_W[at]), len(words))
    return found.astype(np.int64)


def top_characters_reference(words: list[str], n: int) -> int:
    """Return the same as `top_characters` for the words of one document, plainly."""
    counts: dict[tuple[str, ...], int] = {}
    for k in range(len(words) - n + 1):
        gram = tuple(words[k : k + n])
        counts[gram] = counts.get(gram, 0) + 1
    best = max(counts, key=counts.__getitem__, default=())
    return counts[best] * len(" ".join(best)) if counts else 0


def duplicate_characters_reference(words: list[str], n: int) -> int:
    """Return the same as `duplicate_characters` for the words of one document, plainly."""
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
