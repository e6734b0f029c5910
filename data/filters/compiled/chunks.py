"""Find the lines and chunks of texts, and give equal chunks and words one number.

Axes: N documents, L lines, C chunks (maximal runs without white space), W words.
The plain twins are str.splitlines, str.split and two dictionaries, see tests/data/filters/test_batch_words.py.
"""

from typing import NamedTuple

import numpy as np

from data.filters.compiled import compiled

# Properties of characters, as bits. The first four are also properties of words. CODES: those above have no property.
SYMBOL, LETTER, ENDS_SENTENCE, PUNCTUATION, SPACE, LINE_END = 1, 2, 4, 8, 16, 32
CODES = 0x40000

BULLET, ELLIPSIS = 1, 2  # properties of lines: beginning with a bullet or hyphen, ending with an ellipsis

_NEWLINE, _RETURN, _DOT, _DOTS, _HYPHEN, _BULLET = map(ord, "\n\r.…-•")
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio, odd
_PRIME, _OFFSET = np.uint64(0x100000001B3), np.uint64(0xCBF29CE484222325)  # of FNV-1a (Fowler, Noll and Vo) with 64 bits


class Chunks(NamedTuple):
    """Distinct chunks in a hash table with open addressing.

    slots: int32 [a power of two above the double of the others' length], numbers of chunks, or −1
    hash, at, size: uint64, int64, int32, of a chunk: its hash, its first code point in `Seen.codes`, its code points
    first, words: int64, int32, of a chunk: where its words begin in `Seen.words`, and how many it has
    """

    slots: np.ndarray
    hash: np.ndarray
    at: np.ndarray
    size: np.ndarray
    first: np.ndarray
    words: np.ndarray


class Distinct(NamedTuple):
    """Distinct words in a hash table. slots … size: as of chunks;  flags: uint16, properties;  xxh3: uint64, of the UTF-8."""

    slots: np.ndarray
    hash: np.ndarray
    at: np.ndarray
    size: np.ndarray
    flags: np.ndarray
    xxh3: np.ndarray


class Seen(NamedTuple):
    """The chunks and words that were seen.

    counts: int64 [4], how many there are of: chunks, entries of `words`, distinct words, entries of `codes`
    words: int32, the numbers of the words of all chunks, one chunk after another
    codes: uint32, the code points of all chunks;  is_cut: bool, whether a word begins at each of them
    """

    counts: np.ndarray
    chunks: Chunks
    distinct: Distinct
    words: np.ndarray
    codes: np.ndarray
    is_cut: np.ndarray


@compiled
def scan(codes, begin_N, kinds, lines_N, chunks_L, longest_L, flags_L, begin_C, end_C):
    """Find lines and chunks, as str.splitlines and str.split do. Returns (lines, chunks), how many there are.

    codes: uint32, code points; document n is codes[begin_N[n] : begin_N[n + 1] − 1].  kinds: uint8 [CODES]
    The other arrays are written: of each document its lines; of each line its chunks, the code points of the longest one, and
    its properties; of each chunk its begin and end. As many entries [L] as code points + 1 are enough, half of it [C].
    """
    line, chunk = 0, 0
    for n in range(len(begin_N) - 1):
        i, stop, first = begin_N[n], begin_N[n + 1] - 1, line
        while i < stop:
            before, longest = chunk, 0
            while i < stop:
                kind = _kind(codes, i, kinds)
                if kind & LINE_END:
                    break
                if kind & SPACE:
                    i += 1
                    continue
                begin_C[chunk] = i
                while i < stop and not _kind(codes, i, kinds) & SPACE:
                    i += 1
                end_C[chunk] = i
                longest = max(longest, i - begin_C[chunk])
                chunk += 1
            chunks_L[line], longest_L[line], flags_L[line] = chunk - before, longest, 0
            if chunk > before:
                last = end_C[chunk - 1] - 1
                if codes[begin_C[before]] == _BULLET or codes[begin_C[before]] == _HYPHEN:
                    flags_L[line] |= BULLET
                dots = last - begin_C[chunk - 1] >= 2 and codes[last] == _DOT and codes[last - 1] == _DOT
                if codes[last] == _DOTS or (dots and codes[last - 2] == _DOT):
                    flags_L[line] |= ELLIPSIS
            line += 1
            if i + 1 < stop and codes[i] == _RETURN and codes[i + 1] == _NEWLINE:
                i += 1
            i += 1
        lines_N[n] = line - first
    return line, chunk


