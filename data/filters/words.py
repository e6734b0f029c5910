"""The words of a batch of documents, split once and shared by every rule.

Axes: N documents, L lines, C chunks (maximal runs without white space), W words.
A document consists of lines, a line of chunks, a chunk of words.
Compiled loops find the chunks (data/filters/compiled/chunks.py). Each distinct chunk is split once, by the rules of
data/filters/splitting.py; everything else is a look-up by the numbers of the chunks.
"""

import functools
import unicodedata
from collections.abc import Sequence
from itertools import pairwise, repeat

import numpy as np
import xxhash

from data.filters.characters import LINE_ENDS, SENTENCE_ENDS, SYMBOLS, first_characters, is_alphanumeric
from data.filters.compiled import chunks, splitting
from data.filters.compiled.chunks import ENDS_SENTENCE, LETTER, PUNCTUATION, SYMBOL
from data.filters.splitting import tables

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")  # Gopher's (Rae et al. 2021, A.1.1)
# Properties of a word, as bits: those of data/filters/compiled/chunks.py, and bit 8 + k: the word is STOP_WORDS[k].
_STOP = {word: 1 << (8 + k) for k, word in enumerate(STOP_WORDS)}
MAX_CHUNKS, MAX_CODES = 400_000, 16_000_000  # of distinct chunks, kept between batches: about 150 MB


