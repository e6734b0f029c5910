"""Assign each document to a split in one pass over the text, and find documents to exclude from training.

A validation loss is only meaningful if the model has not seen the validation text. So exact duplicates are dropped
everywhere, and near copies of validation documents (data/text/near_copies.py) are dropped from training.
"""

import collections
import dataclasses
import heapq
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import xxhash

from data.sources.source import Document, Source
from data.text.near_copies import NearCopies, batched, normalise
from data.text.sentencepiece_tokenizer import Sample
from data.text.tokenizer import Tokenizer
from data.text.workers import ordered
from lm.errors import UserError

BACKGROUND_BYTES = 4_000_000  # of random documents, which define common shingles

NEAR_COPY = 0.5  # least share of common shingles of a near copy, see `NearCopies.find`
_READ_BYTES = 1 << 19  # of documents in a batch
_READ_DOCUMENTS = 1 << 12


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


def survey(
    sources: Sequence[Source],
    *,
    valid_fraction: float,
    seed: int,
    max_valid_bytes: int | None = None,
    sample_bytes: int = 0,
    progress: Callable[[str, int], None] | None = None,
) -> "Survey":
    """Read all sources once and split them.

    A document is for validation iff hash(seed, split key) < valid_fraction·2^64, so its split does not depend on other
    documents. The bound is lower if this would exceed `max_valid_bytes`: then it is the highest that fits. If there
    would be no validation document, the smallest hash is taken.

    Args:
        sources: must have distinct names. valid_fraction: in [0, 1); 0 for no validation. seed: of the hash, and of the sample.
        max_valid_bytes: limit on the UTF-8 bytes of validation text, over all sources.
        sample_bytes: UTF-8 bytes of training text in `Survey.sample`.
        progress: called regularly with a source's name and the bytes read from it.

    Memory: 17 bytes per document, 49 while the digests are merged, and one byte after this function returns;
    also the validation text with its fingerprints, and the sample.

    Raises: UserError: no document, too few to split, or `valid_fraction` out of range; also errors of reading.
    """
    if not 0 <= valid_fraction < 1:
        raise UserError(f"data.valid_fraction={valid_fraction} is not in [0, 1); a common choice is 0.01")
    if len({source.name for source in sources}) < len(sources):
        raise UserError(f"two data sources share a name: {' '.join(sorted(s.name for s in sources))}; rename one")

    stats = {source.name: SourceStats() for source in sources}
    passes = {source.name: _Pass() for source in sources}
    chosen = _Lowest(int(valid_fraction * 2**64), max_valid_bytes)
    background = _Lowest(1 << 64, BACKGROUND_BYTES)  # documents of the highest hashes: random, and never for validation
    # The validation documents are known only at the end, so the sample has extra room for their share.
    room = sample_bytes * valid_fraction / (1 - valid_fraction)
    sample = Sample(sample_bytes + int(room if max_valid_bytes is None else min(room, max_valid_bytes)), seed)
    seen = Digests()
    low, high = 1 << 64, -1
    for source in sources:
        count, record = stats[source.name], passes[source.name]
        for batch in _batches(source, seed):
            duplicates = record.add([data for data, _, _ in batch], seen)
            for (data, hash, document), duplicate in zip(batch, duplicates.tolist()):
                count.documents += 1
                count.bytes += len(data)
                count.exact_duplicates += duplicate
                if duplicate:
                    continue
                low, high = min(low, hash), max(high, hash)
                for lowest, rank in ((chosen, hash), (background, (1 << 64) - 1 - hash)):
                    if valid_fraction and lowest.wants(rank):
                        lowest.add(rank, len(data), normalise(document.text))
                if sample_bytes:
                    sample.add(document.text, hash)
            if progress:
                progress(source.name, count.bytes)

    total = sum(count.documents for count in stats.values())
    if not total:
        raise UserError("data.input holds no document with any text; name files that have some")
    if valid_fraction and low == high:
        raise UserError(
            f"data.input holds {total} document(s) with one split key, which cannot be split into training and "
            "validation; set data.valid_fraction=0 or give more documents"
        )
    if high <= chosen.highest:
        raise UserError(f"data.valid_fraction={valid_fraction} leaves no document for training; lower it")
    copies = NearCopies(chosen.texts(), background.texts(), NEAR_COPY) if chosen.highest >= 0 else None
    chunks = sample.chunks(sample_bytes, chosen.highest) if sample_bytes else []
    return Survey(stats, passes, seed, chosen.highest, copies, chunks)


