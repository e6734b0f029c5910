"""Find a task's data and read its items: from a folder in data_dir, from a file or items of its own, or made on the spot.

Files are JSON lines, JSON, CSV, Parquet or plain text. An unreadable row becomes {"malformed": why} in its place, so that later
rows keep their numbers. An unreadable file raises UserError.
"""

import csv
import functools
import gzip
import hashlib
import io
import itertools
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from data.chat.records import wrapped
from data.sources.reading import parquet_rows
from lm.errors import UserError
from lm.evals.stats.joining import Problems
from lm.evals.task import TaskSettings

EXAMPLES = 100  # of a task that is made on the spot, for few-shot prompts
ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".jsonl.gz", ".csv.gz")
TEXTS = (".txt", ".md")  # one document each
# Words in a file's name that say which split it holds. Without one it holds the test split.
SPLITS = {
    "train": "train", "dev": "dev", "val": "validation", "valid": "validation", "validation": "validation", "test": "test",
}  # fmt: skip
LABELS = "-labels.lst"  # PIQA's answers are in a separate file, one per line


def find_files(folder: Path, pattern: str = "**/*", endings: Sequence[str] = ENDINGS) -> dict[str, list[Path]]:
    """Return the files in a task's folder and its subfolders by split, sorted by name.

    The split is a word of the file's stem, or else of its folder's name: mmlu_anatomy_dev.csv,
    validation-00000-of-00001.parquet, test/algebra/7.json. Raises UserError if there is no file.
    """
    named = [p for p in folder.glob(pattern) if p.name.lower().endswith(tuple(endings))] if folder.is_dir() else []
    hidden = {p for p in named if any(part.startswith((".", "__")) for part in p.relative_to(folder).parts)}
    paths = sorted(p for p in named if p not in hidden and p.is_file())
    if not paths:
        wanted = ", ".join("*" + ending for ending in endings) if pattern == "**/*" else pattern
        raise UserError(f"{folder}: no file {wanted}; put the benchmark's files there")
    splits: dict[str, list[Path]] = {}
    for path in paths:
        words = [word for part in path.relative_to(folder).parts for word in _words(part)]
        split = next((SPLITS[word] for word in reversed(words) if word in SPLITS), "test")
        splits.setdefault(split, []).append(path)
    return splits


def label(path: Path, folder: Path, task: str) -> str:
    """Return a file's label, in lower case with _: its name without task, split and numbers; else its folder's name; else the
    task's name.

    >>> root = Path("mmlu")
    >>> [label(root / name, root, "mmlu") for name in ("mmlu_us_law_test.csv", "us_law/dev-00000-of-00001.parquet")]
    ['us_law', 'us_law']
    """
    prefix = task.lower().split("_")
    for part in reversed(path.relative_to(folder).parts):
        words = _words(part)[: -1 if part == path.name else None]
        words = words[len(prefix) :] if words[: len(prefix)] == prefix else words
        words = [word for word in words if word not in SPLITS and not word.isdigit() and word not in ("of", "jsonl", "csv")]
        if words:
            return "_".join(words)
    return task.lower()


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[-_. ]+", name.lower()) if word]


def read(path: Path, columns: tuple[str, ...] | None = None) -> list[dict]:
    """Return the rows of a file. columns: names for a CSV file without a header. A plain text is one row {"text"}."""
    name = path.name.lower().removesuffix(".gz")
    if name.endswith((".csv", ".tsv")):
        return list(csv_rows(path, columns, "\t" if name.endswith(".tsv") else ","))
    if name.endswith(".parquet"):
        return [row for _, row in parquet_rows(os.fspath(path))]
    if name.endswith(".json"):
        return _whole(path)
    if name.endswith(TEXTS):
        return [{"text": decoded(path)}]
    return _labelled(path, list(json_lines(path)))


def _labelled(path: Path, rows: list[dict]) -> list[dict]:
    labels = path.with_name(path.stem + LABELS)
    if not labels.is_file():
        return rows
    values = decoded(labels).split()
    if len(values) != len(rows):
        raise UserError(f"{labels}: {len(values)} labels for the {len(rows)} rows of {path.name}")
    return [{"label": int(value) if value.isdigit() else value} | row for value, row in zip(values, rows)]


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
    """Yield the rows of a CSV file. columns: names for a file without a header; None: the first row has the names."""
    lines = io.StringIO(decoded(path), newline="")
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
        raise UserError(f"{path}: line {reader.line_num}: {error}; fix the file") from None


def content(path: Path) -> bytes:
    """Return the bytes of a file, decompressed, without a byte order mark."""
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    return raw.removeprefix(b"\xef\xbb\xbf")


def decoded(path: Path) -> str:
    """Return the text of a file. Raises UserError if it is not UTF-8."""
    try:
        return content(path).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not valid UTF-8; convert the file to UTF-8") from None


def digest(path: Path) -> str:
    return "sha256:" + hashlib.sha256(content(path)).hexdigest()


