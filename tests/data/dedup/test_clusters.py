"""Clusters on disk equal union-find and a count in memory, over blocks and sorted runs of any size."""

import collections
import random

import numpy as np
import pytest

from data.dedup import clusters, exact, tables
from data.dedup.clusters import components
from data.dedup.pieces import Unit
from tests.data.dedup.corpus import plain_components

DRAWS = random.Random(0)
GRAPHS = {
    "none": [],
    "pairs": [(2 * i + 1, 2 * i) for i in range(50)],
    "chain": DRAWS.sample([(i, i + 1) for i in range(200)], 200),
    "star": [(499, i) for i in range(400)],
    "sparse": [tuple(DRAWS.sample(range(300), 2)) for _ in range(200)],
    "dense": [tuple(DRAWS.sample(range(60), 2)) for _ in range(500)],
    "large numbers": [(2**64 - 1 - i, 2**63 + i // 3) for i in range(100)],
}


@pytest.mark.parametrize("name", GRAPHS)
def test_components_equal_union_find(tmp_path, monkeypatch, name):
    edges = GRAPHS[name]
    monkeypatch.setattr(tables, "BLOCK_ROWS", 7)
    expected = sorted([node, low] for node, low in plain_components(edges).items() if node != low)
    for most in (23, 1 << 20):
        monkeypatch.setattr(tables, "BUFFER_ROWS", most)
        blocks = [np.array(edges[at : at + 10], np.uint64) for at in range(0, len(edges), 10)]
        found = np.concatenate([np.empty((0, 2), np.uint64), *components(blocks, tmp_path)])
        assert found.tolist() == expected
    assert not list(tmp_path.iterdir())


def plain(rows: list[tuple[int, int, int]], cluster: int) -> dict[int, int]:
    """Return the size of each cluster: the twin of `summary`, in memory."""
    members = collections.defaultdict(set)
    for row in rows:
        members[row[cluster]] |= {row[0], row[2]}
    return {key: len(some) for key, some in members.items()}


def near_table(draw: np.random.Generator, documents: int, groups: int) -> list[tuple[int, int, int]]:
    """Rows (number, cluster, kept); in some clusters the document that is kept has no row, as in a table of exact.find."""
    numbers = draw.choice(documents * 10, documents, replace=False) + (1 << 32)
    some = collections.defaultdict(list)
    for number, group in zip(numbers.tolist(), (groups * draw.random(documents) ** 3).astype(int).tolist()):
        some[group].append(number)
    rows = []
    for group, members in some.items():
        without = draw.random() < 0.2
        if without or len(members) > 1:
            kept = group if without else int(draw.choice(members))
            rows += [(number, group if without else min(members), kept) for number in members]
    return sorted(rows)


def written(path, rows):
    tables.write(path, [np.array(rows, np.uint64).reshape(-1, 3)])
    return path


@pytest.mark.parametrize("documents, groups", [(1, 1), (50, 5), (600, 150), (600, 3)])
def test_sizes_are_those_of_a_count_in_memory(documents, groups, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "BUFFER_ROWS", 41)  # many sorted runs, in small blocks
    monkeypatch.setattr(tables, "BLOCK_ROWS", 13)
    rows = near_table(np.random.default_rng(documents + groups), documents, groups)
    found = clusters.summary(written(tmp_path / "table", rows), clusters.NEAR, most=4, members=3)
    sizes = plain(rows, 1)
    assert (found["clusters"], found["documents"]) == (len(sizes), sum(sizes.values()))
    assert found["removed"] == sum(row[0] != row[2] for row in rows)
    for least, most, count, inside in found["sizes"]:
        some = [size for size in sizes.values() if least <= size <= (most or size)]
        assert (len(some), sum(some)) == (count, inside) and some
    assert sum(row[2] for row in found["sizes"]) == found["clusters"]
    order = sorted(sizes, key=lambda key: (-sizes[key], key))[:4]
    assert [one["size"] for one in found["largest"]] == [sizes[key] for key in order]
    for key, one in zip(order, found["largest"]):
        members = [row for row in rows if row[1] == key]
        assert one["kept"] == members[0][2]
        assert one["removed"] == [row[0] for row in members if row[0] != row[2]][:3]
    assert not [path for path in tmp_path.iterdir() if path.name != "table"]


def test_exact_duplicates(tmp_path):
    texts = ["one two", "three", "one two", "four", "one two", "three", ""]
    with exact.new_part(tmp_path / "part", Unit("document")) as part:
        part.add(texts, range(10, 17))
    exact.find([tmp_path / "part"], tmp_path / "table")
    found = clusters.summary(tmp_path / "table", clusters.EXACT)
    assert {key: found[key] for key in ("clusters", "documents", "removed")} == {"clusters": 2, "documents": 5, "removed": 3}
    assert found["sizes"] == [[2, 2, 1, 2], [3, 3, 1, 3]]
    assert found["largest"] == [{"size": 3, "kept": 10, "removed": [12, 14]}, {"size": 2, "kept": 11, "removed": [15]}]


def test_no_duplicates(tmp_path):
    found = clusters.summary(written(tmp_path / "table", []), clusters.NEAR)
    assert found == {"clusters": 0, "documents": 0, "removed": 0, "sizes": [], "largest": []}
