"""Clusters of duplicates in a corpus that is larger than memory: connect pairs, choose the document that stays, count."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data.dedup import tables

# Least size of each bin: 2, 3, 4 to 7, 8 to 15, …
EDGES = np.array([2, 3, *(1 << k for k in range(2, 63))], np.int64)
EXACT, NEAR = 2, 1  # the column of the tables of data/dedup/exact.py and near.py that tells clusters apart


def components(edges: Iterable[np.ndarray], folder: Path) -> Iterator[np.ndarray]:
    """Yield uint64 [n, 2]: (node, smallest node of its component), sorted, for every node that is not the smallest of its own.

    Alternates large-star and small-star (Kiveris et al. 2014). Both keep the components of the graph, and are repeated until
    each component is a star around its smallest node, after O(log² n) rounds; a handful in practice.

    Args:
      edges: blocks of uint64 [n, 2], two different nodes each, in any order and direction.
      folder: for temporary files of 32 bytes an edge.
    Memory: that of a `Sorter`, whatever the size of the graph and of its components.
    """
    both = tables.Sorter(folder, 2)
    for block in edges:
        both.add(block)
        both.add(block[:, ::-1])
    while True:
        with both, tables.Sorter(folder, 2) as smaller:
            changed = _large_star(tables.distinct(both.sorted()), smaller)
            both, stars = tables.Sorter(folder, 2), tables.Sorter(folder, 2)
            changed += _small_star(tables.distinct(smaller.sorted()), both, stars)
        if not changed:
            both.close()
            with stars:
                yield from tables.distinct(stars.sorted())
            return
        stars.close()


def _large_star(rows: Iterable[np.ndarray], into: tables.Sorter) -> int:
    """Connect the larger neighbours of each node with its smallest neighbour, or itself. Returns how many edges changed.

    rows: every edge in both directions, sorted. into: gets edges (larger, smaller).
    """
    changed, carried = 0, None
    for block in rows:
        node, neighbour = block.T
        _, least = tables.first_of_groups(node, np.minimum(node, neighbour), carried)
        carried = node[-1], least[-1]
        larger = neighbour > node
        into.add(np.stack([neighbour, least], axis=1)[larger])
        changed += int((least < node)[larger].sum())
    return changed


def _small_star(rows: Iterable[np.ndarray], both: tables.Sorter, stars: tables.Sorter) -> int:
    """Connect each node and its smaller neighbours with the smallest of them. Returns how many edges changed.

    rows: edges (larger, smaller), sorted. both: gets edges in both directions; stars: gets them as (larger, smaller).
    """
    changed, carried = 0, None
    for block in rows:
        node, neighbour = block.T
        begins, least = tables.first_of_groups(node, neighbour, carried)
        carried = node[-1], least[-1]
        edges = np.stack([np.where(begins, node, neighbour), least], axis=1)
        both.add(edges)
        both.add(edges[:, ::-1])
        stars.add(edges)
        changed += int((~begins).sum())
    return changed


def best_of_clusters(members: Iterable[np.ndarray], folder: Path) -> Iterator[np.ndarray]:
    """Yield uint64 [n, 3]: (number, cluster, number of the kept document), sorted, for each member.

    The best rank stays; of equal ranks, the lowest number.

    members: blocks of uint64 [n, 3]: (cluster, rank, number); members may be repeated.
    """
    with tables.sorting(folder, 3, 3) as (by_cluster, by_number):
        for block in members:
            by_cluster.add(block)
        carried = None
        for block in tables.distinct(by_cluster.sorted()):
            cluster, _, number = block.T
            _, kept = tables.first_of_groups(cluster, number, carried)
            carried = cluster[-1], kept[-1]
            by_number.add(np.stack([number, cluster, kept], axis=1))
        yield from by_number.sorted()


def summary(table: Path, cluster: int, most: int = 10, members: int = 5) -> dict[str, Any]:
    """Return what a table of duplicates says about clusters. A cluster is a document that is kept and the others.

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
