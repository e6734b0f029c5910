"""Find near duplicates in a corpus that is larger than memory: MinHash buckets, verified pairs, connected components.

1. `new_part` writes, for batches of documents, the bands of their signatures and their sets of shingles. Parts are independent.
2. `find` sorts the bands and pairs the documents of a bucket. It keeps the pairs whose sets of shingles have a Jaccard
   similarity of at least `threshold`, connects them, and writes one table of clusters.
3. `columns` looks documents up in that table.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

import numpy as np
import xxhash

from data.dedup import grams, minhash, tables
from data.dedup.clusters import best_of_clusters, components
from data.dedup.minhash import MinHash
from data.dedup.parts import check_numbers, check_settings, kept_instead, ranks, writing
from lm.errors import UserError

# Each distinct set of a bucket is paired with the first of the bucket and with as many before it. So buckets of up to
# NEIGHBOURS + 1 distinct sets give all their pairs, and a huge bucket of boilerplate gives a number that grows linearly.
NEIGHBOURS = 32
THRESHOLD = 0.5  # least Jaccard similarity of near duplicates: two thirds of the 5-grams of two texts of one length are shared
_PAIR_SHINGLES = 1 << 20  # compared at a time

_BANDS, _DOCUMENTS, _SETS = "bands.u64", "documents.u64", "sets.u64"
# Columns: bands (band's hash, set's hash, number); documents (number, first shingle, shingles, rank); sets (shingle).
_WIDTH = {_BANDS: 3, _DOCUMENTS: 4, _SETS: 1}


class Part:
    """Takes what `find` needs of documents. Make it with `new_part`."""

    def __init__(self, settings: MinHash, bands: tables.Sorter, documents: tables.Sorter, sets: BinaryIO):
        self._settings, self._bands, self._documents, self._sets, self._shingles = settings, bands, documents, sets, 0

    def add(self, texts: Sequence[str], numbers: Sequence[int], scores: Sequence[float] | None = None) -> None:
        """Add documents. A document without a word has no duplicates.

        Args:
          numbers: unique in the whole corpus; in [0, 2^61).
          scores: the highest stays of a cluster; None: the lowest number stays.
        """
        numbers, rank = check_numbers(numbers, len(texts)), ranks(scores, len(texts))
        shingles, offsets = grams.sets(*minhash.documents_shingles(texts, self._settings))
        full = np.flatnonzero(np.diff(offsets))
        begins, ends = offsets[full], offsets[full + 1]
        bands = minhash.band_hashes(minhash.signatures(shingles, offsets, self._settings)[full], self._settings)
        digest = [xxhash.xxh3_64_intdigest(shingles[b:e]) for b, e in zip(begins.tolist(), ends.tolist())]
        owner = np.stack([np.array(digest, np.uint64), numbers[full]], axis=1)
        self._bands.add(np.column_stack([bands.reshape(-1), np.repeat(owner, self._settings.bands, axis=0)]))
        first = (begins + self._shingles).astype(np.uint64)
        self._documents.add(np.stack([numbers[full], first, (ends - begins).astype(np.uint64), rank[full]], axis=1))
        self._sets.write(np.ascontiguousarray(shingles))
        self._shingles += len(shingles)


@contextlib.contextmanager
def new_part(folder: Path, settings: MinHash = minhash.MinHash()) -> Iterator[Part]:  # noqa: B008 (it is frozen)
    """Yield a Part, which is complete in `folder` at the end of the block.

    Disk: 8 bytes a distinct shingle (about 1.2 bytes a byte of English text) and 24 bytes a band and document.
    """
    with writing(folder, asdict(settings)) as temporary, (folder / _SETS).open("wb") as sets:
        with tables.sorting(temporary, _WIDTH[_BANDS], _WIDTH[_DOCUMENTS]) as (bands, documents):
            yield Part(settings, bands, documents, sets)
            tables.write(folder / _BANDS, bands.sorted())
            tables.write(folder / _DOCUMENTS, documents.sorted())


def find(parts: Sequence[Path], into: Path, *, threshold: float = THRESHOLD, pairs: Path | None = None) -> dict[str, int]:
    """Write the clusters of near duplicates: a table of uint64 [n, 3], sorted, for each document of `parts` with a duplicate.

    The columns are the document's number, its cluster (the lowest number in it) and the number of the document that is kept. A
    cluster may hold pairs below the threshold, which others connect.

    Args:
      parts: folders that `new_part` wrote, in any order. into: the table. Temporary files are made beside it.
      threshold: least Jaccard similarity of the sets of shingles of a pair, in [0, 1]. With 0 no pair is verified:
        documents that share a bucket are duplicates, as in datatrove.
      pairs: also write the verified pairs to this table, uint64 [n, 2]: (higher number, lower number).
    Returns:
      counts: documents, candidates (pairs), verified (pairs), clustered (documents), removed (documents).
    Memory: that of four Sorters and of _PAIR_SHINGLES shingles, about 0.3 GB, whatever the number of documents.
    Raises: UserError: a part is missing or incomplete, parts have different settings, a number occurs twice, or the threshold
      is not in [0, 1].
    """
    if not 0 <= threshold <= 1:
        raise UserError(f"near-duplicate threshold={threshold} is not in [0, 1]; 0 verifies no pair")
    folders, into = [*map(Path, parts)], Path(into)
    check_settings(folders, "near")
    with tables.scratch(into) as temporary, tables.sorting(temporary, 5, 2, 2) as (documents, candidates, verified):
        for i, folder in enumerate(folders):
            for block in tables.blocks(tables.read(folder / _DOCUMENTS, _WIDTH[_DOCUMENTS])):
                documents.add(np.column_stack([block, np.full(len(block), i, np.uint64)]))
        counts = {"documents": tables.write(temporary / "documents", _unique(documents.sorted()))}
        table = tables.read(temporary / "documents", 5)
        for block in _bucket_pairs(tables.merged([folder / _BANDS for folder in folders], _WIDTH[_BANDS], temporary)):
            candidates.add(block)
        sets = [tables.read(folder / _SETS, 1)[:, 0] for folder in folders]
        counts["candidates"] = counts["verified"] = 0
        for block in tables.distinct(candidates.sorted()):
            similar = block[jaccard(block, table, sets, threshold) >= threshold] if threshold else block
            verified.add(similar)
            counts["candidates"] += len(block)
            counts["verified"] += len(similar)
        tables.write(temporary / "edges", verified.sorted())
        edges = tables.read(temporary / "edges", 2)
        members = _members(components(tables.blocks(edges), temporary), table)
        tables.write(into, _count(best_of_clusters(members, temporary), counts))
        if pairs is not None:
            tables.write(Path(pairs), tables.blocks(edges))
    return counts


def columns(numbers: Sequence[int], clusters: Path) -> dict[str, np.ndarray]:
    """Return what `find` decided about documents: columns of one value a document.

    near_duplicate_cluster: int64, the cluster's number; a document alone is its own cluster.
    near_duplicate_of: int64, the document that is kept in its place, which may be itself.
    near_duplicate_keep: bool.
    """
    numbers = check_numbers(numbers, len(numbers))
    cluster, kept = (kept_instead(numbers, clusters, column) for column in (1, 2))
    return {
        "near_duplicate_cluster": cluster,
        "near_duplicate_of": kept,
        "near_duplicate_keep": kept == numbers.astype(np.int64),
    }


def jaccard(pairs: np.ndarray, documents: np.ndarray, sets: Sequence[np.ndarray], least: float = 0.0) -> np.ndarray:
    """Return float64 [pairs]: |A ∩ B| / |A ∪ B| of two documents' sets of shingles.

    Pairs that must be below `least`, because one set is so much larger, are not compared and get 0.

    Args:
      pairs: uint64 [pairs, 2], numbers. documents: rows (number, first shingle, shingles, rank, index in `sets`), sorted.
      sets: for each part its shingles, uint64, in ascending order within a document.
    """
    (left, right) = (documents[tables.find(documents, numbers)[0]] for numbers in pairs.T)
    sizes = np.stack([left[:, 2], right[:, 2]]).astype(np.int64)
    similar = np.zeros(len(pairs))
    todo = np.flatnonzero(sizes.min(axis=0) >= least * sizes.max(axis=0))
    total = np.cumsum(sizes.sum(axis=0)[todo])
    begin = 0
    while begin < len(todo):
        before = total[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(total, before + _PAIR_SHINGLES, side="right")))
        some = todo[begin:end]
        lengths = sizes.sum(axis=0)[some]
        stops = np.cumsum(lengths)
        joined = np.empty(stops[-1], np.uint64)
        for stop, length, a, b in zip(stops.tolist(), lengths.tolist(), left[some].tolist(), right[some].tolist()):
            part = joined[stop - length : stop]
            for at, row in ((0, a), (a[2], b)):
                part[at : at + row[2]] = sets[row[4]][row[1] : row[1] + row[2]]
            part.sort()
        twice = np.zeros(len(joined), np.int64)
        twice[1:] = joined[1:] == joined[:-1]
        twice[stops[:-1]] = 0
        both = np.add.reduceat(twice, stops - lengths)
        similar[some] = both / (lengths - both)
        begin = end
    return similar


def _bucket_pairs(bands: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield pairs (higher number, lower number) of documents that share a bucket, repeated ones included.

    A document with the same set as the one before it is paired with the first document of that set. All other pairs are of
    such first documents.

    bands: rows (band's hash, set's hash, number), sorted.
    """
    kept = np.empty((0, 3), np.uint64)  # first documents of the sets of the last bucket: its first, and its last NEIGHBOURS
    for block in bands:
        block = np.concatenate([kept, block])
        new = np.ones(len(block), bool)
        new[1:] = (block[1:, :2] != block[:-1, :2]).any(axis=1)
        again = np.flatnonzero(~new)
        sets = np.flatnonzero(new)
        heads = block[sets]
        yield _edges(block[again, 2], heads[np.searchsorted(sets, again, side="right") - 1, 2])
        begins = np.ones(len(heads), bool)
        begins[1:] = heads[1:, 0] != heads[:-1, 0]
        first = np.maximum.accumulate(np.where(begins, np.arange(len(heads)), 0))
        later = np.flatnonzero(~begins & (np.arange(len(heads)) >= len(kept)))
        yield _edges(heads[later, 2], heads[first[later], 2])
        for distance in range(1, NEIGHBOURS + 1):
            later = later[later - distance > first[later]]
            if not len(later):
                break
            yield _edges(heads[later, 2], heads[later - distance, 2])
        last = int(first[-1])
        kept = heads[[last, *range(max(last + 1, len(heads) - NEIGHBOURS), len(heads))]]


def _edges(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.stack([np.maximum(one, other), np.minimum(one, other)], axis=1)


def _members(stars: Iterable[np.ndarray], table: np.ndarray) -> Iterator[np.ndarray]:
    """Yield (cluster, rank, number) of the nodes of stars (number, cluster), and of a star's centre with each of them."""
    for block in stars:
        for number in block.T:
            yield np.stack([block[:, 1], table[tables.find(table, number)[0], 3], number], axis=1)


def _unique(documents: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield sorted rows. Raises: UserError: two have the same number."""
    carried = None
    for block in documents:
        number = block[:, 0]
        begins, _ = tables.first_of_groups(number, number, carried)
        if not begins.all():
            raise UserError(f"two documents have the number {number[~begins][0]}; numbers must be unique over all parts")
        carried = number[-1], number[-1]
        yield block


def _count(clusters: Iterable[np.ndarray], counts: dict[str, int]) -> Iterator[np.ndarray]:
    """Yield the rows, and count them."""
    counts["clustered"] = counts["removed"] = 0
    for block in clusters:
        counts["clustered"] += len(block)
        counts["removed"] += int((block[:, 0] != block[:, 2]).sum())
        yield block
