"""Hash the n-grams of words, vectorised over a batch."""

import numpy as np

from data.filters.word_hashes import Words, mix

MULTIPLIER = 0x2545F4914F6CDD1D  # odd, of Vigna's xorshift64* (2016)


def rolling(hashes: np.ndarray, n: int, multiplier: int = MULTIPLIER) -> np.ndarray:
    """Return uint64 [max(0, words − n + 1)]: mix(Σ_j h[i+j]·M^(n−1−j) mod 2^64), a hash of each run of n words."""
    count = max(0, len(hashes) - n + 1)
    grams = hashes[:count].copy()
    for j in range(1, n):
        grams *= np.uint64(multiplier)
        grams += hashes[j : j + count]
    return mix(grams)


def shingles(words: Words, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the n-grams of each document, in order: hashes, uint64, and int64 [documents + 1], where each document begins.

    A document of 1 … n − 1 words has one shingle: all its words. A document without words has none.
    """
    lengths = np.diff(words.offsets)
    counts = np.where(lengths < n, np.minimum(lengths, 1), lengths - n + 1)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    found = np.concatenate([rolling(words.hash, n), np.zeros(min(n - 1, len(words.hash)), np.uint64)])
    short = np.flatnonzero((lengths > 0) & (lengths < n))
    if len(short):
        begin = words.offsets[short]
        whole = words.hash[begin]
        for j in range(1, n - 1):
            more = np.flatnonzero(lengths[short] > j)
            whole[more] = whole[more] * np.uint64(MULTIPLIER) + words.hash[begin[more] + j]
        found[begin] = mix(whole)
    return found[np.arange(offsets[-1]) + np.repeat(words.offsets[:-1] - offsets[:-1], counts)], offsets


def sets(hashes: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each document's distinct hashes in ascending order, and int64 [documents + 1], where each document begins."""
    hashes = hashes.copy()
    for begin, end in zip(offsets[:-1].tolist(), offsets[1:].tolist()):
        hashes[begin:end].sort()
    new = np.ones(len(hashes), bool)
    new[1:] = hashes[1:] != hashes[:-1]
    new[offsets[:-1][np.diff(offsets) > 0]] = True
    return hashes[new], np.concatenate([[0], np.cumsum(new)])[offsets]
