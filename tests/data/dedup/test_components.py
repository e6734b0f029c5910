"""Components on disk equal union-find in memory, also for long chains and one huge star."""

import random

import numpy as np
import pytest

from data.dedup import tables
from data.dedup.components import components
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