def _whole(path: Path) -> list[dict]:
    """Read a JSON file: one array, or an object with one under data, rows, examples or records; else JSON lines."""
    try:
        value = json.loads(content(path))
    except (ValueError, RecursionError):
        return list(json_lines(path))
    if isinstance(value, dict):
        records = wrapped(value)
        value = [value] if records is None else records
    return [
        row if isinstance(row, dict) else {"malformed": f"row {n} is a JSON {type(row).__name__}"}
        for n, row in enumerate(value)
    ]


def checksum(paths: Sequence[Path]) -> str:
    """Return a checksum of the contents of files, in this order."""
    whole = hashlib.sha256()
    for path in paths:
        whole.update(hashlib.sha256(content(path)).digest())
    return "sha256:" + whole.hexdigest()


class Data(NamedTuple):
    """rows: a reader for each split. checksum: of the files, or the name of data without any. folder: of the files, or None."""

    rows: dict[str, Callable[[], list[dict]]]
    checksum: str
    folder: Path | None = None


def open_data(
    name: str,
    values: Mapping[str, Any],
    settings: TaskSettings,
    problems: Problems,
    *,
    endings: Sequence[str] = ENDINGS,
    find: Callable[[Path], dict[str, list[Path]]] | None = None,
    read: Callable[[Path], list[dict]] = read,
) -> Data:
    """Return the data of a task. A file without rows becomes a problem when it is read.

    Args:
      values: the task's settings. endings: of the files' names.
      find: returns the files of a folder by split; None: those that `files` matches. read: returns the rows of a file.
    Raises: UserError for missing data.
    """
    data = values.get("data") or ""
    if data.startswith("builtin:"):
        return Data(_made(data.removeprefix("builtin:")), data)
    if data not in ("", "builtin") and not Path(data).is_file():
        raise UserError(f"task {name}: data: {data!r} is neither builtin:NAME nor a file beside the task's")
    if (folder := folder_of(name, values, settings)) is None:
        text = json.dumps(values["items"], sort_keys=True, default=str)
        return Data({"builtin": lambda: list(values["items"])}, "sha256:" + hashlib.sha256(text.encode()).hexdigest())
    pattern = values.get("files", "**/*") if data in ("", "builtin") else Path(data).name
    paths = find(folder) if find else find_files(folder, pattern, endings)

    def reader(of_split: Sequence[Path]) -> list[dict]:
        by_file = {path: read(path) for path in of_split}
        for path in (path for path, rows in by_file.items() if not rows):
            problems.add("empty_files", str(path.relative_to(folder)))
        return [row for rows in by_file.values() for row in rows]

    rows = {split: functools.partial(reader, some) for split, some in paths.items()}
    return Data(rows, checksum([path for split in sorted(paths) for path in paths[split]]), folder)


def folder_of(name: str, values: Mapping[str, Any], settings: TaskSettings) -> Path | None:
    """Return the folder of a task's files: that of its file `data`, DIR/<its name> or DIR/<its `folder`>.

    None: it has no files, or `items` and no folder. Raises: UserError without a data_dir.
    """
    data, inside = values.get("data") or "", values.get("folder", name)
    if data.startswith("builtin:"):
        return None
    if data not in ("", "builtin"):
        return Path(data).parent
    folder = settings.data_dir and Path(settings.data_dir) / name
    folder = folder if folder is None or folder.is_dir() else folder.with_name(inside)
    if values.get("items") and (folder is None or not folder.is_dir()):
        return None
    if folder is None:
        raise UserError(f"task {name}: --config.data_dir is missing: name the folder that holds {inside}/")
    return folder


def check_folder(name: str, spec: Mapping[str, Any], settings: TaskSettings) -> None:
    """Raise UserError if a task needs files and there are none. Reads no file."""
    values = {**spec, **(settings.options.get(spec["kind"]) or {})}
    folder = None if values.get("data") or values.get("prompts") else folder_of(name, values, settings)
    if folder and not any(path.is_file() for path in folder.rglob("*")):
        names = {name, str(values.get("folder", name))}
        if (right := _right_folder(Path(settings.data_dir), names)) is not None:
            raise UserError(f"task {name}: data_dir={settings.data_dir} holds no {name}/: set --config.data_dir={right}")
        find_files(folder, values.get("files", "**/*"))  # raises an error that says which files it looks for


def _right_folder(data_dir: Path, names: set[str]) -> Path | None:
    """Return the data_dir to name instead: the one above or below it that holds a task's folder."""
    if data_dir.absolute().name in names:
        return data_dir.parent if data_dir.name else data_dir.absolute().parent
    below = [path.parent for name in sorted(names) for path in data_dir.glob(f"*/{name}") if path.is_dir()]
    return below[0] if len(set(below)) == 1 else None


def _made(name: str) -> dict[str, Callable[[], list[dict]]]:
    """Return a reader of each split of a task of data/tasks, "NAME?option=value&…"."""
    from data import tasks

    name, _, options = name.partition("?")

    def reader(split: str, most: int | None) -> list[dict]:
        return list(itertools.islice(tasks.task(name, split, 0, dict(parse_qsl(options, keep_blank_values=True))), most))

    return {"train": functools.partial(reader, "train", EXAMPLES), "validation": functools.partial(reader, "valid", None)}
