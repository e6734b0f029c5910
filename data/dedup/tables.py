"""Sort tables of 64-bit numbers that are larger than memory: sorted runs on disk, and a merge of them, in blocks of NumPy.

A table is a file of uint64 rows of one width, without a header. Rows are ordered by the first column, then by the second, etc.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from lm.files import saving

BUFFER_ROWS = 1 << 20  # sorted in memory at a time; a run on disk has as many
FAN_IN = 64  # runs merged at a time
BLOCK_ROWS = 1 << 14  # read of each run at a time


class Sorter:
    """Takes rows in any order and gives them back sorted.

    Memory: about four times BUFFER_ROWS rows, or FAN_IN · BLOCK_ROWS rows while it merges. Disk: all rows, in a folder that is
    deleted by `close`, or at the end of a `with` block.
    """

    def __init__(self, folder: Path, width: int, buffer_rows: int | None = None):
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = tempfile.TemporaryDirectory(dir=folder, prefix=".sorting-")
        self._width, self._most = width, buffer_rows or BUFFER_ROWS
        self._waiting, self._count, self._runs = [], 0, []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        self._folder.cleanup()

    def add(self, rows: np.ndarray) -> None:
        """Add rows, uint64 [n, width]."""
        while len(rows):
            some, rows = rows[: self._most - self._count], rows[self._most - self._count :]
            self._waiting.append(some)
            self._count += len(some)
            if self._count == self._most:
                self._write([self._buffered()])

    def sorted(self, others: Sequence[Path] = ()) -> Iterator[np.ndarray]:
        """Yield all rows in order, in blocks. Nothing may be added afterwards.

        others: sorted files that are merged with the rows and stay as they are.
        """
        if not self._runs and not others:
            if self._count:
                yield self._buffered()
            return
        if self._count:
            self._write([self._buffered()])
        runs = [*self._runs, *others]
        while len(runs) > FAN_IN:
            merged = len(self._runs)
            self._write(merge(runs[:FAN_IN], self._width))
            for path in runs[:FAN_IN]:
                if path not in others:
                    path.unlink()
            runs = [*runs[FAN_IN:], self._runs[merged]]
        yield from merge(runs, self._width)

    def _buffered(self) -> np.ndarray:
        rows = sort(np.concatenate(self._waiting))
        self._waiting, self._count = [], 0
        return rows

    def _write(self, blocks: Iterable[np.ndarray]) -> None:
        path = Path(self._folder.name) / str(len(self._runs))
        with path.open("wb") as file:
            for block in blocks:
                file.write(np.ascontiguousarray(block))
        self._runs.append(path)


def merged(files: Sequence[Path], width: int, folder: Path) -> Iterator[np.ndarray]:
    """Yield the rows of any number of sorted files in order, in blocks. folder: for temporary files."""
    with Sorter(folder, width) as nothing:
        yield from nothing.sorted(files)


def sort(rows: np.ndarray) -> np.ndarray:
    """Return rows in order. Ties of the first column, which are few when it is a hash, are sorted in a second step."""
    order = np.argsort(rows[:, 0])
    rows = rows[order]
    equal = np.zeros(len(rows) + 1, bool)
    equal[1:-1] = rows[1:, 0] == rows[:-1, 0]
    tied = np.flatnonzero(equal[1:] | equal[:-1])
    if len(tied):
        rows[tied] = rows[tied[np.lexsort(rows[tied].T[::-1])]]
    return rows


def merge(files: Sequence[Path], width: int) -> Iterator[np.ndarray]:
    """Yield the rows of sorted files in order, in blocks.

    Of every file one block is looked at. Rows up to the smallest last row of these blocks are safe to give out, because no
    later row can be smaller.
    """
    runs = [read(file, width) for file in files]
    places = [0] * len(runs)
    while True:
        left = [i for i, run in enumerate(runs) if places[i] < len(run)]
        runs, places = [runs[i] for i in left], [places[i] for i in left]
        if not runs:
            return
        blocks = [np.asarray(run[at : at + BLOCK_ROWS]) for run, at in zip(runs, places)]
        open_ended = [block[-1] for block, run, at in zip(blocks, runs, places) if at + BLOCK_ROWS < len(run)]
        if open_ended:
            limit = min(open_ended, key=tuple)
            blocks = [block[: _up_to(block, limit)] for block in blocks]
        places = [at + len(block) for block, at in zip(blocks, places)]
        yield sort(np.concatenate(blocks)) if len(blocks) > 1 else blocks[0]


def _up_to(block: np.ndarray, limit: np.ndarray) -> int:
    """Return how many rows of a sorted block are at most `limit`."""
    begin, end = 0, len(block)
    for column, value in enumerate(limit):
        begin, end = (begin + int(np.searchsorted(block[begin:end, column], value, side=side)) for side in ("left", "right"))
    return end


def distinct(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield sorted blocks without repeated rows."""
    carried = None
    for block in filter(len, blocks):
        begins, first = first_of_groups(block, block[:, 0], carried)
        carried = block[-1].copy(), first[-1]
        if begins.any():
            yield block[begins]


