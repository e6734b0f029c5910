"""Split the documents of each source into buckets by a column, with equal bytes of text: quantiles in bounded memory.

Values are compared as float32, whose bits become integers of the same order. A first pass sums bytes by the upper 16 bits, a
second by the lower 16 bits of those that hold a bound. So bounds are exact, and a source takes 512 KiB per bucket, whatever its
number of documents.
"""

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lm.errors import UserError

BINS = 1 << 16
MOST_BUCKETS = 100


def check(settings: Mapping[str, Any], columns: Collection[str]) -> None:
    """Raise UserError if the documents will not have the column `bucket_by`, or cannot have so many `buckets`.

    settings: the section `dataset` of a config. columns: those that the stages of its recipe measure.
    """
    column, buckets = settings["bucket_by"], settings["buckets"]
    if column and not 2 <= buckets <= MOST_BUCKETS:
        raise UserError(f"dataset.buckets={buckets} must be in 2…{MOST_BUCKETS}; set dataset.bucket_by='' for no buckets")
    if column and column not in columns:
        near = difflib.get_close_matches(column, sorted(columns), n=1, cutoff=0.0)
        hint = f"the nearest is {near[0]!r}" if near else "add a stage that measures one"
        raise UserError(f"dataset.bucket_by={column!r}: no stage of the recipe measures this column; {hint}")


def bounds(files: Sequence[Path], column: str, buckets: int) -> dict[str, np.ndarray]:
    """Return for each source the keys (see `keys`) of its buckets' highest values, uint32 [buckets − 1], ascending.

    Bound j is the lowest value at which the documents up to it hold at least j / buckets of the bytes. Documents with equal
    values share a bucket, so a bucket may be empty if many are equal.

    Args: files: the documents of a recipe. column: numbers.
    Raises: UserError: no such column, or no numbers in it, or fewer than 2 buckets.
    """
    check({"bucket_by": column, "buckets": buckets}, (column,))
    upper: dict[str, np.ndarray] = {}
    for source, key, size in _read(files, column):
        _add(upper, source, key >> 16, size)
    found: dict[str, list[tuple[int, int]]] = {}  # source -> (bin, bytes in the bins below) of each bound
    for source, histogram in upper.items():
        sums = np.cumsum(histogram)
        at = [int(np.searchsorted(sums * buckets, j * sums[-1])) for j in range(1, buckets)]
        found[source] = [(bin, int(sums[bin] - histogram[bin])) for bin in at]
    lower: dict[tuple[str, int], np.ndarray] = {}
    for source, key, size in _read(files, column):
        for bin in {bin for bin, _ in found[source]}:
            inside = key >> 16 == bin
            _add(lower, (source, bin), key[inside] & (BINS - 1), size[inside])
    result = {}
    for source, some in found.items():
        total = int(upper[source].sum())
        low = [
            int(np.searchsorted((below + np.cumsum(lower[source, bin])) * buckets, j * total))
            for j, (bin, below) in enumerate(some, start=1)
        ]
        result[source] = np.array([bin << 16 | part for (bin, _), part in zip(some, low)], np.uint32)
    return result


def bucket(values: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """Return the bucket of each value, int64 [N] from 0 (the lowest values). upper: the source's bounds."""
    return np.searchsorted(upper, keys(values))


def keys(values: np.ndarray) -> np.ndarray:
    """Return uint32 [N] in the order of the values as float32. NaN, a missing value, is as low as −∞."""
    with np.errstate(over="ignore"):
        low = np.where(np.isnan(values), -np.inf, values).astype(np.float32) + np.float32(0)  # −0 becomes 0
    bits = low.view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))


def values_of(upper: np.ndarray) -> np.ndarray:
    """Return the values of keys, float32 [N]: the inverse of `keys`."""
    return np.where(upper >> 31, upper & np.uint32((1 << 31) - 1), ~upper).astype(np.uint32).view(np.float32)


def numbers(table: pa.Table, column: str) -> np.ndarray:
    """Return a column as float64 [N], NaN for null. Raises: UserError if there is none, or if it holds no numbers."""
    if column not in table.column_names:
        near = difflib.get_close_matches(column, table.column_names, n=1, cutoff=0.0)[0]
        raise UserError(f"dataset.bucket_by={column!r}: the documents have no such column; the nearest is {near!r}")
    kind = table.schema.field(column).type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise UserError(f"dataset.bucket_by={column!r} holds {kind}; name a column of numbers, such as classifier_quality")
    cast = table.column(column).combine_chunks()
    if pa.types.is_boolean(kind):
        cast = cast.cast(pa.uint8())
    return cast.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)


def _read(files: Sequence[Path], column: str) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield (source, keys [n], bytes of text, int64 [n]) of the documents of one source in a row group."""
    import pyarrow.compute as pc  # takes time to load, and most runs have no buckets

    for path in files:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            columns = ["source", "text", *([column] if column in names else [])]
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=columns)
                key = keys(numbers(table if column in names else file.schema_arrow.empty_table(), column))
                size = pc.binary_length(table.column("text")).to_numpy().astype(np.int64)
                source = table.column("source").to_numpy()
                for name in sorted(set(source)):
                    yield name, key[source == name], size[source == name]


def _add(histograms: dict, name, bins: np.ndarray, size: np.ndarray) -> None:
    """Add bytes to a histogram, int64 [BINS]. A text is below 2^53 bytes, so the float64 sums of a batch are exact."""
    counted = np.bincount(bins, size, BINS).astype(np.int64)
    histograms[name] = histograms[name] + counted if name in histograms else counted
