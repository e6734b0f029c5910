"""Finds documents that share much of their text with one of a fixed set.

A document is lowercased, stripped of whitespace, and seen as the set of its 32-byte substrings (shingles). Two documents'
shared shingles, over either one's number of shingles, is Broder's containment. It is estimated from the same sample of shingles
in every document: those whose hash falls in a fixed 1/8 of the hash's range. Documents under 512 bytes have too few for a
sample and are compared with one another in full.

Sources: Manber, "Finding similar files in a large file system" (1994) and Broder, "On the resemblance and
containment of documents" (1997), for sampling by the value of the hash; Schleimer, Wilkerson and Aiken,
"Winnowing" (2003), for whitespace and case; Dietzfelbinger et al., "A reliable randomized algorithm for the
closest-pair problem" (1997), for why the high bits of a multiplicative hash are the ones to sample by.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

SHINGLE_BYTES = 32
MULTIPLIER = 0x9E3779B97F4A7C15  # odd, with bits everywhere: 2^64 over the golden ratio
SAMPLED_BELOW = 1 << 61  # 1/8 of the 64-bit hashes
SHORT_BYTES = 512
# Fewer sampled shingles than this in common prove nothing: one quoted line has as many.
MIN_SAMPLED_HITS = 4
# A shingle in more than 10 documents and in more than 1 % of them is a licence header or the like. Without this
# rule, one file in validation that is nothing but such a header throws every file with it out of training.
COMMON_DOCUMENTS = 10
COMMON_FRACTION = 0.01

_BATCH_BYTES = 1 << 17  # the hashes of a batch, 8 bytes for each byte of text, stay in the cache
_BATCH_DOCUMENTS = 1 << 10
_KEEP = bytes(range(256)).lower()
_WHITESPACE = b" \t\n\r\v\f"


def normalise(text: str | bytes) -> bytes:
    """UTF-8 with ASCII letters in lower case and without ASCII whitespace: blind to wrapping and indentation."""
    return (text.encode() if isinstance(text, str) else text).translate(_KEEP, _WHITESPACE)


def rolling_hashes(data: bytes) -> np.ndarray:
    """Polynomial hashes of every 32-byte substring, by doubling the length of the substring five times.

    h_1(i) = data[i];  h_2k(i) = h_k(i)·p^k + h_k(i+k)  (mod 2^64)

    so that h_32(i) = Σ_j data[i+j]·p^(31-j): five multiplications a byte in place of 32.

    Returns:
        uint64 [len(data) - 31], empty if `data` is shorter than a shingle.
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

    A document of at least `SHORT_BYTES` has only its sampled shingles here, a shorter one has all of its own.
    """

    hash: np.ndarray  # uint64 [pairs]
    document: np.ndarray  # int64 [pairs], an index
    short: np.ndarray  # bool [documents]


def shingles(normalised: Sequence[bytes]) -> Shingles:
    """Fingerprints documents that went through `normalise`, all in one array program."""
    lengths = np.array([len(data) for data in normalised], np.int64)
    ends = np.cumsum(lengths)
    short = lengths < SHORT_BYTES
    hashes = rolling_hashes(b"".join(normalised))
    chosen = hashes < SAMPLED_BELOW
    if short.any():
        chosen |= np.repeat(short, lengths)[: len(hashes)]
    at = np.flatnonzero(chosen)
    document = np.searchsorted(ends, at, side="right")
    inside = at + SHINGLE_BYTES <= ends[document]  # not across the seam between two documents
    hash, document = hashes[at[inside]], document[inside]
    order = np.argsort(hash)  # several times faster than a stable or a two-key sort, so only ties get that
    hash, document = hash[order], document[order]
    equal = np.zeros(len(hash) + 1, bool)
    equal[1:-1] = hash[1:] == hash[:-1]
    tied = np.flatnonzero(equal[1:] | equal[:-1])
    document[tied] = document[tied[np.lexsort((document[tied], hash[tied]))]]
    new = np.ones(len(hash), bool)
    new[1:] = (hash[1:] != hash[:-1]) | (document[1:] != document[:-1])
    return Shingles(hash[new], document[new], short)


class NearCopies:
    """Finds documents that share much of their text with one of a fixed set of documents.

    Shingles that are common in the background documents count for nothing, in either document of a pair.

    Memory: about 28 bytes a shingle: 3.5 bytes for each byte of a long document, 28 of a short one.
    """

    def __init__(self, normalised: Sequence[bytes], background: Sequence[bytes], threshold: float):
        found = shingles(normalised)
        self.threshold = threshold
        self.short = found.short
        # Distinct and sorted; the hash of row r is in documents start[r] … start[r+1]-1.
        self.hash, start = np.unique(found.hash, return_index=True)
        self.start = np.append(start, len(found.hash))
        self.document = found.document.astype(np.int32)
        seen, counts = np.unique(shingles(background).hash, return_counts=True)
        most = max(COMMON_DOCUMENTS, int(COMMON_FRACTION * len(background)))
        self.common = np.isin(self.hash, seen[counts > most])
        self.size = _sizes(found.hash, found.document, np.repeat(~self.common, np.diff(self.start)), len(normalised))

    def find_all(self, documents: Sequence[bytes]) -> np.ndarray:
        """`find` of any number of documents as they are, in UTF-8: in batches whose hashes stay in the cache."""
        near = np.zeros(len(documents), bool)
        begin = 0
        while begin < len(documents):
            end, size = begin, 0
            while end < len(documents) and size < _BATCH_BYTES and end - begin < _BATCH_DOCUMENTS:
                size += len(documents[end])
                end += 1
            near[begin:end] = self.find([normalise(data) for data in documents[begin:end]])
            begin = end
        return near

    def find(self, normalised: Sequence[bytes]) -> np.ndarray:
        """bool [documents]: which are near copies of one of the set.

        With t and v two documents' sets of shingles less the common ones, t is a near copy of v iff
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

        # Every hit, once for each document of the set that has the shingle, as the pair (t, v).
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
        # Two short documents are compared by all of their shingles, any others by the sampled ones.
        full = (found.short[t] & self.short[v]).astype(np.int64)
        hits = hits[full, np.arange(len(pair))]
        least = np.minimum(size[full, t], self.size[full, v])
        near[t[hits >= np.maximum(self.threshold * least, np.where(full, 1, MIN_SAMPLED_HITS))]] = True
        return near


def _sizes(hash: np.ndarray, document: np.ndarray, counted: np.ndarray, documents: int) -> np.ndarray:
    """int64 [2, documents]: each document's number of sampled shingles, and of all that are held."""
    sampled = counted & (hash < SAMPLED_BELOW)
    return np.stack([np.bincount(document[of], minlength=documents) for of in (sampled, counted)])
