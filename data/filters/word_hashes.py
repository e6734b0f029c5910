"""Split a batch of texts into words and hash them, by a compiled loop over Unicode code points.

A word is a run of letters, digits and combining marks (Unicode categories L, N, M). Its case is ignored. Scripts that put no
spaces between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese) give one word a character. Letters are lower-cased one by
one, so offsets are those of the original text, and a letter whose lower-case form has several code points stays as it is. The
classes of characters come from `unicodedata`, so Python versions may differ on characters that are new in Unicode. The plain
twins are in tests/data/filters/plain_words.py.

The hash of a word c_0 … c_{m−1} is mix(Σ_i r(c_i)·P^i mod 2^64), with r(c) a random 64-bit number of the character. Two given
words collide with a probability of about 2^−64.
"""

import dataclasses
import functools
import string
import unicodedata
from collections.abc import Sequence

import numpy as np

from data.filters.characters import first_characters, is_alphanumeric
from data.filters.compiled import compiled

SEPARATOR, LETTER, ALONE, DELETED = 0, 1, 2, 3  # what a character does to words: end one, continue it, be one, nothing
CODES = 0x40000  # no assigned letter lies above; such code points are separators
# Scripts without spaces between words: Thai and Lao; Burmese; Khmer; kana; its extensions; Han; compatibility; half-width kana.
NO_SPACES = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x31F0, 0x31FF), (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0xFF66, 0xFF9F), (0x20000, CODES - 1),
)  # fmt: skip

GOLDEN = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio, odd: the step of SplitMix64
P = 0xD1342543DE82EF95  # odd (Steele and Vigna 2021, table of multipliers)
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclasses.dataclass(frozen=True)
class Words:
    """The words of a batch. Those of document d are offsets[d] … offsets[d+1] − 1."""

    hash: np.ndarray  # uint64 [words]
    start: np.ndarray  # int64 [words], of the first character, in code points of its document
    end: np.ndarray  # int64 [words], behind the last one
    offsets: np.ndarray  # int64 [documents + 1]


def mix(values: np.ndarray) -> np.ndarray:
    """Return a bijection of uint64 values whose bits depend on all bits: the end of SplitMix64 (Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def randoms(seed: int, count: int) -> np.ndarray:
    """Return uint64 [count]: the first numbers of SplitMix64 with this seed, the same in every version of NumPy."""
    return mix(np.uint64(seed % (1 << 64)) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(GOLDEN))


def words(texts: Sequence[str], *, keep_symbols: bool = False) -> Words:
    """Return the words of `texts`.

    keep_symbols: words end only at whitespace and ASCII punctuation inside them is deleted ("don't" is "dont", "a-b" is "ab",
    a lone dash is no word). This is the normalisation of lm-evaluation-harness's compiled Janitor and of GPT-3's 13-grams,
    with the lower case of all scripts instead of ASCII's.
    """
    return _split(texts, _kinds(keep_symbols))


def characters(texts: Sequence[str]) -> Words:
    """Return every character of the words of `texts` as a word, and one space for what stands between two words."""
    found = _split(texts, np.where(_kinds(False) == SEPARATOR, SEPARATOR, ALONE).astype(np.uint8))
    document = np.repeat(np.arange(len(texts)), np.diff(found.offsets))
    gap = 1 + np.flatnonzero((found.start[1:] > found.end[:-1]) & (document[1:] == document[:-1]))
    hash = np.insert(found.hash, gap, mix(np.array([GOLDEN], np.uint64)))
    start = np.insert(found.start, gap, found.end[gap - 1])
    return Words(hash, start, start + 1, found.offsets + np.searchsorted(gap, found.offsets))


def _split(texts: Sequence[str], kinds: np.ndarray) -> Words:
    """Return the words of `texts`. kinds: uint8 [CODES + 1], what each character does to words."""
    joined = bytearray("\n".join([*texts, ""]).encode("utf-32-le", "surrogatepass"))  # compiled loops want it writable
    codes, begins = np.frombuffer(joined, np.uint32), np.cumsum([0, *(len(text) + 1 for text in texts)])
    hash, start, end = np.empty(len(codes), np.uint64), np.empty(len(codes), np.int64), np.empty(len(codes), np.int64)
    offsets = np.zeros(len(begins), np.int64)
    _find(codes, begins, kinds, _values(), np.uint64(P), hash, start, end, offsets)
    count = offsets[-1]
    return Words(mix(hash[:count]), start[:count].copy(), end[:count].copy(), offsets)


@compiled
def _find(codes, begin_N, kinds, values, base, hash_W, start_W, end_W, offset_N):
    """Write the words of documents: Σ_i values[c_i]·base^i mod 2^64 of each, its begin and end, and [N + 1] where each begins.

    codes: uint32; document n is codes[begin_N[n] : begin_N[n + 1] − 1].  kinds: uint8, values: uint64, of code points; the last
    entry is that of all higher ones
    """
    word, most = 0, len(kinds) - 1
    for n in range(len(begin_N) - 1):
        offset_N[n] = word
        first, inside, power = begin_N[n], False, base
        for i in range(first, begin_N[n + 1] - 1):
            code = min(np.int64(codes[i]), most)
            kind = kinds[code]
            if kind == DELETED:
                continue
            if kind == LETTER and inside:
                hash_W[word - 1] += values[code] * power
                power *= base
                end_W[word - 1] = i + 1 - first
            elif kind != SEPARATOR:
                hash_W[word], start_W[word], end_W[word] = values[code], i - first, i + 1 - first
                power = base
                word += 1
            inside = kind == LETTER
    offset_N[len(begin_N) - 1] = word


def spelling(word: str, keep_symbols: bool) -> str:
    """Return a word of `words` as it is compared: in lower case; with `keep_symbols` without ASCII punctuation."""
    word = word.translate(_NO_PUNCTUATION) if keep_symbols else word
    return word.lower() if word.isascii() else "".join(c.lower() if len(c.lower()) == 1 else c for c in word)


@functools.cache
def _kinds(keep_symbols: bool) -> np.ndarray:
    """Return uint8 [CODES + 1]: what each character does to words. The last entry is for all higher code points."""
    kinds, characters = np.full(CODES + 1, SEPARATOR, np.uint8), first_characters(CODES)
    if keep_symbols:
        kinds[:] = LETTER
        kinds[:CODES][np.fromiter(map(str.isspace, characters), bool, CODES)] = SEPARATOR
        kinds[0xD800:0xE000] = SEPARATOR
        kinds[[ord(c) for c in string.punctuation]] = DELETED
    else:
        kinds[:CODES][is_alphanumeric(CODES)] = LETTER
        signs = np.fromiter(map(str.isprintable, characters), bool, CODES) & ~is_alphanumeric(CODES)
        kinds[[c for c in np.flatnonzero(signs).tolist() if unicodedata.category(characters[c])[0] in "LNM"]] = LETTER
    for first, last in NO_SPACES:
        part = kinds[first : last + 1]
        part[part == LETTER] = ALONE
    return kinds


@functools.cache
def _values() -> np.ndarray:
    """Return uint64 [CODES + 1]: the random number r of each character, equal for both cases of a letter."""
    lower, characters = np.arange(CODES + 1), first_characters(CODES)
    for code in np.flatnonzero(np.fromiter(map(str.istitle, characters), bool, CODES)).tolist():  # upper case, too
        small = characters[code].lower()
        if len(small) == 1:
            lower[code] = ord(small)
    return randoms(0, CODES + 1)[np.minimum(lower, CODES)]
