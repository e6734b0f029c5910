"""Batches as a pure function of (seed, step), and their reading ahead in background threads.

Position k of the training stream is one row, given by an index permutation that changes every epoch. Batch n holds
positions n·B … n·B+B-1, or fewer while batches grow (data/text/sizes.py). So resuming at batch n needs no replay, and any
number of hosts reads the same global batches: each host reads the rows of its own devices.

Letters: B rows in a global batch, T tokens in a row.
"""

import math
import os
import sys
from collections.abc import Callable, Sequence

import grain
import grain.experimental
import numpy as np

from data.text.dataset import SPLITS, open_split, prepared
from data.text.mixture import Mixture, Stage
from data.text.sizes import Sizes, constant
from data.text.weights import Size, Weights, stages_of
from lm.errors import UserError

NO_ROW = -1  # the id of a padding row in the last batch


class Batches:
    """Base class: batches of rows in the order `order`. A subclass reads their content in `batch`.

    Args:
        order: row ids; endless if `shuffle`, else `num_rows` of them, and the last batch is padded with id -1.
        num_rows: number of distinct rows.
        batch_size: B, over all hosts.
        growth: rows of the batches if the first ones have fewer; default: B in all.

    Attributes: batch_size, growth, num_rows, and num_batches = ⌈num_rows / batch_size⌉.
    """

    def __init__(self, order: Sequence[int], num_rows: int, batch_size: int, shuffle: bool, growth: Sizes | None = None):
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        self.batch_size, self.num_rows, self.num_batches = batch_size, num_rows, math.ceil(num_rows / batch_size)
        self.growth = growth or constant(batch_size)
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
        first = self.growth.start(n)
        places = [first + row for row in (range(self.growth.of(n)) if rows is None else rows)]
        last = sys.maxsize if self._shuffle else self.num_rows
        return np.asarray([self._order[k] if k < last else NO_ROW for k in places], np.int64)


class TextBatches(Batches):
    """The batches of one split of a dataset made by `data.text.dataset.prepare`. Immutable; threads may share it.

    With `shuffle` the stream is endless. Without weights, every row is read once per epoch. With weights, the sources
    are interleaved evenly in the shares of each stage (within half a percent of each), and each source has its own epochs: no
    row is read again before all rows of its source were, also if the shares change in between.

    Without `shuffle` there are `num_batches` batches, rows keep their order on disk, and the last batch is padded with
    rows of weight 0 and id -1.

    Args:
        dataset_dir: a folder written by `prepare`.
        split: `train` or `valid`.
        batch_size: B, over all hosts.
        seed: of the shuffle, at least 0.
        weights: of the sources, see data/text/weights.py. A source without weight is not read. Without `shuffle` weights only
            select sources.
        shuffle: see above.
        growth: rows of the batches if the first ones have fewer; default: B in all.
        with_sources: whether batches hold the index of each row's source.

    Attributes:
        sequence_length: T.
        batch_size: B.
        ranges: source name -> the ids of its rows, for all sources of the split.
        sizes: source name -> its rows and tokens, for the same sources.
        stages: the shares of the rows in each part of the run.
        num_rows: rows of the sources that are read.
        num_batches: ⌈num_rows / batch_size⌉.

    Raises:
        UserError: no finished dataset, no rows, or weights of unknown sources.
    """

    def __init__(
        self,
        dataset_dir: str | os.PathLike,
        split: str = "train",
        *,
        batch_size: int,
        seed: int = 0,
        weights: Weights = Weights(),  # noqa: B008 (it is frozen)
        shuffle: bool = True,
        growth: Sizes | None = None,
        with_sources: bool = False,
    ):
        if split not in SPLITS:
            raise ValueError(f"split must be one of {SPLITS}, not {split!r}")
        statistics = prepared(dataset_dir)
        if statistics is None:
            raise UserError(f"{dataset_dir} holds no finished dataset; prepare one there first")
        self.sequence_length, self._with_sources = statistics["sequence_length"], with_sources
        self.ranges: dict[str, range] = {}
        self.sizes: dict[str, Size] = {}
        end = 0
        for name, counts in statistics["sources"].items():
            if rows := counts[split]["rows"]:
                self.ranges[name] = range(end, end + rows)
                self.sizes[name] = Size(rows, counts[split]["tokens_packed"])
                end += rows
        if not self.ranges:
            raise UserError(f"{dataset_dir} has no rows in split {split!r}; raise data.valid_fraction and prepare it again")
        self.stages = [Stage(0, {name: size.rows / end for name, size in self.sizes.items()})]
        if weights.rules is not None:
            self.stages = stages_of(weights.rules, self.sizes, weights.steps)
        chosen = [name for name in self.ranges if any(name in stage.shares for stage in self.stages)]

        self._mixture: Mixture | None = None
        if not shuffle:
            order: Sequence[int] = np.concatenate([np.asarray(self.ranges[name]) for name in chosen])
        elif weights.rules is None:
            order = shuffled(end, seed)
        else:
            streams = {name: _permuted(ids, seed, i) for i, (name, ids) in enumerate(self.ranges.items(), start=1)}
            order = self._mixture = Mixture(streams, self.stages, growth or constant(batch_size))
        super().__init__(order, sum(len(self.ranges[name]) for name in chosen), batch_size, shuffle, growth)
        self._starts = np.asarray([ids.start for ids in self.ranges.values()])
        self._readers = [open_split(dataset_dir, name, split) for name in self.ranges]

    def rows_read(self, batches: int) -> dict[str, float]:
        """Return the number of rows that each source gives to batches 0 … batches − 1 of the shuffled stream.

        Without weights the part of an epoch that is not whole counts in proportion to the rows.
        """
        rows = self.growth.start(batches)
        if self._mixture is not None:
            return {name: 0.0 for name in self.ranges} | self._mixture.rows(rows)
        return {name: rows * size.rows / self.num_rows for name, size in self.sizes.items()}

    def epochs(self, batches: int) -> dict[str, float]:
        """Return how often each source is read in batches 0 … batches − 1 of the shuffled stream."""
        return {name: rows / self.sizes[name].rows for name, rows in self.rows_read(batches).items()}

    def batch(self, n: int, rows: Sequence[int] | None = None) -> dict[str, np.ndarray]:
        """Read batch n, or its rows [b] selected by `rows`.

        Returns:
            `tokens`, `targets`: int32 [b, T], row[:-1] and row[1:];
            `segment_ids`: int32 [b, T], from 1, 0 is padding; `positions`: int32 [b, T], from 0 in each segment;
            `weights`: float32 [b, T], 1 if the target is in the same segment as its token, else 0;
            `ids`: int64 [b], see `global_row_ids`;
            `sources`, if the object was made `with_sources`: int32 [b], the index of the row's source in `ranges`; -1 is
            padding.
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
            **({"sources": owners.astype(np.int32)} if self._with_sources else {}),
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


def shuffled(num_rows: int, seed: int) -> grain.MapDataset:
    """Return endless row ids 0 … num_rows − 1: a permutation in each epoch.

    Sources without weights share it. A mixture would round shares and could repeat rows of one source before all rows of
    another were read.
    """
    return _permuted(range(num_rows), seed, 0)


def _permuted(ids: range, seed: int, stream: int) -> grain.MapDataset:
    mixed = int(np.random.SeedSequence([seed, stream]).generate_state(1)[0])
    return grain.MapDataset.range(ids.start, ids.stop).seed(mixed).shuffle().repeat()
