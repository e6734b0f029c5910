"""Read a dataset of data/text/dataset.py: batches as a pure function of (seed, step), read ahead in background threads.

Position k of the training stream is one row, given by an index permutation that changes every epoch. Batch n holds
positions n·B … n·B+B-1, or fewer while batches grow (`Sizes`). So resuming at batch n needs no replay, and any
number of hosts reads the same global batches: each host reads the rows of its own devices.

Letters: B rows in a global batch, T tokens in a row. Grain and TFDS are imported where they are used, because they take
seconds, and Grain loads JAX.
"""

import bisect
import contextlib
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from data.text.fingerprints import Damaged, read_record
from data.text.weights import Mixture, Size, Stage, Weights, stages_of
from lm.errors import UserError

if TYPE_CHECKING:
    import grain

SPLITS = ("train", "valid")
VERSIONS = ("2.0.0", "1.0.0")  # readable versions of rows; the first is written
NO_ROW = -1  # the id of a padding row in the last batch


class Sizes(NamedTuple):
    """The rows of each batch: the same in all, or fewer at first (batch-size warm-up, Brown et al. 2020, appendix B).

    Stage i has batches of rows[i] from batch ends[i − 1] to ends[i]; the last stage never ends. Stages are counted in
    batches, not in fractions of the run, so a run that is made longer has read the same rows.
    """

    ends: tuple[int, ...]
    rows: tuple[int, ...]

    def of(self, n: int) -> int:
        """Return the rows of batch n."""
        return self.rows[bisect.bisect_right(self.ends, n)]

    def start(self, n: int) -> int:
        """Return the rows of all batches before n: the position of batch n's first row in the stream."""
        begins = (0, *self.ends)
        return sum([max(0, min(n, end) - begin) * rows for begin, end, rows in zip(begins, (*self.ends, n), self.rows)])

    def batches(self, rows: int) -> int:
        """Return how many batches hold at least so many rows."""
        for begin, end, size in zip((0, *self.ends), (*self.ends, math.inf), self.rows):
            if self.start(begin) + (end - begin) * size >= rows:
                return begin + max(0, math.ceil((rows - self.start(begin)) / size))


def constant(rows: int) -> Sizes:
    """Return the sizes of batches that all have `rows` rows."""
    return Sizes((), (rows,))