def digest_of(sources: Sequence[Source], progress: Callable[[str, int], None] | None = None) -> str:
    """Return a hex digest of all documents of all sources, in order: `Survey.digest` without a survey."""
    passes = {source.name: _Pass() for source in sources}
    for source in sources:
        seen = 0
        for batch in _batches(source, 0):
            passes[source.name].add([data for data, _, _ in batch])
            seen += sum(len(data) for data, _, _ in batch)
            if progress:
                progress(source.name, seen)
    return _joined(passes)


def _joined(passes: dict[str, "_Pass"]) -> str:
    return xxhash.xxh3_128_hexdigest(b"".join(name.encode() + one.digest.digest() for name, one in passes.items()))


@dataclasses.dataclass
class Survey:
    """The result of `survey`. `stats` (source name -> SourceStats) is complete after a full pass of `documents`."""

    stats: dict[str, SourceStats]
    _passes: dict[str, "_Pass"]
    _seed: int
    _highest: int  # documents with a hash up to this one are for validation; -1: none
    _copies: NearCopies | None  # None: no validation
    _chunks: list[str]

    @property
    def digest(self) -> str:
        """Hex digest of all documents of all sources, in order."""
        return _joined(self._passes)

    def sample(self) -> list[str]:
        """Return the sample of training text in chunks of a few thousand characters, without near copies of validation."""
        near = _near(self._copies, [chunk.encode() for chunk in self._chunks], np.ones(len(self._chunks), bool))
        return [chunk for chunk, is_near in zip(self._chunks, near) if not is_near]

    def documents(self, source: Source) -> Iterator[tuple[Document, str]]:
        """Read a source again and yield (document, split) of the kept documents, in order; split is "train" or "valid".

        Raises: UserError: the source changed since the survey.
        """
        for batch, training in self._again(source):
            datas = [data for data, _, _ in batch]
            kept = ~_near(self._copies, datas, training)
            self._count(source, datas, training, kept)
            for at in np.flatnonzero(kept):
                yield batch[at][2], "train" if training[at] else "valid"

    def encoded(
        self, source: Source, tokenizer: Tokenizer, processes: int | None = None
    ) -> Iterator[tuple[str, np.ndarray, int]]:
        """Yield (split, ids (unsigned [n]), their UTF-8 bytes) of the documents that `documents` would yield.

        `processes` workers (default: one per core) find near copies and encode; see `data.text.workers.ordered`.
        """
        waiting = collections.deque()

        def items() -> Iterator[tuple[list[bytes], np.ndarray]]:
            for batch, training in self._again(source):
                waiting.append(([data for data, _, _ in batch], training))
                yield waiting[-1]

        for kept, ids, ends, sizes in ordered(_encode, (self._copies, tokenizer), items(), processes=processes, warm=True):
            datas, training = waiting.popleft()
            self._count(source, datas, training, kept)
            begin = 0
            for train, end, size in zip(training[kept].tolist(), ends.tolist(), sizes.tolist(), strict=True):
                yield "train" if train else "valid", ids[begin:end], size
                begin = end

    def _again(self, source: Source) -> Iterator[tuple[list[tuple[bytes, int, Document]], np.ndarray]]:
        """Yield batches of a source without exact duplicates, with bool [documents]: which are for training."""
        stats, before, now = self.stats[source.name], self._passes[source.name], _Pass()
        stats.train_documents = stats.train_bytes = stats.valid_documents = stats.valid_bytes = stats.near_copies = 0
        for batch in _batches(source, self._seed):
            at = len(now.duplicate)
            now.add([data for data, _, _ in batch])
            flags = before.duplicate[at : at + len(batch)].ljust(len(batch), b"\0")
            batch = [item for item, duplicate in zip(batch, flags, strict=True) if not duplicate]
            yield batch, np.asarray([hash > self._highest for _, hash, _ in batch], bool)
        if len(now.duplicate) != len(before.duplicate) or now.digest.digest() != before.digest.digest():
            raise UserError(f"source {source.name!r} changed while it was read; leave its files alone and start again")

    def _count(self, source: Source, datas: Sequence[bytes], training: np.ndarray, kept: np.ndarray) -> None:
        stats, sizes = self.stats[source.name], np.asarray([len(data) for data in datas], np.int64)
        stats.near_copies += int((~kept).sum())
        stats.train_documents += int((kept & training).sum())
        stats.train_bytes += int(sizes[kept & training].sum())
        stats.valid_documents += int((~training).sum())
        stats.valid_bytes += int(sizes[~training].sum())


