"""Tables that are sorted on disk equal tables that are sorted in memory."""

import numpy as np
import pytest

from data.dedup import tables


def table(count: int, width: int, values: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, values, (count, width), np.uint64)


def joined(blocks, width: int) -> list:
    return np.concatenate([np.empty((0, width), np.uint64), *blocks]).tolist()


@pytest.mark.parametrize(
    "count, width, values", [(0, 2, 5), (1, 1, 3), (700, 1, 9), (900, 3, 4), (999, 2, 1 << 63), (50, 3, 1)]
)
def test_a_sorter_sorts(tmp_path, monkeypatch, count, width, values):
    monkeypatch.setattr(tables, "BLOCK_ROWS", 5)
    monkeypatch.setattr(tables, "FAN_IN", 3)
    given = table(count, width, values, 1)
    other = table(40, width, values, 2)
    tables.write(tmp_path / "other", [tables.sort(other)])
    for most in (7, 64, 10_000):
        with tables.Sorter(tmp_path, width, buffer_rows=most) as sorter:
            for begin in range(0, count, 33):
                sorter.add(given[begin : begin + 33])
            assert joined(sorter.sorted(), width) == sorted(given.tolist())
        with tables.Sorter(tmp_path, width, buffer_rows=most) as sorter:
            sorter.add(given)
            assert joined(sorter.sorted([tmp_path / "other"] * 4), width) == sorted(given.tolist() + other.tolist() * 4)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]  # nothing temporary is left, and the other file is


def test_what_a_killed_process_left_is_deleted(tmp_path):
    left = tmp_path / ".table.sorting" / "run"
    left.parent.mkdir()
    left.touch()
    with tables.scratch(tmp_path / "table") as folder:
        assert folder.is_dir() and not left.exists()
    assert not list(tmp_path.iterdir())


def test_distinct_rows():
    given = tables.sort(table(300, 2, 6, 0))
    blocks = [given[:1], given[1:1], given[1:120], given[120:]]
    assert joined(tables.distinct(blocks), 2) == sorted(map(list, set(map(tuple, given.tolist()))))


def test_rows_are_found(tmp_path):
    given = tables.sort(table(500, 2, 300, 0))
    tables.write(tmp_path / "t", tables.blocks(given, 64))
    on_disk = tables.read(tmp_path / "t", 2)
    keys = np.arange(310, dtype=np.uint64)
    assert (tables.lower_bound(on_disk, keys) == np.searchsorted(given[:, 0], keys)).all()
    row, found = tables.find(on_disk, keys)
    assert (found == np.isin(keys, given[:, 0])).all() and (given[row[found], 0] == keys[found]).all()
    tables.write(tmp_path / "none", [])
    assert not tables.find(tables.read(tmp_path / "none", 2), keys)[1].any()


def test_the_first_of_a_group_goes_on_over_blocks():
    keys = np.repeat(np.arange(40), np.arange(40) % 7)
    value = np.arange(len(keys)) * 10
    for size in (1, 2, 3, 50, 1000):
        carried, begins, first = None, [], []
        for at in range(0, len(keys), size):
            some = tables.first_of_groups(keys[at : at + size], value[at : at + size], carried)
            carried = keys[at : at + size][-1], some[1][-1]
            begins += some[0].tolist()
            first += some[1].tolist()
        assert begins == [i == 0 or keys[i] != keys[i - 1] for i in range(len(keys))]
        assert first == [int(value[list(keys).index(key)]) for key in keys]
