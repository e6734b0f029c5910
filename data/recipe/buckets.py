"""Split the documents of each source into buckets by a column, with equal bytes of text: weighted quantiles.

Values are compared as float32. Memory: 12 bytes a document.
"""

import difflib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lm.errors import UserError

MAX_BUCKETS = 100


def check(settings: Mapping[str, Any], columns: Collection[str]) -> None:
    """Raise UserError if the documents will not have the column `bucket_by`, or cannot have so many `buckets`.

    settings: the section `dataset` of a config. columns: those that the stages of its recipe measure.
    """
    column, buckets = settings["bucket_by"], settings["buckets"]
    if column and not 2 <= buckets <= MAX_BUCKETS:
        raise UserError(f"dataset.buckets={buckets} must be in 2…{MAX_BUCKETS}; set dataset.bucket_by='' for no buckets")
    if column and column not in columns:
        near = difflib.get_close_matches(column, sorted(columns), n=1, cutoff=0.0)
        hint = f"the nearest is {near[0]!r}" if near else "add a stage that measures one"
        raise UserError(f"dataset.bucket_by={column!r}: no stage of the recipe measures this column; {hint}")


def bounds(files: Sequence[Path], column: str, buckets: int) -> dict[str, np.ndarray]:
    """Return for each source the highest values of its buckets but the last, float32 [buckets − 1], ascending.

    Bound j is the lowest value at which the documents up to it hold at least j / buckets of the bytes. Documents with equal
    values share a bucket, so a bucket may be empty if many are equal.

    Args: files: the documents of a recipe, which have the column.
    Raises: UserError: no numbers in the column, or fewer than 2 buckets.
    """
    import pyarrow.compute as pc  # takes time to load, and most runs have no buckets

    check({"bucket_by": column, "buckets": buckets}, (column,))
    parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for path in files:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=["source", "text", column])
                values, source = _compared(numbers(table, column)), table.column("source").to_numpy()
                sizes = pc.binary_length(table.column("text")).to_numpy().astype(np.int64)
                for name in sorted(set(source)):
                    parts.setdefault(name, []).append((values[source == name], sizes[source == name]))
    upper = {}
    for source, some in parts.items():
        values, sizes = map(np.concatenate, zip(*some))
        order = np.argsort(values)
        sums = np.cumsum(sizes[order])
        upper[source] = values[order[np.searchsorted(sums * buckets, np.arange(1, buckets) * sums[-1])]]
    return upper


def bucket(values: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """Return the bucket of each value, int64 [N] from 0 (the lowest values). upper: the source's bounds."""
    return np.searchsorted(upper, _compared(values))


def _compared(values: np.ndarray) -> np.ndarray:
    """Return float32 [N]. NaN, a missing value, is as low as −∞."""
    with np.errstate(over="ignore"):
        return np.where(np.isnan(values), -np.inf, values).astype(np.float32)


def numbers(table: pa.Table, column: str) -> np.ndarray:
    """Return a column as float64 [N], NaN for null. Raises: UserError if it holds no numbers."""
    kind = table.schema.field(column).type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise UserError(f"dataset.bucket_by={column!r} holds {kind}; name a column of numbers, such as classifier_quality")
    return np.array(table.column(column).to_pylist(), np.float64)
