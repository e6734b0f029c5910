"""The words of a batch of documents, split once and shared by every rule.

Axes: N documents, L lines, C chunks (maximal runs without white space), W words.
A document consists of lines, a line of chunks, a chunk of words.
Each distinct chunk is split once (data/filters/splitting.py); everything else is NumPy on the numbers of the chunks.
"""

import functools
from array import array
from collections.abc import Sequence
from itertools import chain

import numpy as np
import xxhash

from data.filters.characters import SENTENCE_ENDS, SYMBOLS, is_punctuation
from data.filters.splitting import split

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")  # Gopher's (Rae et al. 2021, A.1.1)
# Properties of a word, as bits. Bit 8 + k: the word is STOP_WORDS[k].
SYMBOL, LETTER, ENDS_SENTENCE, PUNCTUATION = 1, 2, 4, 8
_STOP = {word: 1 << (8 + k) for k, word in enumerate(STOP_WORDS)}
MOST_CHUNKS = 400_000  # distinct chunks kept between batches: about 150 MB


class _Distinct(dict):
    """Numbers of the distinct words that were seen, and their properties."""

    def __init__(self):
        super().__init__()
        self.hashes, self.sizes, self.flags = array("Q"), array("i"), array("H")

    def __missing__(self, word: str) -> int:
        self[word] = number = len(self.sizes)
        self.hashes.append(xxhash.xxh3_64_intdigest(word.encode()))
        self.sizes.append(len(word))
        self.flags.append(_flags(word))
        return number


class _Chunks(dict):
    """Numbers of the distinct chunks that were seen, and the words of each; an unknown chunk is split when it is looked up."""

    def __init__(self):
        super().__init__()
        self.distinct = _Distinct()
        self.counts, self.starts, self.lengths = array("i"), array("i"), array("i")  # of a chunk: words, first one, characters
        self.words = array("i")  # the numbers of all words, one chunk after another

    def __missing__(self, chunk: str) -> int:
        self[chunk] = number = len(self.counts)
        words, first = split(chunk), len(self.words)
        for word in words:
            self.words.append(self.distinct[word])
        self.starts.append(first)
        self.counts.append(len(words))
        self.lengths.append(len(chunk))
        return number


def _flags(word: str) -> int:
    if word.isascii() and word.isalnum():
        return LETTER * (not word.isdigit()) | _STOP.get(word, 0)
    flags = SYMBOL * all(c in SYMBOLS for c in word) | LETTER * any(map(str.isalpha, word))
    return flags | ENDS_SENTENCE * (word in SENTENCE_ENDS) | PUNCTUATION * all(map(is_punctuation, word))


_chunks = _Chunks()


class Words:
    """The words of `texts`, a sequence of N strings.

    lines: for each text, its lines as str.splitlines gives them
    characters_N, lines_N, words_N: int64, the counts of each document
    chunks_L, words_L, longest_L: int64, of each line: chunks, words, and characters of the longest chunk
    hash_W: uint64, XXH3 of the word's UTF-8;  size_W: int64, its characters;  flags_W: uint16, its properties
    """

    def __init__(self, texts: Sequence[str]):
        global _chunks
        if len(_chunks) > MOST_CHUNKS:
            _chunks = _Chunks()
        self.texts, table = texts, _chunks
        self.lines = [text.splitlines() for text in texts]
        rows = [line.split() for line in chain.from_iterable(self.lines)]
        self.characters_N = np.fromiter(map(len, texts), np.int64, len(texts))
        self.lines_N = np.fromiter(map(len, self.lines), np.int64, len(texts))
        self.chunks_L = np.fromiter(map(len, rows), np.int64, len(rows))
        chunk_C = np.fromiter(map(table.__getitem__, chain.from_iterable(rows)), np.int64, int(self.chunks_L.sum()))
        counts_C = _of(table.counts, chunk_C).astype(np.int64)
        word_W = _of(table.words, runs(_of(table.starts, chunk_C), counts_C))
        self.words_L = sums(counts_C, self.chunks_L)
        self.words_N = sums(self.words_L, self.lines_N)
        self.longest_L = maxima(_of(table.lengths, chunk_C), self.chunks_L)
        distinct = table.distinct
        self.hash_W, self.flags_W = _of(distinct.hashes, word_W), _of(distinct.flags, word_W)
        self.size_W = _of(distinct.sizes, word_W).astype(np.int64)

    def __len__(self) -> int:
        return len(self.texts)

    def count(self, flag: int) -> np.ndarray:
        """Return int64 [N]: words with a property."""
        return sums((self.flags_W & flag) != 0, self.words_N)

    @functools.cached_property
    def sentences_L(self) -> np.ndarray:
        """Return int64 [L]: sentences of each line; none for a line without words.

        A sentence begins with the first word after the end of another one that is not punctuation, as in spaCy's sentencizer.
        """
        ends_W = np.cumsum((self.flags_W & ENDS_SENTENCE) != 0)
        before_L = np.append(0, ends_W)[np.cumsum(self.words_L) - self.words_L]
        inside = np.flatnonzero((self.flags_W & (ENDS_SENTENCE | PUNCTUATION)) == 0)
        line = np.repeat(np.arange(len(self.words_L)), self.words_L)[inside]
        previous = np.append(0, ends_W[inside[:-1]])[: len(inside)]
        first = np.append(True, line[1:] != line[:-1])[: len(inside)]
        begins = ends_W[inside] > np.where(first, before_L[line], previous)
        return (self.words_L > 0) + np.bincount(line[begins], minlength=len(self.words_L))


def _of(values: array, at: np.ndarray) -> np.ndarray:
    return np.frombuffer(values, values.typecode)[at] if len(values) else np.empty(0, values.typecode)


def runs(start: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Return the concatenation of start[k], start[k] + 1, … start[k] + count[k] − 1 for all k."""
    return np.arange(count.sum()) + np.repeat(start - (np.cumsum(count) - count), count)


def sums(values: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Return the sums of consecutive groups of `count` values; an empty group gives 0."""
    total = np.append(0, np.cumsum(values))
    ends = np.cumsum(count)
    return total[ends] - total[ends - count]


def maxima(values: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Return the maxima of consecutive groups of `count` values that are not negative; an empty group gives 0."""
    found = np.zeros(len(count), values.dtype)
    if len(values):
        full = np.flatnonzero(count)
        found[full] = np.maximum.reduceat(values, (np.cumsum(count) - count)[full])
    return found