@compiled
def number_chunks(codes, begin_C, end_C, seen, number_C):
    """Write the numbers of chunks into number_C. A new one is added to `seen`, where there is room, without its words."""
    for c in range(len(begin_C)):
        begin, size = begin_C[c], end_C[c] - begin_C[c]
        hash = _hash(codes, begin, size)
        slot = _slot(seen.chunks, seen.codes, hash, codes, begin, size)
        number = seen.chunks.slots[slot]
        if number < 0:
            number, at = seen.counts[0], seen.counts[3]
            seen.chunks.slots[slot] = number
            for k in range(size):
                seen.codes[at + k] = codes[begin + k]
            seen.chunks.hash[number], seen.chunks.at[number], seen.chunks.size[number] = hash, at, size
            seen.counts[0] += 1
            seen.counts[3] += size
        number_C[c] = number


@compiled
def add_words(first, kinds, seen):
    """Add the words of the chunks from number `first` on. There is room for as many words as these have code points."""
    for chunk in range(first, seen.counts[0]):
        begin = seen.chunks.at[chunk]
        end, seen.chunks.first[chunk] = begin + seen.chunks.size[chunk], seen.counts[1]
        for i in range(begin + 1, end + 1):
            if i == end or seen.is_cut[i]:
                seen.words[seen.counts[1]] = _word(begin, i - begin, kinds, seen)
                seen.counts[1] += 1
                begin = i
        seen.chunks.words[chunk] = seen.counts[1] - seen.chunks.first[chunk]


@compiled
def _word(at, size, kinds, seen):
    """Return the number of a word of `codes`."""
    hash = _hash(seen.codes, at, size)
    slot = _slot(seen.distinct, seen.codes, hash, seen.codes, at, size)
    number = seen.distinct.slots[slot]
    if number < 0:
        number, every, some = seen.counts[2], 0xFF, 0
        for i in range(at, at + size):
            kind = _kind(seen.codes, i, kinds)
            every &= kind
            some |= kind
        every &= SYMBOL | PUNCTUATION | (ENDS_SENTENCE if size == 1 else 0)
        seen.distinct.slots[slot] = number
        seen.distinct.flags[number] = every | some & LETTER
        seen.distinct.hash[number], seen.distinct.at[number], seen.distinct.size[number] = hash, at, size
        seen.counts[2] += 1
    return number


@compiled
def _slot(table, table_codes, hash, codes, at, size):
    """Return the slot of codes[at : at + size] in a table of chunks or words, or the free one where it belongs."""
    mask = len(table.slots) - 1
    slot = np.int64(hash >> np.uint64(32)) & mask
    number = table.slots[slot]
    while number >= 0 and not (
        table.hash[number] == hash and table.size[number] == size and _same(table_codes, table.at[number], codes, at, size)
    ):
        slot = (slot + 1) & mask
        number = table.slots[slot]
    return slot


@compiled
def place(hashes, count, slots):
    """Put the numbers 0 … count − 1 into empty slots, by their hashes."""
    mask = len(slots) - 1
    for number in range(count):
        slot = np.int64(hashes[number] >> np.uint64(32)) & mask
        while slots[slot] >= 0:
            slot = (slot + 1) & mask
        slots[slot] = number


@compiled
def spread(number_C, seen, hash_W, flags_W, size_W, number_W):
    """Write XXH3, properties, characters and numbers of the words of chunks."""
    w = 0
    for number in number_C:
        first = seen.chunks.first[number]
        for k in range(first, first + seen.chunks.words[number]):
            word = seen.words[k]
            hash_W[w], flags_W[w] = seen.distinct.xxh3[word], seen.distinct.flags[word]
            size_W[w], number_W[w] = seen.distinct.size[word], word
            w += 1


@compiled
def _kind(codes, i, kinds):
    return kinds[codes[i]] if codes[i] < CODES else np.uint8(0)


@compiled
def _hash(codes, at, size):
    hash = _OFFSET
    for i in range(at, at + size):
        hash = (hash ^ np.uint64(codes[i])) * _PRIME
    return (hash ^ (hash >> np.uint64(32))) * _GOLDEN


@compiled
def _same(codes, at, others, other_at, size):
    for k in range(size):
        if codes[at + k] != others[other_at + k]:
            return False
    return True
