"""Look up documents of a finished run by their numbers, with their text as it was read and as each stage left it.

A document's number is unit · 2^32 + row: its row among all that was read of the unit. The columns `duplicate_of`,
`near_duplicate_of` and `near_duplicate_cluster` hold such numbers.
"""

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.recipe.inputs import Unit
from data.recipe.units import Job


class Text(NamedTuple):
    """A document's text. stage: that left it so. start: its first characters. length: characters of all of it."""

    stage: str
    start: str
    length: int


class Found(NamedTuple):
    """A document. columns: all but the text. texts: as it was read, then as each stage left it that changed it."""

    number: int
    columns: dict[str, Any]
    texts: list[Text]


def read(job: Job, units: Sequence[Unit], numbers: Iterable[int], characters: int) -> Iterator[Found]:
    """Yield the documents in the order of their numbers. A number that no document has yields nothing.

    Reads the results of all stages of `job`, so give fewer stages to get fewer columns.

    Args: characters: of a text's start.
    Memory: that of one row group of one stage's columns, whatever the size of the corpus.
    """
    for unit, rows in _by_unit(units, numbers):
        yield from _of_unit(job, unit, rows, characters)


def names(job: Job, units: Sequence[Unit], numbers: Iterable[int]) -> dict[int, str]:
    """Return the ids of documents by their numbers."""
    found: dict[int, str] = {}
    for unit, rows in _by_unit(units, numbers):
        with pq.ParquetFile(job.path(job.stages[0], unit)) as file:
            for group, some, inside in _groups(file, rows):
                ids = file.read_row_group(group, columns=["id"]).column("id")
                found.update(zip(((unit.number << 32) + some).tolist(), _taken(ids, inside)))
    return found


def _by_unit(units: Sequence[Unit], numbers: Iterable[int]) -> Iterator[tuple[Unit, np.ndarray]]:
    """Yield units, and the rows in each that these numbers name, int64, ascending."""
    for at, some in itertools.groupby(sorted(set(numbers)), key=lambda number: number >> 32):
        if at < len(units):
            yield units[at], np.array([number & 0xFFFFFFFF for number in some], np.int64)


def _of_unit(job: Job, unit: Unit, rows: np.ndarray, characters: int) -> Iterator[Found]:
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(pq.ParquetFile(job.path(stage, unit))) for stage in job.stages]
        for group, some, inside in _groups(files[0], rows):
            columns: list[dict[str, Any]] = [{} for _ in some]
            texts: list[list[Text]] = [[] for _ in some]
            before: list[str | None] = [None] * len(some)
            for stage, file in zip(job.stages, files):
                table = file.read_row_group(group, use_threads=False)
                values = {name: _taken(table.column(name), inside) for name in table.column_names}
                for n, text in enumerate(values.pop("text", ())):
                    if text is not None and text != before[n]:  # None: the stage left it as it was
                        texts[n].append(Text(stage.name, text[:characters], len(text)))
                        before[n] = text
                for name, some_values in values.items():
                    for into, value in zip(columns, some_values):
                        into[name] = value
            for number, about, versions in zip(((unit.number << 32) + some).tolist(), columns, texts):
                yield Found(number, about, versions)


def _taken(column: pa.ChunkedArray, places: np.ndarray) -> list[Any]:
    """Return some values; `column.take` would import pyarrow.compute, which takes 0.05 s."""
    return [column[place].as_py() for place in places.tolist()]


def _groups(file: pq.ParquetFile, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield (row group, those of the rows that it has, their places in it). The files of all stages have the same groups."""
    sizes = [file.metadata.row_group(k).num_rows for k in range(file.metadata.num_row_groups)]
    ends = np.cumsum(sizes, dtype=np.int64)
    group = np.searchsorted(ends, rows, side="right")
    for k in np.unique(group[group < len(sizes)]).tolist():
        some = rows[group == k]
        yield k, some, some - (ends[k] - sizes[k])
