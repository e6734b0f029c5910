"""Count clusters of duplicates from the table of a corpus that is larger than memory: how many, of which sizes, the largest."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data.dedup import tables

# Least size of each bin: 2, 3, 4 to 7, 8 to 15, …
EDGES = np.array([2, 3, *(1 << k for k in range(2, 63))], np.int64)
EXACT, NEAR = 2, 1  # the column of the tables of data/dedup/exact.py and near.py that tells clusters apart


def summary(table: Path, cluster: int, most: int = 10, members: int = 5) -> dict[str, Any]:
    """Return what a table of duplicates says about clusters. A cluster is a document that is kept and the others.

    A document that is kept from an older corpus counts, other old ones do not.

    Args:
      table: uint64 [n, 3], (number, …, number of the document that is kept), sorted, as `exact.find` and `near.find` write it.
      cluster: EXACT or NEAR.
      most: clusters listed as the largest. Of equal sizes, the lower number of a cluster is first.
      members: documents listed of each of them, the lowest numbers.
    Returns: {"clusters", "documents", "removed" (documents), "sizes": [[least, most, clusters, documents]] of the sizes that
      occur, "largest": [{"size", "kept", "removed": numbers of some}]}.
    Memory: that of a `Sorter`.
    """
    rows = tables.read(table, 3)
    count, documents, removed = np.zeros(len(EDGES), np.int64), np.zeros(len(EDGES), np.int64), 0
    top = np.empty((0, 2), np.int64)  # (cluster, size)
    with tables.scratch(table.with_name(f"{table.name}.clusters")) as temporary, tables.Sorter(temporary, 2) as by_cluster:
        for block in tables.blocks(rows):
            gone = block[:, 0] != block[:, 2]
            removed += int(gone.sum())
            by_cluster.add(np.stack([block[:, cluster], gone.astype(np.uint64)], axis=1))
        for some in _sizes(by_cluster.sorted()):
            bins = np.searchsorted(EDGES, some[:, 1], side="right") - 1
            count += np.bincount(bins, minlength=len(EDGES))
            np.add.at(documents, bins, some[:, 1])
            top = np.concatenate([top, some])
            top = top[np.lexsort((top[:, 0], -top[:, 1]))[:most]]
    ends = [*(EDGES[1:] - 1).tolist(), None]
    return {
        "clusters": int(count.sum()),
        "documents": int(documents.sum()),
        "removed": removed,
        "sizes": [[int(EDGES[k]), ends[k], int(count[k]), int(documents[k])] for k in np.flatnonzero(count)],
        "largest": _members(rows, cluster, top, members),
    }


def _sizes(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield int64 [n, 2]: (cluster, size).

    blocks: rows (cluster, whether the document goes), sorted. If all that are there go, the kept one is not and counts too.
    """
    last = np.empty((0, 2), np.int64)  # the cluster at the end of a block may go on in the next one
    for block in blocks:
        key, gone = block.astype(np.int64).T
        begins = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))
        size = np.diff(np.append(begins, len(key)))
        goes_on = bool(len(last)) and last[0, 0] == key[0]
        size += np.where((np.arange(len(begins)) == 0) & goes_on, 0, gone[begins])
        found = np.stack([key[begins], size], axis=1)
        if goes_on:
            found[0, 1] += last[0, 1]
        elif len(last):
            yield last
        yield found[:-1]
        last = found[-1:]
    yield last


def _members(rows: np.ndarray, cluster: int, top: np.ndarray, members: int) -> list[dict[str, Any]]:
    """Return the clusters of `top`, with the number of the kept document and the lowest ones of those that go."""
    found = [{"size": size, "kept": key, "removed": []} for key, size in top.tolist()]
    for block in tables.blocks(rows) if found else ():
        lacking = [(key, one) for key, one in zip(top[:, 0], found) if len(one["removed"]) < min(members, one["size"] - 1)]
        for key, one in lacking:
            some = block[block[:, cluster] == np.uint64(key)]
            if len(some):
                one["kept"] = int(some[0, 2])
                gone = some[some[:, 0] != some[:, 2], 0]
                one["removed"] += gone[: members - len(one["removed"])].tolist()
        if not lacking:
            break
    return found
