"""One pass over the text decides which split each document is in and what must stay out of training.

A validation loss means something only if the model has not seen the validation text. So exact copies are
dropped everywhere, and near copies of validation documents are dropped from training.

*Near copies.* A document is lowercased, stripped of whitespace, and seen as the set of its 32-byte substrings
(shingles). Two documents' shared shingles, over either one's number of shingles, is Broder's containment. It is
estimated from the same sample of shingles in every document: those whose hash falls in a fixed 1/8 of the
hash's range. Documents under 512 bytes have too few for a sample and are compared with one another in full.

Sources: Manber, "Finding similar files in a large file system" (1994) and Broder, "On the resemblance and
containment of documents" (1997), for sampling by the value of the hash; Schleimer, Wilkerson and Aiken,
"Winnowing" (2003), for whitespace and case; Dietzfelbinger et al., "A reliable randomized algorithm for the
closest-pair problem" (1997), for why the high bits of a multiplicative hash are the ones to sample by.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import xxhash

from data.sources import Document, Source
from lm.errors import UserError

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
BACKGROUND_BYTES = 4_000_000  # of documents taken at random, that tell what is common

_BATCH_BYTES = 1 << 17  # the hashes of a batch, 8 bytes for each byte of text, stay in the cache
_BATCH_DOCUMENTS = 1 << 10
_KEEP = bytes(range(256)).lower()
_WHITESPACE = b" \t\n\r\v\f"


@dataclasses.dataclass
class SourceStats:
    """Counts of one source: documents = train + valid + exact_duplicates + near_copies."""

    documents: int = 0
    bytes: int = 0
    train_documents: int = 0
    train_bytes: int = 0
    valid_documents: int = 0
    valid_bytes: int = 0
    exact_duplicates: int = 0
    near_copies: int = 0


# Fingerprints.


def normalise(text: str) -> bytes:
    """UTF-8 with ASCII letters in lower case and without ASCII whitespace: blind to wrapping and indentation."""
    return text.encode().translate(_KEEP, _WHITESPACE)


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


# The survey.


def survey(
    sources: Sequence[Source],
    *,
    valid_fraction: float,
    seed: int,
    max_valid_bytes: int | None = None,
    near_copy_threshold: float = 0.5,
    progress: Callable[[str, int], None] | None = None,
) -> Survey:
    """Reads all sources once and splits them.

    A document is for validation iff hash(seed, split key) < valid_fraction·2^64, so its split does not depend on
    what else there is. Only when that gives too much (`max_valid_bytes`) or nothing at all is the bound another:
    the highest that keeps within `max_valid_bytes`, and at the least the smallest hash of all.

    Args:
        sources: with names of their own.
        valid_fraction: in [0, 1); 0 for no validation.
        seed: of the hash.
        max_valid_bytes: UTF-8 bytes of validation text, over all sources.
        near_copy_threshold: the share of shingles that makes a near copy, see `NearCopies.find`.
        progress: called now and then with a source's name and the bytes read from it.

    Memory: about 100 bytes a document (a set of 128-bit hashes, for exact copies) until this returns, then one;
    and the validation text, with its fingerprints.

    Raises:
        UserError: no document, too few to split, or `valid_fraction` out of range; or what reading raises.
    """
    if not 0 <= valid_fraction < 1:
        raise UserError(f"data.valid_fraction={valid_fraction} is not in [0, 1); a common choice is 0.01")
    if len({source.name for source in sources}) < len(sources):
        raise UserError(f"two data sources share a name: {' '.join(sorted(s.name for s in sources))}; rename one")

    stats = {source.name: SourceStats() for source in sources}
    passes = {source.name: _Pass() for source in sources}
    chosen = _Lowest(int(valid_fraction * 2**64), max_valid_bytes)
    background = _Lowest(1 << 64, BACKGROUND_BYTES)  # of the highest hashes: as random, and not for validation
    seen: set[int] = set()
    low, high = 1 << 64, -1
    for source in sources:
        count, record = stats[source.name], passes[source.name]
        for data, hash, document in _hashed(source, seed):
            duplicate = record.add(data, seen)
            count.documents += 1
            count.bytes += len(data)
            count.exact_duplicates += duplicate
            if not duplicate:
                low, high = min(low, hash), max(high, hash)
                for lowest, rank in ((chosen, hash), (background, (1 << 64) - 1 - hash)):
                    if valid_fraction and lowest.wants(rank):
                        lowest.add(rank, len(data), normalise(document.text))
            if progress and count.documents % 1024 == 0:
                progress(source.name, count.bytes)
        if progress:
            progress(source.name, count.bytes)

    total = sum(count.documents for count in stats.values())
    if not total:
        raise UserError("data.input holds no document with any text; name files that have some")
    if valid_fraction and low == high:
        raise UserError(
            f"data.input holds {total} document(s), all of one kind, which cannot be split in training and "
            "validation; set data.valid_fraction=0 or give more documents"
        )
    if high <= chosen.highest:
        raise UserError(f"data.valid_fraction={valid_fraction} leaves no document for training; lower it")
    copies = NearCopies(chosen.texts(), background.texts(), near_copy_threshold)
    return Survey(stats, passes, seed, chosen.highest, copies)


def digest_of(sources: Sequence[Source], progress: Callable[[str, int], None] | None = None) -> str:
    """Hex digest of all documents of all sources, in order: `Survey.digest` without a survey."""
    passes = {source.name: _Pass() for source in sources}
    for source in sources:
        seen = 0
        for data, _, _ in _hashed(source, 0):
            passes[source.name].add(data)
            seen += len(data)
            if progress:
                progress(source.name, seen)
    return _joined(passes)


def _joined(passes: dict[str, _Pass]) -> str:
    return xxhash.xxh3_128_hexdigest(b"".join(name.encode() + one.digest.digest() for name, one in passes.items()))


class Survey:
    """What `survey` found. `stats` (source name -> SourceStats) is complete when `documents` has run to the end."""

    def __init__(self, stats, passes, seed, highest, copies):
        self.stats: dict[str, SourceStats] = stats
        self._passes: dict[str, _Pass] = passes
        self._seed: int = seed
        self._highest: int = highest  # documents with a hash up to here are for validation; -1: none are
        self._copies: NearCopies = copies

    @property
    def digest(self) -> str:
        """Hex digest of all documents of all sources, in order."""
        return _joined(self._passes)

    def documents(self, source: Source) -> Iterator[tuple[Document, str]]:
        """Reads a source again and yields what is kept, in order, each with its split, "train" or "valid".

        Raises:
            UserError: the source is not what it was when it was surveyed.
        """
        stats, before, now = self.stats[source.name], self._passes[source.name], _Pass()
        stats.train_documents = stats.train_bytes = stats.valid_documents = stats.valid_bytes = stats.near_copies = 0
        batch: list[tuple[Document, str, int]] = []
        waiting = 0
        for data, hash, document in _hashed(source, self._seed):
            at = len(now.duplicate)
            now.add(data)
            if at < len(before.duplicate) and before.duplicate[at]:
                continue
            batch.append((document, "valid" if hash <= self._highest else "train", len(data)))
            waiting += len(data)
            if waiting >= _BATCH_BYTES or len(batch) >= _BATCH_DOCUMENTS:
                yield from self._kept(batch, stats)
                batch, waiting = [], 0
        yield from self._kept(batch, stats)
        if len(now.duplicate) != len(before.duplicate) or now.digest.digest() != before.digest.digest():
            raise UserError(f"source {source.name!r} changed while it was read; leave its files alone and start again")

    def _kept(self, batch: list[tuple[Document, str, int]], stats: SourceStats) -> Iterator[tuple[Document, str]]:
        training = [i for i, (_, split, _) in enumerate(batch) if split == "train"]
        near = set()
        if self._highest >= 0 and training:
            found = self._copies.find([normalise(batch[i][0].text) for i in training])
            near = {training[i] for i in np.flatnonzero(found)}
        for i, (document, split, size) in enumerate(batch):
            if i in near:
                stats.near_copies += 1
                continue
            if split == "train":
                stats.train_documents += 1
                stats.train_bytes += size
            else:
                stats.valid_documents += 1
                stats.valid_bytes += size
            yield document, split


def _hashed(source: Source, seed: int) -> Iterator[tuple[bytes, int, Document]]:
    """(UTF-8, hash of the split key, document) of every document that has any text."""
    for document in source.read():
        if document.text and not document.text.isspace():
            data = document.text.encode()
            key = data if document.split_key is None else document.split_key.encode()
            yield data, xxhash.xxh3_64_intdigest(key, seed=seed % (1 << 64)), document


class _Pass:
    """What a pass over one source saw: a byte for each document, and a digest of them all."""

    def __init__(self):
        self.duplicate = bytearray()
        self.digest = xxhash.xxh3_64()

    def add(self, data: bytes, seen: set[int] | None = None) -> bool:
        """Notes a document, and whether its text is in `seen`, where it then is."""
        digest = xxhash.xxh3_128_digest(data)
        self.digest.update(digest)
        duplicate = False
        if seen is not None:
            number = int.from_bytes(digest)
            duplicate = number in seen
            seen.add(number)
        self.duplicate.append(duplicate)
        return duplicate


class _Lowest:
    """The documents with the lowest hashes, as many as are below `limit` and fit in `max_bytes`; at least one hash.

    Whether a hash is in the end among them depends only on the bytes that have lower hashes or its own. These
    only grow, so what has once been pushed out never belongs, and memory stays at what fits.
    """

    def __init__(self, limit: int, max_bytes: int | None):
        self._first_limit = self._limit = limit
        self._max_bytes = max_bytes
        self._groups: dict[int, tuple[int, list[bytes]]] = {}  # hash -> bytes, normalised texts
        self._heap: list[int] = []  # of negative hashes: the highest comes first
        self._bytes = 0

    @property
    def highest(self) -> int:
        """The highest hash held; -1 if none is."""
        return -self._heap[0] if self._heap else -1

    def texts(self) -> list[bytes]:
        """The normalised texts held."""
        return [text for _, texts in self._groups.values() for text in texts]

    def wants(self, hash: int) -> bool:
        return hash < self._limit or hash <= self.highest or not self._groups

    def add(self, hash: int, size: int, normalised: bytes) -> None:
        if hash not in self._groups:
            heapq.heappush(self._heap, -hash)
        held, texts = self._groups.get(hash, (0, []))
        texts.append(normalised)
        self._groups[hash] = held + size, texts
        self._bytes += size
        while len(self._groups) > 1 and (
            self.highest >= self._first_limit or (self._max_bytes is not None and self._bytes > self._max_bytes)
        ):
            self._limit = min(self._limit, self.highest)
            self._bytes -= self._groups.pop(-heapq.heappop(self._heap))[0]
