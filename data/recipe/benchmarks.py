"""Benchmark items from files, for decontamination: any of the formats that benchmarks are published in."""

import csv
import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import xxhash

from data.dedup.decontaminate import Benchmark, benchmark
from data.sources import files, reading
from lm.errors import UserError, naming

FORMATS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json.gz", ".parquet", ".csv")


def find(input: str) -> list[str]:
    """Return the files of `decontaminate.benchmarks`. Raises: UserError."""
    with naming("decontaminate.benchmarks"):
        return files.find(input, FORMATS)


def digest(input: str) -> str:
    """Return a digest of the files' names and contents."""
    state = xxhash.xxh3_128()
    for path in find(input):
        state.update(os.path.basename(path).encode())
        state.update(Path(path).read_bytes())
    return state.hexdigest()


@functools.lru_cache(maxsize=4)
def load(input: str, n: int, fields: tuple[str, ...]) -> Benchmark:
    """Return the n-grams of all items. fields: those whose texts make an item; (): all that hold text.

    Raises: UserError: a file cannot be read, or no item has one of the fields.
    """
    items = [item for path in find(input) for item in _items(path, fields)]
    if not items:
        wanted = f"a text in one of the fields {', '.join(fields)}" if fields else "any text"
        raise UserError(f"decontaminate.benchmarks={input!r}: no item has {wanted}")
    return benchmark(items, n, min(n, 8))


def _items(path: str, fields: Sequence[str]) -> Iterator[dict[str, str]]:
    for number, row in _rows(path):
        texts = [text for name, value in row.items() if not fields or name in fields for text in _texts(value)]
        if texts:
            yield {"id": f"{os.path.basename(path)}:{number}", "text": "\n".join(texts)}


def _rows(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    if path.endswith(".parquet"):
        yield from reading.parquet_rows(path)
    elif path.endswith(".csv"):  # with or without a line of names, which then counts as an item
        with open(path, encoding="utf-8", newline="") as file:
            yield from ((number, dict(enumerate(row))) for number, row in enumerate(csv.reader(file), start=1))
    else:
        yield from reading.json_lines(path)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _texts(part)
    elif isinstance(value, dict):
        for part in value.values():
            yield from _texts(part)