def write(path: Path, blocks: Iterable[np.ndarray]) -> int:
    """Write a table. Returns the number of its rows."""
    count = 0
    with saving.replacing(path, "wb") as file:
        for block in blocks:
            file.write(np.ascontiguousarray(block))
            count += len(block)
    return count


def read(path: Path, width: int) -> np.ndarray:
    """Return a table as uint64 [rows, width], read from disk where it is used."""
    if not os.path.getsize(path):
        return np.empty((0, width), np.uint64)
    return np.memmap(path, np.uint64, "r").reshape(-1, width)


def blocks(table: np.ndarray, block_rows: int = 1 << 16) -> Iterator[np.ndarray]:
    """Yield the rows of a table in blocks."""
    for begin in range(0, len(table), block_rows):
        yield np.asarray(table[begin : begin + block_rows])


def lower_bound(table: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Return int64 [keys]: the first row whose first column is at least the key, in a table sorted by it.

    np.searchsorted does the same, but first copies the whole column into memory.
    """
    low, high = np.zeros(len(keys), np.int64), np.full(len(keys), len(table))
    for _ in range(len(table).bit_length()):
        middle = (low + high) >> 1
        below = (low < high) & (table[np.minimum(middle, len(table) - 1), 0] < keys)
        low, high = np.where(below, middle + 1, low), np.where(below, high, middle)
    return low


def find(table: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the first row of each key in a table sorted by its first column, and whether it has one, else any row."""
    if not len(table):
        return np.zeros(len(keys), np.int64), np.zeros(len(keys), bool)
    row = np.minimum(lower_bound(table, keys), len(table) - 1)
    return row, table[row, 0] == keys


def first_of_groups(keys: np.ndarray, value: np.ndarray, carried: tuple | None) -> tuple[np.ndarray, np.ndarray]:
    """Return bool [n], where a run of equal keys begins, and for each row the `value` of the first row of its run.

    keys: [n] or [n, columns]. carried: the last key of the previous block and the value of its run, for a run that goes on.
    """
    keys = keys.reshape(len(keys), -1)
    begins = np.ones(len(keys), bool)
    begins[1:] = (keys[1:] != keys[:-1]).any(axis=1)
    first = value[np.maximum.accumulate(np.where(begins, np.arange(len(keys)), 0))]
    if carried is not None and len(keys) and (keys[0] == carried[0]).all():
        first[(keys == carried[0]).all(axis=1)] = carried[1]
        begins[0] = False
    return begins, first


@contextlib.contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path` for temporary files. It is deleted at the end, or by the next call after a kill."""
    folder = path.with_name(f".{path.name}.sorting")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def sorting(folder: Path, *widths: int) -> Iterator[list[Sorter]]:
    """Yield Sorters of these widths and delete their files at the end."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Sorter(folder, width)) for width in widths]
