"""MinHash signatures of documents and the hashes of their bands (Broder 1997; Leskovec, Mining of Massive Datasets, ch. 3).

Two documents with the Jaccard similarity J of their sets of shingles agree in one place of the signature with probability J,
and in a whole band of r places with J^r. With b bands they meet in a bucket with probability 1 − (1 − J^r)^b.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from data.dedup.grams import shingles
from data.filters.word_hashes import characters, mix, randoms, words
from lm.errors import UserError

_BLOCK = 1 << 15  # shingles hashed at a time, so that they stay in the cache


@dataclasses.dataclass(frozen=True)
class MinHash:
    """Settings. With the defaults P(J = .8) is 1, P(J = .63) .992, P(J = .5) .836 and P(J = .1) .003.

    Editing 5 % of the words leaves .95^5 = .77 of the 5-grams, which is J = .77 / (2 − .77) = .63.
    """

    n: int = 5  # size of a shingle, in words or characters
    bands: int = 28
    rows: int = 4
    units: str = "words"  # or "characters"
    seed: int = 1

    def __post_init__(self):
        if self.units not in ("words", "characters"):
            raise UserError(f"MinHash units={self.units!r}; use 'words' or 'characters'")
        for name in ("n", "bands", "rows"):
            if getattr(self, name) < 1:
                raise UserError(f"MinHash {name}={getattr(self, name)}; use 1 or more")

    @property
    def hashes(self) -> int:
        return self.bands * self.rows


# Penedo et al. 2024; datatrove 0.10.1, which verifies no pair: P(J = .8) = .924, P(J = .63) = .30, P(J = .5) = .053.
FINEWEB = MinHash(bands=14, rows=8)


def signatures(hashes: np.ndarray, offsets: np.ndarray, settings: MinHash) -> np.ndarray:
    """Return uint32 [documents, hashes]: minima of the hash functions over a document's shingles; all ones without a shingle.

    h_k(x) = (a_k·x + b_k mod 2^64) >> 32 with a_k odd, Dietzfelbinger's multiply-shift (1996). Shingles x are 64-bit hashes.

    Args:
      hashes: uint64, shingles of all documents; repeated ones do not matter. offsets: int64 [documents + 1].
    """
    scale, shift = randoms(settings.seed, 2 * settings.hashes).reshape(2, -1)
    scale |= np.uint64(1)
    lengths = np.diff(offsets)
    full = np.flatnonzero(lengths)
    least = np.full((len(lengths), settings.hashes), 0xFFFFFFFF, np.uint32)
    begin = 0
    while begin < len(full):
        # As many whole documents as fit, at least one.
        first = offsets[full[begin]]
        end = max(begin + 1, int(np.searchsorted(offsets[full + 1], first + _BLOCK, side="right")))
        block = hashes[first : offsets[full[end - 1] + 1]]
        starts, value = offsets[full[begin:end]] - first, np.empty_like(block)
        found = np.empty((settings.hashes, end - begin), np.uint64)
        for k in range(settings.hashes):
            np.multiply(block, scale[k], out=value)
            value += shift[k]
            np.minimum.reduceat(value, starts, out=found[k])
        least[full[begin:end]] = (found >> np.uint64(32)).T
        begin = end
    return least


def band_hashes(signature: np.ndarray, settings: MinHash) -> np.ndarray:
    """Return uint64 [documents, bands]: a hash of each band's number and its rows of the signature."""
    places = signature.reshape(len(signature), settings.bands, settings.rows).astype(np.uint64)
    band = np.broadcast_to(randoms(settings.seed + 1, settings.bands), places.shape[:2])
    for row in range(settings.rows):
        band = mix(band ^ places[:, :, row])
    return band


def documents_shingles(texts: Sequence[str], settings: MinHash) -> tuple[np.ndarray, np.ndarray]:
    """Return the shingles of texts, uint64, and int64 [documents + 1], where those of each begin."""
    return shingles((words if settings.units == "words" else characters)(texts), settings.n)
