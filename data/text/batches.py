"""Batches as a pure function of (seed, step), and their reading ahead in background threads.

Position k of the training stream is one row, given by an index permutation that changes every epoch. Batch n holds
positions n·B … n·B+B-1. So resuming at batch n needs no replay, and any number of hosts reads the same global batches:
each host reads the rows of its own devices.

Letters: B rows in a global batch, T tokens in a row.
"""

import difflib
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence

import grain
import grain.experimental
import numpy as np

from data.text.dataset import SPLITS, open_split, prepared
from lm.errors import UserError

NO_ROW = -1  # the id of a padding row in the last batch


class Batches:
    """Base class: batches of rows in the order `order`. A subclass reads their content in `batch`.

    Args:
        order: row ids; endless if `shuffle`, else `num_rows` of them, and the last batch is padded with id -1.
        num_rows: number of distinct rows.
        batch_size: B, over all hosts.

    Attributes: batch_size, num_rows, and num_batches = ⌈num_rows / batch_size⌉.
    """

    def __init__(self, order: Sequence[int], num_rows: int, batch_size: int, shuffle: bool):
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        self.batch_size, self.num_rows, self.num_batches = batch_size, num_rows, math.ceil(num_rows / batch_size)
        self._order, self._shuffle = order, shuffle
        self._order[0]  # the first access initialises Grain's statistics, which is not thread-safe

    def batch(self, n: int, rows: Sequence[int] | None = None) -> dict[str, np.ndarray]:
        """Return batch n, or its rows [b] selected by `rows`, as arrays [b, …]; `ids` as `global_row_ids`."""
        raise NotImplementedError

    def global_row_ids(self, n: int, rows: Sequence[int] | None = None) -> np.ndarray:
        """Return the row ids of batch n, int64 [B], or those selected by `rows`.

        An id is the row's index among all rows of the split, including sources that are not read; -1 is padding.
        """
        if n < 0 or not (self._shuffle or n < self.num_batches):
            raise IndexError(f"no batch {n}" + ("" if self._shuffle else f" among {self.num_batches}"))
        places = [n * self.batch_size + row for row in (range(self.batch_size) if rows is None else rows)]
        last = sys.maxsize if self._shuffle else self.num_rows
        return np.asarray([self._order[k] if k < last else NO_ROW for k in places], np.int64)


class TextBatches(Batches):
    """The batches of one split of a dataset made by `data.text.dataset.prepare`. Immutable; threads may share it.

    With `shuffle` the stream is endless. Without weights, every row is read once per epoch. With weights, the sources
    are interleaved evenly in these proportions (within half a percent of each), and each source has its own epochs.

    Without `shuffle` there are `num_batches` batches, rows keep their order on disk, and the last batch is padded with
    rows of weight 0 and id -1.

    Args:
        dataset_dir: a folder written by `prepare`.
        split: `train` or `valid`.
        batch_size: B, over all hosts.
        seed: of the shuffle, at least 0.
        weights: source name -> relative share of the rows; a missing source, or one of weight 0, is not read.
            Default: all sources, in proportion to their rows. Without `shuffle` weights only select sources.
        shuffle: see above.

    Attributes:
        sequence_length: T.
        batch_size: B.
        ranges: source name -> the ids of its rows, for all sources of the split.
        num_rows: rows of the sources that are read.
        num_batches: ⌈num_rows / batch_size⌉.

    Raises:
        UserError: no finished dataset, no rows, or invalid weights.
    """

    def __init__(
        self,
        dataset_dir: str | os.PathLike,
        split: str = "train",
        *,
        batch_size: int,
        seed: int = 0,
        weights: Mapping[str, float] | None = None,
        shuffle: bool = True,
    ):
        if split not in SPLITS:
            raise ValueError(f"split must be one of {SPLITS}, not {split!r}")
        statistics = prepared(dataset_dir)
        if statistics is None:
            raise UserError(f"{dataset_dir} holds no finished dataset; prepare one there first")
        self.sequence_length = statistics["sequence_length"]
        self.ranges: dict[str, range] = {}
        end = 0
        for name, counts in statistics["sources"].items():
            if rows := counts[split]["rows"]:
                self.ranges[name] = range(end, end + rows)
                end += rows
        if not self.ranges:
            raise UserError(f"{dataset_dir} has no rows in split {split!r}; raise data.valid_fraction and prepare it again")
        chosen = _checked(weights, self.ranges, split) if weights is not None else None

        order = shuffled(self.ranges, chosen, seed) if shuffle else _in_order(self.ranges, chosen)
        super().__init__(order, sum(len(self.ranges[name]) for name in chosen or self.ranges), batch_size, shuffle)
        self._starts = np.asarray([ids.start for ids in self.ranges.values()])
        self._readers = [open_split(dataset_dir, name, split) for name in self.ranges]

    def batch(self, n: int, rows: Sequence[int] | None = None) -> dict[str, np.ndarray]:
        """Read batch n, or its rows [b] selected by `rows`.

        Returns:
            `tokens`, `targets`: int32 [b, T], row[:-1] and row[1:];
            `segment_ids`: int32 [b, T], from 1, 0 is padding; `positions`: int32 [b, T], from 0 in each segment;
            `weights`: float32 [b, T], 1 if the target is in the same segment as its token, else 0;
            `ids`: int64 [b], see `global_row_ids`.
        """
        ids = self.global_row_ids(n, rows)
        whole = {
            name: np.zeros((len(ids), self.sequence_length + 1), np.int32) for name in ("tokens", "segment_ids", "positions")
        }
        owners = np.searchsorted(self._starts, ids, side="right") - 1  # -1 for no row
        for owner in np.unique(owners[owners >= 0]):
            mine = np.flatnonzero(owners == owner)
            read = self._readers[owner].__getitems__((ids[mine] - self._starts[owner]).tolist())
            for at, row in zip(mine, read, strict=True):
                for name, array in whole.items():
                    array[at] = row[name]
        segments = whole["segment_ids"]
        same = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
        return {
            "tokens": whole["tokens"][:, :-1],
            "targets": whole["tokens"][:, 1:],
            "segment_ids": segments[:, :-1],
            "positions": whole["positions"][:, :-1],
            "weights": same.astype(np.float32),
            "ids": ids,
        }


