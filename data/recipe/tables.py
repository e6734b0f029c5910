"""Columns on disk: Parquet files with one row group a batch, so that the files of several stages are read side by side."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.recipe.batch import Columns
from lm.files import saving


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Callable[[Columns], None]]:
    """Yield a function that writes a batch of columns to a file, which gets its name when the block ends without an error.

    Lists hold strings or None. The function must see the same columns each time.
    """
    with saving.replacing(path, "wb") as file, contextlib.ExitStack() as stack:
        writer: pq.ParquetWriter | None = None

        def write(columns: Columns) -> None:
            nonlocal writer
            table = pa.Table.from_arrays([array(values) for values in columns.values()], names=list(columns))
            if writer is None:
                # Without dictionaries the files are smaller, too: few values occur again, and zstd finds those.
                options = {"compression": "zstd", "compression_level": 1, "use_dictionary": False}
                writer = stack.enter_context(pq.ParquetWriter(file, table.schema, **options))
            writer.write_table(table, row_group_size=max(1, table.num_rows))

        yield write


def array(values: Sequence[str | None] | np.ndarray) -> pa.Array:
    """Return numbers, flags or strings as an Arrow array: the same as `pa.array`.

    That function, `pa.table` and `to_numpy` import pandas, if it is installed, which takes 0.2 s in each process.
    """
    if isinstance(values, np.ndarray):
        packed = np.packbits(values, bitorder="little") if values.dtype == bool else np.ascontiguousarray(values)
        return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(packed)])
    known = np.array([value is not None for value in values], bool)
    encoded = [b"" if value is None else value.encode() for value in values]
    ends = np.cumsum([0, *map(len, encoded)])
    if ends[-1] >= 1 << 31:
        return pa.array(values, pa.string())  # in chunks
    null = None if known.all() else pa.py_buffer(np.packbits(known, bitorder="little"))
    return pa.StringArray.from_buffers(len(values), pa.py_buffer(ends.astype(np.int32)), pa.py_buffer(b"".join(encoded)), null)


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the columns of each batch that `writing` wrote, at least one: strings as lists, the rest as arrays."""
    with pq.ParquetFile(path) as file:
        groups = (file.read_row_group(k, use_threads=False) for k in range(file.num_row_groups))
        for table in groups if file.num_row_groups else [file.schema_arrow.empty_table()]:
            yield {name: _values(table.column(name)) for name in table.column_names}


def _values(column: pa.ChunkedArray) -> list | np.ndarray:
    values = column.to_pylist()
    return values if pa.types.is_string(column.type) else np.array(values, column.type.to_pandas_dtype())
