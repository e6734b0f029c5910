"""The set of digests is a set, whatever the sizes of batches."""

import numpy as np
import pytest

from data.text.duplicates import Digests


@pytest.mark.parametrize("batch", [1, 7, 1000, 4096])
def test_a_set_of_digests_is_a_set(batch):
    random = np.random.default_rng(batch)
    every = random.integers(0, 1 << 64, (6000, 2), np.uint64)
    every[:10] = [[0, 0], [0, 1], [1, 0], [1 << 63, 0], [2**64 - 1, 2**64 - 1]] * 2
    stream = every[random.integers(0, len(every), 9000)] if batch > 1 else every[random.integers(0, 300, 900)]
    digests, seen, expected, found = Digests(), set(), [], []
    for begin in range(0, len(stream), batch):
        found += digests.add(stream[begin : begin + batch]).tolist()
        for key in map(tuple, stream[begin : begin + batch].tolist()):
            expected.append(key in seen)
            seen.add(key)
    assert found == expected and any(found) and not all(found)
    assert len(digests) == len(seen)


def test_digests_that_begin_alike_are_told_apart():
    alike = np.stack([np.full(500, 2**64 - 1, np.uint64), np.arange(0, 1000, 2, dtype=np.uint64)], axis=1)
    digests = Digests()
    assert not digests.add(alike).any() and digests.add(alike[::-1]).all() and len(digests) == 500
    assert not digests.add(alike[:0]).any()


def test_runs_halve_so_that_a_digest_is_merged_seldom():
    random, digests = np.random.default_rng(0), Digests()
    for _ in range(60):
        digests.add(random.integers(0, 1 << 64, (5000, 2), np.uint64))
        assert all(len(one) >= 2 * len(other) for one, other in zip(digests._runs, digests._runs[1:]))
    assert len(digests) == 300_000
