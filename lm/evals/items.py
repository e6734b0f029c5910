"""The items of a benchmark as its files have them: JSON lines, JSON, CSV, Parquet, or a TFDS name.

What cannot be read is a row {"malformed": why} in its place, so that the rows behind it keep their numbers; a file that cannot
be read at all is a UserError.
"""

import csv
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from lm.errors import UserError

ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".jsonl.gz", ".csv.gz")
# What a file's name says of the split that it holds; a name that says nothing holds the test split.
SPLITS = {
    "train": "train",
    "dev": "dev",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}


def found(folder: Path) -> dict[str, list[Path]]:
    """The files of a task's folder by split, in the order of their names.

    A split is a word of the file's stem: mmlu_anatomy_dev.csv, validation-00000-of-00001.parquet. Raises UserError if there is
    no file.
    """
    paths = sorted(p for p in folder.glob("*") if p.name.lower().endswith(ENDINGS)) if folder.is_dir() else []
    if not paths:
        raise UserError(f"{folder}: no file {', '.join('*' + ending for ending in ENDINGS)}; put the benchmark's files there")
    splits: dict[str, list[Path]] = {}
    for path in paths:
        words = path.name.lower().replace("-", "_").replace(".", "_").split("_")
        split = next((SPLITS[word] for word in reversed(words) if word in SPLITS), "test")
        splits.setdefault(split, []).append(path)
    return splits


def read(path: Path, columns: tuple[str, ...] | None = None) -> list[dict]:
    """The rows of a file. columns: what they are called in a CSV file without a header."""
    name = path.name.lower().removesuffix(".gz")
    if name.endswith((".csv", ".tsv")):
        return list(csv_rows(path, columns, "\t" if name.endswith(".tsv") else ","))
    if name.endswith(".parquet"):
        return _parquet(path)
    if name.endswith(".json"):
        return _whole(path)
    return list(json_lines(path))


def json_lines(path: Path) -> Iterator[dict]:
    for number, line in enumerate(content(path).split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode())
        except (ValueError, RecursionError) as error:
            yield {"malformed": f"line {number} is not JSON: {error}"}
            continue
        yield row if isinstance(row, dict) else {"malformed": f"line {number} is a JSON {type(row).__name__}, not an object"}


def csv_rows(path: Path, columns: tuple[str, ...] | None, delimiter: str = ",") -> Iterator[dict]:
    """columns: what they are called in a file without a header; None: its first row tells."""
    try:
        lines = io.StringIO(content(path).decode(), newline="")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not valid UTF-8; convert the file to UTF-8") from None
    csv.field_size_limit(1 << 30)
    reader = csv.reader(lines, strict=True, delimiter=delimiter)
    try:
        for number, row in enumerate(filter(None, reader)):
            if number == 0 and (columns is None or row[-1].strip().lower() == columns[-1]):
                columns = columns or tuple(name.strip() for name in row)
            elif len(row) != len(columns):
                yield {"malformed": f"line {reader.line_num} ends a row of {len(row)} columns, not {len(columns)}"}
            else:
                yield dict(zip(columns, row))
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num}: {error}; mend the file") from None


def content(path: Path) -> bytes:
    """The bytes of a file, unpacked, without a byte order mark."""
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    return raw.removeprefix(b"\xef\xbb\xbf")


def digest(path: Path) -> str:
    return "sha256:" + hashlib.sha256(content(path)).hexdigest()


def _whole(path: Path) -> list[dict]:
    """A JSON file that is one array, or an object with one under data, rows, examples or records; else JSON lines."""
    try:
        value = json.loads(content(path))
    except (ValueError, RecursionError):
        return list(json_lines(path))
    if isinstance(value, dict):
        value = next(
            (value[key] for key in ("data", "rows", "examples", "records") if isinstance(value.get(key), list)), [value]
        )
    return [
        row if isinstance(row, dict) else {"malformed": f"row {n} is a JSON {type(row).__name__}"}
        for n, row in enumerate(value)
    ]


def _parquet(path: Path) -> list[dict]:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path}: {error}") from None


def checksum(paths: Sequence[Path]) -> str:
    """Of the contents of files, in this order."""
    whole = hashlib.sha256()
    for path in paths:
        whole.update(hashlib.sha256(content(path)).digest())
    return "sha256:" + whole.hexdigest()
