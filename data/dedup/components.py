"""Connected components of a graph that is larger than memory, by alternating large-star and small-star (Kiveris et al. 2014).

Edges are sorted on disk. Both operations keep the components of the graph. They are repeated until each component is a star
around its smallest node, after O(log² n) rounds; a handful in practice.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from data.dedup.tables import Sorter, distinct, first_of_groups


def components(edges: Iterable[np.ndarray], folder: Path) -> Iterator[np.ndarray]:
    """Yield uint64 [n, 2]: (node, smallest node of its component), sorted, for every node that is not the smallest of its own.

    Args:
      edges: blocks of uint64 [n, 2], two different nodes each, in any order and direction.
      folder: for temporary files of 32 bytes an edge.
    Memory: that of a `Sorter`, whatever the size of the graph and of its components.
    """
    both = Sorter(folder, 2)
    for block in edges:
        both.add(block)
        both.add(block[:, ::-1])
    while True:
        with both, Sorter(folder, 2) as smaller:
            changed = _large_star(distinct(both.sorted()), smaller)
            both, stars = Sorter(folder, 2), Sorter(folder, 2)
            changed += _small_star(distinct(smaller.sorted()), both, stars)
        if not changed:
            both.close()
            with stars:
                yield from distinct(stars.sorted())
            return
        stars.close()


def _large_star(rows: Iterable[np.ndarray], into: Sorter) -> int:
    """Connect the larger neighbours of each node with its smallest neighbour, or itself. Returns how many edges changed.

    rows: every edge in both directions, sorted. into: gets edges (larger, smaller).
    """
    changed, carried = 0, None
    for block in rows:
        node, neighbour = block.T
        _, least = first_of_groups(node, np.minimum(node, neighbour), carried)
        carried = node[-1], least[-1]
        larger = neighbour > node
        into.add(np.stack([neighbour, least], axis=1)[larger])
        changed += int((least < node)[larger].sum())
    return changed


def _small_star(rows: Iterable[np.ndarray], both: Sorter, stars: Sorter) -> int:
    """Connect each node and its smaller neighbours with the smallest of them. Returns how many edges changed.

    rows: edges (larger, smaller), sorted. both: gets edges in both directions; stars: gets them as (larger, smaller).
    """
    changed, carried = 0, None
    for block in rows:
        node, neighbour = block.T
        begins, least = first_of_groups(node, neighbour, carried)
        carried = node[-1], least[-1]
        edges = np.stack([np.where(begins, node, neighbour), least], axis=1)
        both.add(edges)
        both.add(edges[:, ::-1])
        stars.add(edges)
        changed += int((~begins).sum())
    return changed
