"""Columns on disk: Parquet files with one row group a batch, so that the files of several stages are read side by side."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.recipe.batch import Columns
from lm import saving


class Writer:
    """Writes batches of columns; lists hold strings or None. `write` must see the same columns each time."""

    def __init__(self, file):
        self._file, self._writer = file, None

    def write(self, columns: Columns) -> None:
        table = pa.table({name: _array(values) for name, values in columns.items()})
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._file, table.schema, compression="zstd", compression_level=1)
        self._writer.write_table(table, row_group_size=max(1, table.num_rows))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Writer]:
    """Yield a Writer of a file that gets its name when the block ends without an error."""
    with saving.replacing(path, "wb") as file:
        with contextlib.closing(Writer(file)) as writer:
            yield writer


def load() -> None:
    """Load what writing needs, so that forked workers share it: Arrow imports pandas, if that is installed."""
    pa.array([], pa.string())


def _array(values: Sequence | np.ndarray) -> pa.Array:
    return pa.array(values) if isinstance(values, np.ndarray) else pa.array(values, pa.string())


class Reader:
    """Reads a file of Writer batch by batch: read(k) returns the columns of batch k, strings as lists, the rest as arrays."""

    def __init__(self, path: Path):
        self._file = pq.ParquetFile(path)
        self.batches = max(1, self._file.num_row_groups)

    def read(self, k: int) -> dict[str, Any]:
        table = (
            self._file.read_row_group(k, use_threads=False)
            if self._file.num_row_groups
            else self._file.schema_arrow.empty_table()
        )
        return {name: _values(table.column(name)) for name in table.column_names}

    def close(self) -> None:
        self._file.close()


def _values(column: pa.ChunkedArray) -> list | np.ndarray:
    return column.to_pylist() if pa.types.is_string(column.type) else column.to_numpy()
