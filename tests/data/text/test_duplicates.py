"""The table of digests is a set, whatever the sizes of batches and tables."""

import numpy as np
import pytest

from data.text.duplicates import Digests


@pytest.mark.parametrize("batch, slots", [(1, 4), (7, 1), (1000, 16), (4096, 1 << 10)])
def test_a_table_is_a_set(batch, slots):
    random = np.random.default_rng(batch)
    every = random.integers(0, 1 << 64, (6000, 2), np.uint64)
    every[:10] = [[0, 0], [0, 1], [1, 0], [1 << 63, 0], [2**64 - 1, 2**64 - 1]] * 2
    stream = every[random.integers(0, len(every), 9000)] if batch > 1 else every[random.integers(0, 300, 900)]
    table, seen, expected, found = Digests(slots), set(), [], []
    for begin in range(0, len(stream), batch):
        found += table.add(stream[begin : begin + batch]).tolist()
        for high, low in stream[begin : begin + batch].tolist():
            key = (high, low | 1)  # the last bit of a digest is not kept
            expected.append(key in seen)
            seen.add(key)
    assert found == expected and any(found) and not all(found)
    assert len(table) == len(seen)


def test_digests_that_begin_alike_find_their_places():
    alike = np.stack([np.full(500, 2**64 - 1, np.uint64), np.arange(1, 1001, 2, dtype=np.uint64)], axis=1)
    table = Digests(16)
    assert not table.add(alike).any() and table.add(alike[::-1]).all() and len(table) == 500


def test_digests_take_26_bytes_each():
    random, table = np.random.default_rng(0), Digests()
    for _ in range(60):
        table.add(random.integers(0, 1 << 64, (5000, 2), np.uint64))
        if len(table) > 50_000:
            assert table.nbytes <= 26 * len(table)
    assert len(table) == 300_000
