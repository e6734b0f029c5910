"""A Bloom filter for streams, and the removal of paragraphs that a stream has shown before.

The filter is blocked: the bits of an item lie in one cache line of 512 bits (Putze, Sanders and Singler 2007, "Cache-, hash-
and space-efficient Bloom filters"). Unlike sorting on disk, it needs one pass and fixed memory, but the order of documents
matters, and some new text is taken for old.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.dedup.grams import shingles
from data.dedup.word_hashes import mix, randoms, words
from lm.errors import UserError
from lm.files import saving

BLOCK_BITS, _WORDS = 512, 8
MOST_HASHES = 16
_BLOCK_CHARACTERS = 1 << 18  # of text handled at a time
# Of BFF, the Bloom filter of Dolma and DCLM (allenai/bff; Li et al. 2024, DataComp-LM, section 4.3).
NGRAM, OVERLAP, FALSE_POSITIVES = 13, 0.8, 0.01


class BloomFilter:
    """A set of 64-bit hashes that forgets none and holds others by mistake with a known probability."""

    def __init__(self, items: int, false_positives: float = FALSE_POSITIVES):
        """Make room for `items`. When they are in, a new hash is taken for an old one with probability `false_positives`."""
        if items < 1 or not 0 < false_positives < 1:
            raise UserError(
                f"Bloom filter of {items} items, false positives {false_positives}; use at least 1 item and a rate in (0, 1)"
            )
        self.items, (self.hashes, load) = items, best_load(false_positives)
        blocks = math.ceil(items / load)
        if blocks >= 1 << 32:
            raise UserError(f"a Bloom filter of {items} items takes {blocks * 64 / 2**30:.0f} GiB; split the corpus into parts")
        self._bits = np.zeros((blocks, _WORDS), np.uint64)

    @property
    def nbytes(self) -> int:
        return self._bits.nbytes

    def places(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return where hashes go: int64 [n], their blocks; int64 [n, self.hashes], their bits in it."""
        blocks = ((hashes >> np.uint64(32)) * np.uint64(len(self._bits)) >> np.uint64(32)).astype(np.int64)
        bits = np.empty((len(hashes), self.hashes), np.int64)
        for i, salt in enumerate(randoms(3, self.hashes)):
            bits[:, i] = mix(hashes ^ salt) >> np.uint64(55)
        return blocks, bits

    def has(self, blocks: np.ndarray, bits: np.ndarray) -> np.ndarray:
        """Return bool [n]: whether the items at these `places` are in the set."""
        return self._get(blocks, bits).all(axis=1)

    def put(self, blocks: np.ndarray, bits: np.ndarray) -> None:
        """Add the items at these `places`."""
        masks = np.uint64(1) << (bits & 63).astype(np.uint64)
        np.bitwise_or.at(self._bits.reshape(-1), (blocks[:, None] * _WORDS + (bits >> 6)).reshape(-1), masks.reshape(-1))

    def add(self, hashes: np.ndarray) -> np.ndarray:
        """Add hashes, uint64 [n], one after another. Returns bool [n]: whether each was in the set before it was added."""
        blocks, bits = self.places(hashes)
        set_before = self._get(blocks, bits)
        # A bit is also set if an earlier item of this batch sets it, so batches of any size give the same answers.
        _, first, inverse = np.unique(blocks[:, None] * BLOCK_BITS + bits, return_index=True, return_inverse=True)
        setter = (first // self.hashes)[inverse.reshape(bits.shape)]
        self.put(blocks, bits)
        return (set_before | (setter < np.arange(len(hashes))[:, None])).all(axis=1)

    def _get(self, blocks: np.ndarray, bits: np.ndarray) -> np.ndarray:
        found = self._bits[blocks[:, None], bits >> 6] >> (bits & 63).astype(np.uint64)
        return (found & np.uint64(1)).astype(bool)

    def save(self, path: Path) -> None:
        with saving.replacing(Path(path), "wb") as file:
            np.savez(file, bits=self._bits, hashes=self.hashes, items=self.items)

    @classmethod
    def load(cls, path: Path) -> "BloomFilter":
        """Return the filter that `save` wrote. Raises: UserError: there is none."""
        self = cls.__new__(cls)
        try:
            with np.load(path) as saved:
                self._bits, self.hashes, self.items = saved["bits"], int(saved["hashes"]), int(saved["items"])
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{path}: no Bloom filter ({error}); make it again") from error
        return self


def false_positive_rate(load: float, hashes: int) -> float:
    """Return the probability that a new item is found, for `load` items a block on average: equation 3 of Putze et al.

    Σ_i Poisson(i; load) · (1 − (1 − 1/512)^(hashes·i))^hashes
    """
    most = int(load + 12 * math.sqrt(load) + 12)
    i = np.arange(most + 1)
    log_chance = i * math.log(load) - load - np.concatenate([[0.0], np.cumsum(np.log(i[1:]))])
    return float((np.exp(log_chance) * (1 - (1 - 1 / BLOCK_BITS) ** (hashes * i)) ** hashes).sum())


def best_load(false_positives: float) -> tuple[int, float]:
    """Return the number of hashes that lets a block hold most items at this rate of false positives, and that many items."""
    best = (1, 0.0)
    for hashes in range(1, MOST_HASHES + 1):
        low, high = 1e-9, float(BLOCK_BITS)
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if false_positive_rate(middle, hashes) <= false_positives else (low, middle)
        best = max(best, (hashes, low), key=lambda one: one[1])
    return best


def cut_seen(
    texts: Sequence[str],
    seen: BloomFilter,
    *,
    n: int = NGRAM,
    overlap: float = OVERLAP,
    separator: str | None = "\n",
    learn: bool = True,
) -> tuple[list[str], dict[str, np.ndarray]]:
    """Remove the paragraphs of which more than `overlap` of the word n-grams are in the filter; the others are added to it.

    Documents are a stream: the result depends on their order, but not on the size of batches. A paragraph of fewer than n
    words is one n-gram. Punctuation is no word, unlike in BFF. Blank paragraphs stay, unless they end up at the ends of a
    changed text.

    Args:
      separator: between paragraphs; None: a document is one paragraph. learn: False: add nothing.
    Returns:
      The texts, and columns: bloom_paragraphs, bloom_characters: int64, removed. bloom_overlap: float64, the share of a
      document's n-grams that were in the filter.
    """
    left, columns, begin = list(texts), [], 0
    while begin < len(texts):
        end, size = begin, 0
        while end < len(texts) and (end == begin or size + len(texts[end]) <= _BLOCK_CHARACTERS):
            size += len(texts[end])
            end += 1
        left[begin:end], found = _cut_block(texts[begin:end], seen, n, overlap, separator, learn)
        columns.append(found)
        begin = end
    cuts, characters, known, grams = np.concatenate(columns or [np.zeros((0, 4), np.int64)]).T
    share = np.divide(known, grams, out=np.zeros(len(texts)), where=grams > 0)
    return left, {"bloom_paragraphs": cuts, "bloom_characters": characters, "bloom_overlap": share}


def _cut_block(texts, seen, n, overlap, separator, learn) -> tuple[list[str], np.ndarray]:
    """Do the work of `cut_seen`. Returns int64 [texts, 4]: paragraphs and characters removed, n-grams known, n-grams."""
    split = [[text] if separator is None else text.split(separator) for text in texts]
    paragraphs = [part for parts in split for part in parts]
    text = np.repeat(np.arange(len(texts)), [len(parts) for parts in split])
    grams, offsets = shingles(words(paragraphs), n)
    known, removed = _remove(seen, grams, offsets, overlap, learn)
    lengths = np.array([len(part) for part in paragraphs], np.int64)
    counts = [removed, lengths * removed, known, np.diff(offsets)]
    columns = np.stack([np.bincount(text, count, len(texts)).astype(np.int64) for count in counts], axis=1)
    stops, left = np.cumsum([len(parts) for parts in split]), list(texts)
    for i in np.flatnonzero(columns[:, 0]):
        stays = ~removed[stops[i] - len(split[i]) : stops[i]]
        left[i] = (separator or "").join(part for part, stay in zip(split[i], stays) if stay).strip()
    return left, columns


def _remove(
    seen: BloomFilter, grams: np.ndarray, offsets: np.ndarray, overlap: float, learn: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return for each paragraph how many of its n-grams are known, and whether that is too many. Add the others to the filter.

    A paragraph is compared with the filter and the earlier paragraphs that stay. What stays is found in rounds: a paragraph is
    decided if it makes no difference whether the undecided ones before it stay. The first undecided one always is.
    """
    counts = np.diff(offsets)
    owner = np.repeat(np.arange(len(counts)), counts)
    blocks, bits = seen.places(grams)
    before = seen._get(blocks, bits)
    if not learn:
        known = np.bincount(owner, before.all(axis=1), len(counts)).astype(np.int64)
        return known, known > overlap * counts
    ids, bit = np.unique(blocks[:, None] * BLOCK_BITS + bits, return_inverse=True)
    bit = bit.reshape(bits.shape)

    def setters(gram: np.ndarray) -> np.ndarray:
        """Return for each bit the first paragraph that sets it by one of these n-grams."""
        first = np.full(len(ids), len(counts))
        np.minimum.at(first, bit[gram].reshape(-1), np.repeat(owner[gram], seen.hashes))
        return first

    def count(gram: np.ndarray, setter: np.ndarray) -> np.ndarray:
        """Return for each paragraph how many of these n-grams have all bits set before it."""
        found = (before[gram] | (setter[bit[gram]] < owner[gram, None])).all(axis=1)
        return np.bincount(owner[gram], found, len(counts)).astype(np.int64)

    every = np.arange(len(grams))
    stays, undecided, certain = counts == 0, counts > 0, np.full(len(ids), len(counts))
    while undecided.any():
        open_ = every[undecided[owner]]
        goes = undecided & (count(open_, certain) > overlap * counts)
        stay = undecided & (count(open_, np.minimum(certain, setters(open_))) <= overlap * counts)
        stays, undecided = stays | stay, undecided & ~goes & ~stay
        certain = np.minimum(certain, setters(every[stay[owner]]))
    seen.put(blocks[stays[owner]], bits[stays[owner]])
    return count(every, certain), ~stays