def read_ahead(
    read: Callable[[int], dict], start: int = 0, stop: int = sys.maxsize, *, prefetch: int = 8, threads: int = 2
) -> grain.DatasetIterator:
    """Return a Grain iterator over read(start) … read(stop − 1). Threads call `read`; `close()` ends them early.

    Args:
        prefetch: results read ahead; 0 reads in the caller's thread.
        threads: number of reader threads.
    """
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    iterator = iter(grain.MapDataset.range(stop).map(read).to_iter_dataset(options))
    grain.experimental.set_next_index(iterator, min(start, stop))
    return iterator


def shuffled(ranges: Mapping[str, range], weights: Mapping[str, float] | None, seed: int) -> grain.MapDataset:
    """Return endless row ids: one permutation of all rows, or with weights a mixture of one permutation per source.

    Without weights there is one permutation, because `MapDataset.mix` rounds proportions and could repeat rows of one
    source before all rows of another were read. The mixture scales the smallest weight to 100.
    """

    def permuted(ids: range, stream: int) -> grain.MapDataset:
        mixed = int(np.random.SeedSequence([seed, stream]).generate_state(1)[0])
        return grain.MapDataset.range(ids.start, ids.stop).seed(mixed).shuffle().repeat()

    if weights is None:
        total = sum(map(len, ranges.values()))
        return permuted(range(total), 0)
    streams = [permuted(ids, i) for i, (name, ids) in enumerate(ranges.items(), start=1) if name in weights]
    least = min(weights.values())
    # Grain would truncate: 0.3 / 0.1 * 100 is 299.99...
    parts = [round(100 * weights[name] / least) for name in ranges if name in weights]
    return grain.MapDataset.mix(streams, weights=parts)


def _in_order(ranges: Mapping[str, range], chosen: Mapping[str, float] | None) -> np.ndarray:
    return np.concatenate([np.asarray(ids) for name, ids in ranges.items() if chosen is None or name in chosen])


def _checked(weights: Mapping[str, float], ranges: Mapping[str, range], split: str) -> dict[str, float]:
    """Return the positive weights. Raises: UserError for an unknown source of the split, or an invalid number."""
    for name, weight in weights.items():
        if name not in ranges:
            near = difflib.get_close_matches(name, ranges, n=1, cutoff=0.0)[0]
            raise UserError(f"data.weights.{name}: no such source in split {split!r}; the nearest is {near!r}")
        if not (weight >= 0 and math.isfinite(weight)):
            raise UserError(f"data.weights.{name}={weight} must be a finite number, 0 or more")
    chosen = {name: float(weight) for name, weight in weights.items() if weight > 0}
    if not chosen:
        raise UserError("data.weights: every weight is 0; give at least one source a positive weight")
    return chosen