def _near(copies: NearCopies | None, datas: Sequence[bytes], training: np.ndarray) -> np.ndarray:
    """Return bool [documents]: which training documents are near copies of validation documents."""
    near = np.zeros(len(datas), bool)
    if copies is not None and training.any():
        near[training] = copies.find_all([datas[at] for at in np.flatnonzero(training)])
    return near


def _encode(
    state: tuple[NearCopies | None, Tokenizer], item: tuple[list[bytes], np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return (mask of kept documents, their concatenated ids, the end of each in these, the bytes of each)."""
    (copies, tokenizer), (datas, training) = state, item
    kept = ~_near(copies, datas, training)
    many = tokenizer.encode_many([datas[at].decode() for at in np.flatnonzero(kept)], threads=1)
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    sizes = np.asarray([tokenizer.bytes_per_token[ids].sum() for ids in many], np.int64)
    ids = np.concatenate([np.zeros(0, dtype), *many]).astype(dtype)
    return kept, ids, np.cumsum([len(ids) for ids in many], dtype=np.int64), sizes


def _batches(source: Source, seed: int) -> Iterator[list[tuple[bytes, int, Document]]]:
    """Yield batches of (UTF-8, hash of the split key, document) of every document that is not blank."""

    def hashed(document: Document) -> tuple[bytes, int, Document]:
        data = document.text.encode()
        key = data if document.split_key is None else document.split_key.encode()
        return data, xxhash.xxh3_64_intdigest(key, seed=seed % (1 << 64)), document

    documents = (document for document in source.read() if document.text and not document.text.isspace())
    return batched(map(hashed, documents), lambda item: len(item[0]), _READ_BYTES, _READ_DOCUMENTS)


class Digests:
    """A set of 128-bit digests in sorted runs, each at least twice as long as the next one (log-structured merge).

    Source: O'Neil et al. 1996.

    Memory: 16 bytes per digest, 48 while the two longest runs are merged. A Python set of the same integers takes 80 to 150.
    """

    def __init__(self):
        self._runs: list[np.ndarray] = []

    def __len__(self) -> int:
        return sum(map(len, self._runs))

    def add(self, digests: np.ndarray) -> np.ndarray:
        """Add digests, uint64 [n, 2]. Returns bool [n]: whether each was already in the set or occurs earlier in the batch."""
        digests = np.ascontiguousarray(digests).view("S16").reshape(-1)  # strings of bytes can be sorted
        new, first = np.unique(digests, return_index=True)
        known = np.zeros(len(new), bool)
        for run in self._runs:
            known |= run[np.minimum(np.searchsorted(run, new), len(run) - 1)] == new
        again = np.ones(len(digests), bool)
        again[first[~known]] = False
        if not known.all():
            self._runs.append(new[~known])
        while len(self._runs) > 1 and len(self._runs[-2]) < 2 * len(self._runs[-1]):
            both = np.concatenate([self._runs.pop(), self._runs.pop()])
            both.sort(kind="stable")  # merges runs that are sorted
            self._runs.append(both)
        return again


class _Pass:
    """The record of a pass over one source: one duplicate flag per document, and a digest of all documents."""

    def __init__(self):
        self.duplicate = bytearray()
        self.digest = xxhash.xxh3_64()

    def add(self, batch: Sequence[bytes], seen: Digests | None = None) -> np.ndarray:
        """Record documents and add them to `seen`. Returns bool [documents]: which were already in `seen`."""
        digests = b"".join([xxhash.xxh3_128_digest(data) for data in batch])
        self.digest.update(digests)
        duplicate = np.zeros(len(batch), bool)
        if seen is not None:
            duplicate = seen.add(np.frombuffer(digests, np.uint64).reshape(-1, 2))
        self.duplicate += duplicate.tobytes()
        return duplicate


class _Lowest:
    """The documents with the lowest hashes that are below `limit` and fit in `max_bytes`; at least one hash.

    Whether a hash belongs to the result depends only on the bytes of lower and equal hashes. This sum only grows, so a
    removed hash never has to return, and memory is bounded by `max_bytes`.
    """

    def __init__(self, limit: int, max_bytes: int | None):
        self._first_limit = self._limit = limit
        self._max_bytes = max_bytes
        self._groups: dict[int, tuple[int, list[bytes]]] = {}  # hash -> bytes, normalised texts
        self._heap: list[int] = []  # of negative hashes: the highest comes first
        self._bytes = 0

    @property
    def highest(self) -> int:
        """The highest hash held; -1 if there is none."""
        return -self._heap[0] if self._heap else -1

    def texts(self) -> list[bytes]:
        """Return the normalised texts held."""
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