class Words:
    """The words of `texts`, a sequence of N strings.

    characters_N, lines_N, words_N: int64, the counts of each document
    chunks_L, words_L, longest_L: int64, of each line: chunks, words, and characters of the longest chunk
    flags_L: uint8, of each line: BULLET, ELLIPSIS
    hash_W: uint64, XXH3 of the word's UTF-8;  size_W: int64, its characters;  flags_W: uint16, its properties
    number_W: int32, equal for equal words of a batch, and for these only
    """

    def __init__(self, texts: Sequence[str]):
        self.texts = texts
        self.characters_N = np.fromiter(map(len, texts), np.int64, len(texts))
        joined = bytearray("\n".join([*texts, ""]).encode("utf-32-le", "surrogatepass"))  # compiled loops want it writable
        codes, begin_N = np.frombuffer(joined, np.uint32), np.append(0, np.cumsum(self.characters_N + 1))
        self.lines_N = np.zeros(len(texts), np.int64)
        lines = np.empty(len(codes) + 1, np.int64), np.empty(len(codes) + 1, np.int64), np.empty(len(codes) + 1, np.uint8)
        begin_C, end_C = np.empty((2, len(codes) // 2 + 1), np.int64)
        L, C = chunks.scan(codes, begin_N, _kinds(), self.lines_N, *lines, begin_C, end_C)
        self.chunks_L, self.longest_L, self.flags_L = (values[:L].copy() for values in lines)
        seen, number_C = _known(codes, begin_C[:C], end_C[:C])
        self.words_L = sums(seen.chunks.words[number_C], self.chunks_L)
        W = int(self.words_L.sum())
        self.hash_W, self.flags_W = np.empty(W, np.uint64), np.empty(W, np.uint16)
        self.size_W, self.number_W = np.empty(W, np.int64), np.empty(W, np.int32)
        chunks.spread(number_C, seen, self.hash_W, self.flags_W, self.size_W, self.number_W)
        self.words_N = sums(self.words_L, self.lines_N)

    def __len__(self) -> int:
        return len(self.texts)

    def spelled(self, n: int) -> list[str]:
        """Return the words of text n."""
        letters, first = "".join(self.texts[n].split()), int(self.words_N[:n].sum())
        ends = np.cumsum(self.size_W[first : first + self.words_N[n]]).tolist()
        return [letters[begin:end] for begin, end in pairwise([0, *ends])]

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


_seen: chunks.Seen | None = None  # it grows with each batch, up to MAX_CHUNKS


def _known(codes: np.ndarray, begin_C: np.ndarray, end_C: np.ndarray) -> tuple[chunks.Seen, np.ndarray]:
    """Return what is known of chunks and of their words, and the numbers of these chunks, int32 [C]."""
    global _seen
    if _seen is None or _seen.counts[0] > MAX_CHUNKS or _seen.counts[3] > MAX_CODES:
        _seen = _nothing()
    old, number_C = _seen.counts.copy(), np.empty(len(begin_C), np.int32)
    _seen = _seen._replace(
        chunks=_longer_table(_seen.chunks, old[0], old[0] + len(begin_C)),
        codes=_longer(_seen.codes, old[3] + len(codes) + 1),
        is_cut=_longer(_seen.is_cut, old[3] + len(codes) + 1),
    )
    chunks.number_chunks(codes, begin_C, end_C, _seen, number_C)
    new = slice(old[0], _seen.counts[0])
    if new.start < new.stop:
        splitting.cut(_seen.codes, _seen.chunks.at[new], _seen.chunks.size[new], tables(), _seen.is_cut)
        most = int(new.stop - new.start + np.count_nonzero(_seen.is_cut[old[3] : _seen.counts[3] + 1]))  # new words
        table, entries = _longer_table(_seen.distinct, old[2], old[2] + most), _longer(_seen.words, old[1] + most)
        _seen = _seen._replace(distinct=table, words=entries)
        chunks.add_words(old[0], _kinds(), _seen)
        _describe_words(_seen, old)
    return _seen, number_C


def _nothing() -> chunks.Seen:
    """Return what is known at the beginning."""
    size = 1 << 12

    def table(kind, *types):
        return kind(np.full(4 * size, -1, np.int32), *(np.zeros(size, type) for type in types))

    return chunks.Seen(
        np.zeros(4, np.int64),
        table(chunks.Chunks, np.uint64, np.int64, np.int32, np.int64, np.int32),
        table(chunks.Distinct, np.uint64, np.int64, np.int32, np.uint16, np.uint64),
        *(np.zeros(size, type) for type in (np.int32, np.uint32, bool)),
    )


def _describe_words(seen: chunks.Seen, old: np.ndarray) -> None:
    """Fill in what Python knows of the words that are new since `seen.counts` was `old`."""
    text = seen.codes[old[3] : seen.counts[3]].tobytes().decode("utf-32-le", "surrogatepass")
    new = slice(old[2], seen.counts[2])
    starts = seen.distinct.at[new] - old[3]
    ends = starts + seen.distinct.size[new]
    words = [text[start:end] for start, end in zip(starts.tolist(), ends.tolist())]
    data = map(str.encode, words, repeat("utf-8"), repeat("surrogatepass"))
    seen.distinct.xxh3[new] = np.fromiter(map(xxhash.xxh3_64_intdigest, data), np.uint64, len(words))
    for word in _STOP.keys() & set(words):
        seen.distinct.flags[old[2] + words.index(word)] |= _STOP[word]


def _longer(array: np.ndarray, least: int) -> np.ndarray:
    """Return the array, or a copy with room for at least `least` entries; the new ones are 0."""
    if least <= len(array):
        return array
    copy = np.zeros(max(least, 2 * len(array)), array.dtype)
    copy[: len(array)] = array
    return copy


def _longer_table(table, count: int, least: int):
    """Return a hash table of `count` entries, or a copy with room for at least `least`."""
    if least <= len(table.hash):
        return table
    arrays = [_longer(array, least) for array in table[1:]]
    slots = np.full(1 << (2 * len(arrays[0])).bit_length(), -1, np.int32)
    chunks.place(arrays[0], count, slots)
    return type(table)(slots, *arrays)


@functools.cache
def _kinds() -> np.ndarray:
    """Return uint8 [CODES]: the properties of characters."""
    kinds = np.zeros(chunks.CODES, np.uint8)
    characters = first_characters(chunks.CODES)
    for belongs, bit in ((str.isspace, chunks.SPACE), (str.isalpha, LETTER)):
        kinds |= np.fromiter(map(belongs, characters), bool, len(kinds)) * np.uint8(bit)
    signs = np.fromiter(map(str.isprintable, characters), bool, len(kinds)) & ~is_alphanumeric(chunks.CODES)
    kinds[[code for code in np.flatnonzero(signs).tolist() if unicodedata.category(chr(code))[0] == "P"]] |= PUNCTUATION
    for some, bit in ((SYMBOLS, SYMBOL), (SENTENCE_ENDS, ENDS_SENTENCE), (LINE_ENDS, chunks.LINE_END)):
        kinds[[ord(character) for character in some]] |= bit
    return kinds


def sums(values: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Return the sums of consecutive groups of `count` values; an empty group gives 0."""
    total = np.append(0, np.cumsum(values))
    ends = np.cumsum(count)
    return total[ends] - total[ends - count]