def parse_sizes(text: str | None, batch_size: int) -> Sizes:
    """Return the sizes that `batch_warmup` describes. Raises UserError, which names the part that cannot be read.

    "500: 8; 2000: 16" with batch_size=32: batches 0 … 499 have 8 rows, 500 … 1,999 have 16, later ones 32.
    """
    ends, rows = [], []
    for stage in filter(None, (part.strip() for part in (text or "").split(";"))):
        match = re.fullmatch(r"(\d+)\s*:\s*(\d+)", stage)
        if match is None:
            raise UserError(f"batch_warmup: {stage!r} is not STEP: ROWS; write it as '500: 8; 2000: 16', rows until a step")
        end, size = map(int, match.groups())
        if end <= (ends[-1] if ends else 0) or not (rows[-1] if rows else 0) < size < batch_size:
            raise UserError(f"batch_warmup: {stage!r}: steps and rows must ascend, and rows stay below batch_size={batch_size}")
        ends.append(end)
        rows.append(size)
    return Sizes(tuple(ends), (*rows, batch_size))


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
    rows of weight 0 and id -1. Then weights only select sources.

    Args:
        dataset_dir: a folder written by `prepare`. batch_size, growth: as of Batches. seed: of the shuffle, at least 0.
        weights: of the sources, see data/text/weights.py. A source without weight is not read.

    Attributes, beside those of Batches:
        sequence_length: T. stages: the shares of the rows in each part of the run.
        ranges, sizes: name of each source of the split -> the ids of its rows; its rows and tokens.

    Raises: UserError: no finished dataset, no rows, or weights of unknown sources.
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
    ):
        if split not in SPLITS:
            raise ValueError(f"split must be one of {SPLITS}, not {split!r}")
        statistics = prepared(dataset_dir)
        if statistics is None:
            raise UserError(f"{dataset_dir} holds no finished dataset; prepare one there first")
        self.sequence_length = statistics["sequence_length"]
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
            order = self._mixture = Mixture(streams, self.stages, (growth or constant(batch_size)).start)
        super().__init__(order, sum(len(self.ranges[name]) for name in chosen), batch_size, shuffle, growth)
        self._starts = np.asarray([ids.start for ids in self.ranges.values()])
        self._readers = [Rows(dataset_dir, name, split) for name in self.ranges]

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
            `ids`: int64 [b], see `global_row_ids`.
        """
        ids = self.global_row_ids(n, rows)
        whole = {
            name: np.zeros((len(ids), self.sequence_length + 1), np.int32) for name in ("tokens", "segment_ids", "positions")
        }
        owners = np.searchsorted(self._starts, ids, side="right") - 1  # -1 for no row
        for owner in np.unique(owners[owners >= 0]):
            mine = owners == owner
            for name, rows_read in self._readers[owner].read((ids[mine] - self._starts[owner]).tolist()).items():
                whole[name][mine] = rows_read
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


class Rows:
    """Random access to the rows of one split of one source, of any version.

    Raises: UserError, also while rows are read, if a file is damaged: ArrayRecord compares checksums.
    """

    def __init__(self, dataset_dir: str | os.PathLike, source: str, split: str):
        import tensorflow_datasets as tfds

        folder = Path(dataset_dir) / "packed_text" / source
        self._folder = next((folder / v for v in VERSIONS if (folder / v).is_dir()), folder / VERSIONS[0])
        with _readable(self._folder):
            self._stored = tfds.builder_from_directory(os.fspath(self._folder)).as_data_source(split)

    def __len__(self) -> int:
        return len(self._stored)

    def read(self, numbers: Sequence[int]) -> dict[str, np.ndarray]:
        """Return rows [n]: `tokens`, `segment_ids` and `positions` as of `layout`, each [n, T+1]."""
        with _readable(self._folder):
            rows = self._stored.__getitems__(numbers)
        fields = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        if "joined" not in fields:  # version 1.0.0
            return fields
        segments, positions = layout(fields["joined"], fields["tokens"].shape[1])
        return {"tokens": fields["tokens"], "segment_ids": segments, "positions": positions}


@contextlib.contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """Raise UserError for what TFDS and ArrayRecord raise about damaged files in `folder`, which is of many types."""
    try:
        yield
    except (UserError, MemoryError, PermissionError):
        raise
    except Exception as error:
        why = " ".join(str(error).split())[:200]
        raise UserError(
            f"the rows in {folder} are damaged ({type(error).__name__}: {why}): put a copy in their place, or delete "
            f"{folder.parents[2]} and run the same command again, which prepares them again"
        ) from error


def layout(joined: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute the segments and positions of rows from their bits.

    Args: joined: uint8 [rows, ⌈width/8⌉], see `row_dtype` in data/text/packing.py. width: T+1.
    Returns: segment ids (from 1; 0 is padding) and positions (from 0 in each segment), both int32 [rows, width].
    """
    continues = np.unpackbits(joined, axis=-1, count=width, bitorder="little").astype(bool)
    used = continues.copy()
    used[:, :-1] |= continues[:, 1:]
    starts = used & ~continues
    place = np.arange(width, dtype=np.int32)
    begun = np.maximum.accumulate(np.where(starts, place, 0), axis=-1)
    return np.cumsum(starts, axis=-1, dtype=np.int32) * used, (place - begun) * used


def prepared(out_dir: str | os.PathLike) -> dict[str, Any] | None:
    """Return the result of `prepare` for this folder, or None if there is no finished dataset.

    Raises: Damaged if dataset.json is invalid, or a file of rows is missing or has the wrong size.
    """
    path = Path(out_dir) / "dataset.json"
    statistics = read_record(path, "dataset", {"sequence_length", "vocab_size", "sources"})
    if statistics is None:
        return None
    for name, size in statistics.get("files", {}).items():
        file = path.parent / name
        if not file.is_file() or file.stat().st_size != size:
            raise Damaged(file, f"its size is not the {size:,} bytes that were written" if file.is_file() else "it is missing")
    return statistics


def read_ahead(
    read: Callable[[int], dict], start: int = 0, stop: int = sys.maxsize, *, prefetch: int = 8, threads: int = 2
) -> "grain.DatasetIterator":
    """Return a Grain iterator over read(start) … read(stop − 1). Threads call `read`; `close()` ends them early.

    Args: prefetch: results read ahead; 0 reads in the caller's thread. threads: number of reader threads.
    """
    import grain
    import grain.experimental

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    iterator = iter(grain.MapDataset.range(stop).map(read).to_iter_dataset(options))
    grain.experimental.set_next_index(iterator, min(start, stop))
    return iterator


def shuffled(num_rows: int, seed: int) -> Sequence[int]:
    """Return endless row ids 0 … num_rows − 1: a permutation in each epoch.

    Sources without weights share it. A mixture would round shares and could repeat rows of one source before all rows of
    another were read.
    """
    return _permuted(range(num_rows), seed, 0)


def _permuted(ids: range, seed: int, stream: int) -> Sequence[int]:
    import grain

    mixed = int(np.random.SeedSequence([seed, stream]).generate_state(1)[0])
    return grain.MapDataset.range(ids.start, ids.stop).seed(mixed).shuffle().repeat()
