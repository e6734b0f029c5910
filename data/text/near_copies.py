"""Find documents that share much of their text with one of a fixed set.

A document is lowercased, stripped of whitespace, and represented by the set of its 32-byte substrings (shingles). The number
of shared shingles divided by the number of shingles of one document is Broder's containment. It is estimated from a sample of
shingles, the same in every document: those whose hash is in a fixed 1/8 of the range. Documents under 512 bytes are too short
for a sample; two of them are compared by all their shingles.

Sources: Manber, "Finding similar files in a large file system" (1994) and Broder, "On the resemblance and
containment of documents" (1997), for sampling by the value of the hash; Schleimer, Wilkerson and Aiken,
"Winnowing" (2003), for whitespace and case; Dietzfelbinger et al., "A reliable randomized algorithm for the
closest-pair problem" (1997), for sampling by the high bits of a multiplicative hash.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np

SHINGLE_BYTES = 32
MULTIPLIER = 0x9E3779B97F4A7C15  # odd, with bits everywhere: 2^64 over the golden ratio
SAMPLED_BELOW = 1 << 61  # 1/8 of the 64-bit hashes
SHORT_BYTES = 512
# Fewer shared sampled shingles are no evidence: one quoted line can have as many.
MIN_SAMPLED_HITS = 4
# A shingle in more than 10 documents and in more than 1 % of them is boilerplate, such as a licence header. Without
# this rule, a validation file that is only such a header would remove every file with it from training.
COMMON_DOCUMENTS = 10
COMMON_FRACTION = 0.01

_BATCH_BYTES = 1 << 17  # so that the hashes of a batch (8 bytes per byte of text) stay in the cache
_BATCH_DOCUMENTS = 1 << 10
_KEEP = bytes(range(256)).lower()
_WHITESPACE = b" \t\n\r\v\f"

Item = TypeVar("Item")


def normalise(text: str | bytes) -> bytes:
    """Return UTF-8 with lower-case ASCII letters and no ASCII whitespace, so line breaks and indentation do not matter."""
    return (text.encode() if isinstance(text, str) else text).translate(_KEEP, _WHITESPACE)


def batched(
    items: Iterable[Item], size_of: Callable[[Item], int], most_bytes: int, most: int = sys.maxsize
) -> Iterator[list[Item]]:
    """Yield batches of at least `most_bytes` or of `most` items; the last one may be smaller."""
    batch, size = [], 0
    for item in items:
        batch.append(item)
        size += size_of(item)
        if size >= most_bytes or len(batch) >= most:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def rolling_hashes(data: bytes) -> np.ndarray:
    """Return polynomial hashes of every 32-byte substring, computed by doubling the substring length five times.

    h_1(i) = data[i];  h_2k(i) = h_k(i)·p^k + h_k(i+k)  (mod 2^64)

    So h_32(i) = Σ_j data[i+j]·p^(31-j), with five multiplications per byte instead of 32.

    Returns: uint64 [len(data) - 31], empty if `data` is shorter than a shingle.
    """
    if len(data) < SHINGLE_BYTES:
        return np.empty(0, np.uint64)
    hashes = np.frombuffer(data, np.uint8).astype(np.uint64)
    length = 1
    while length < SHINGLE_BYTES:
        power = np.uint64(pow(MULTIPLIER, length, 1 << 64))
        following = hashes[length:]
        hashes = hashes[:-length] * power
        hashes += following
        length *= 2
    return hashes


@dataclasses.dataclass(frozen=True)
class Shingles:
    """The distinct shingles of some documents: pairs (hash, document), sorted by hash, then by document.

    Documents of at least `SHORT_BYTES` have only their sampled shingles, shorter ones have all.
    """

    hash: np.ndarray  # uint64 [pairs]
    document: np.ndarray  # int64 [pairs], an index
    short: np.ndarray  # bool [documents]


def shingles(normalised: Sequence[bytes]) -> Shingles:
    """Compute the shingles of normalised documents, vectorised over all of them."""
    lengths = np.array([len(data) for data in normalised], np.int64)
    ends = np.cumsum(lengths)
    short = lengths < SHORT_BYTES
    hashes = rolling_hashes(b"".join(normalised))
    chosen = hashes < SAMPLED_BELOW
    if short.any():
        chosen |= np.repeat(short, lengths)[: len(hashes)]
    at = np.flatnonzero(chosen)
    document = np.searchsorted(ends, at, side="right")
    inside = at + SHINGLE_BYTES <= ends[document]  # not across a boundary of documents
    hash, document = hashes[at[inside]], document[inside]
    order = np.argsort(hash)  # several times faster than a stable or two-key sort; only ties are sorted again
    hash, document = hash[order], document[order]
    equal = np.zeros(len(hash) + 1, bool)
    equal[1:-1] = hash[1:] == hash[:-1]
    tied = np.flatnonzero(equal[1:] | equal[:-1])
    document[tied] = document[tied[np.lexsort((document[tied], hash[tied]))]]
    new = np.ones(len(hash), bool)
    new[1:] = (hash[1:] != hash[:-1]) | (document[1:] != document[:-1])
    return Shingles(hash[new], document[new], short)


class NearCopies:
    """An index of a fixed set of documents that finds near copies of them.

    Shingles that are common in the background documents are ignored in both documents of a pair.

    Memory: about 28 bytes per shingle: 3.5 bytes per byte of a long document, 28 per byte of a short one.
    """

    def __init__(self, normalised: Sequence[bytes], background: Sequence[bytes], threshold: float):
        found = shingles(normalised)
        self.threshold = threshold
        self.short = found.short
        # Distinct and sorted. document[start[r]] … document[start[r+1]-1] contain the hash of row r.
        self.hash, start = np.unique(found.hash, return_index=True)
        self.start = np.append(start, len(found.hash))
        self.document = found.document.astype(np.int32)
        seen, counts = np.unique(shingles(background).hash, return_counts=True)
        most = max(COMMON_DOCUMENTS, int(COMMON_FRACTION * len(background)))
        self.common = np.isin(self.hash, seen[counts > most])
        self.size = _sizes(found.hash, found.document, np.repeat(~self.common, np.diff(self.start)), len(normalised))

    def find_all(self, documents: Sequence[bytes]) -> np.ndarray:
        """Apply `find` to UTF-8 documents that are not normalised, in batches whose hashes stay in the cache."""
        batches = batched(documents, len, _BATCH_BYTES, _BATCH_DOCUMENTS)
        near = [self.find([normalise(data) for data in batch]) for batch in batches]
        return np.concatenate([np.zeros(0, bool), *near])

    def find(self, normalised: Sequence[bytes]) -> np.ndarray:
        """Return bool [documents]: whether each is a near copy of a document of the set.

        Let t and v be the sets of shingles of two documents without common ones. t is a near copy of v iff
        |t ∩ v| ≥ threshold · min(|t|, |v|): most of t is in v, or most of v is in t.
        """
        near = np.zeros(len(normalised), bool)
        if not len(self.hash):
            return near
        found = shingles(normalised)
        row = np.minimum(np.searchsorted(self.hash, found.hash), len(self.hash) - 1)
        hit = self.hash[row] == found.hash
        telling = ~(hit & self.common[row])
        size = _sizes(found.hash, found.document, telling, len(normalised))

        # Pairs (t, v): one for each hit and each document of the set with this shingle.
        hit = np.flatnonzero(hit & telling)
        row = row[hit]
        counts = self.start[row + 1] - self.start[row]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        v = self.document[np.repeat(self.start[row], counts) + within].astype(np.int64)
        t = np.repeat(found.document[hit], counts)
        sampled = np.repeat(found.hash[hit] < SAMPLED_BELOW, counts)

        pair, inverse = np.unique(t * len(self.short) + v, return_inverse=True)
        t, v = np.divmod(pair, len(self.short))
        hits = np.stack([np.bincount(inverse, sampled, len(pair)), np.bincount(inverse, minlength=len(pair))])
        # Two short documents are compared by all shingles, other pairs by the sampled ones.
        full = (found.short[t] & self.short[v]).astype(np.int64)
        hits = hits[full, np.arange(len(pair))]
        least = np.minimum(size[full, t], self.size[full, v])
        near[t[hits >= np.maximum(self.threshold * least, np.where(full, 1, MIN_SAMPLED_HITS))]] = True
        return near


def _sizes(hash: np.ndarray, document: np.ndarray, counted: np.ndarray, documents: int) -> np.ndarray:
    """Return int64 [2, documents]: each document's number of sampled shingles, and of all stored shingles."""
    sampled = counted & (hash < SAMPLED_BELOW)
    return np.stack([np.bincount(document[of], minlength=documents) for of in (sampled, counted)])
