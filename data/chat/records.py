"""Read the raw records of an input: one dict each, with its location.

An input is files (JSON lines, JSON, Parquet; plain, gzip or zstd), a TFDS name, or a built-in task.
"""

import difflib
import io
import itertools
import json
import os
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import numpy as np

from data.sources import files, reading, streams
from lm.errors import UserError, hub_hint

BUILTIN = "builtin:"
WRAPPERS = ("data", "rows", "examples", "records")  # keys of the list of records, if a file is one object
EXTENSIONS = (*files.JSON_LINES, *files.PARQUET, ".json")


class Record(NamedTuple):
    values: dict[str, Any]
    where: str  # for errors: "file:line" or the like
    folder: str | None = None  # of the data file, for paths of images and audio


def is_builtin(input: str) -> bool:
    """Return whether `input` names a task of data/tasks, which has its own splits and is endless."""
    return input.startswith(BUILTIN)


def read_builtin(input: str, split: str, seed: int) -> Iterator[Record]:
    """Yield the records of "builtin:NAME?key=value&…"; `train` is endless.

    Raises: UserError for an unknown name, option or value.
    """
    from data.tasks import task

    name, _, query = input.removeprefix(BUILTIN).partition("?")
    try:
        options = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=True)) if query else {}
    except ValueError:
        raise UserError(f"data.input={input!r}: write the options like {BUILTIN}{name}?key=value&key=value") from None
    for n, values in enumerate(task(name, split, seed, options)):
        yield Record(values, f"{BUILTIN}{name} {split}[{n}]")


def read_records(input: str) -> Iterator[Record]:
    """Yield all records of files or of a TFDS dataset, in order. Memory is bounded, except for a .json file with one array.

    Args: input: a file, folder or glob, several separated by commas, or a TFDS name (its split `train`).
    Raises: UserError if nothing has that name, or with the location of unreadable data.
    """
    if _is_path(input):
        for path in files.find(input, EXTENSIONS):
            yield from _read_file(path)
        return

    rows, features = _tfds(input).open_rows(input)
    for n in range(len(rows)):
        values = {key: _plain(value, features[key]) for key, value in rows[n].items()}
        yield Record(values, f"{input} train[{n}]")


def check(input: str, seed: int) -> None:
    """Raise UserError if `input` is no file of records, no built-in task and no TFDS dataset. Reads no file."""
    if is_builtin(input):
        next(read_builtin(input, "train", seed))
    elif _is_path(input):
        files.first_files(input, EXTENSIONS)
    else:
        _tfds(input)


def first_records(input: str, most: int = 1) -> Iterator[Record]:
    """Yield at most this many records of the first file of each part of an input of files. Raises: UserError."""
    if not is_builtin(input) and _is_path(input):
        for path in files.first_files(input, EXTENSIONS):
            yield from itertools.islice(_read_file(path), most)


def _is_path(input: str) -> bool:
    return files.is_path(input) or input.endswith(EXTENSIONS)


def _tfds(input: str):
    """Return data.sources.tfds_source. Raises: UserError for no dataset of it, with the built-in task of this name if any."""
    from data.sources import tfds_source

    if tfds_source.is_known(input):
        return tfds_source
    if "/" in input:
        raise files.missing(input)
    from data.tasks import TASKS

    near = difflib.get_close_matches(input.lower(), TASKS, n=1)
    hint = (
        f"did you mean {BUILTIN}{near[0]}?" if near else f"name files, a dataset, or {BUILTIN}TASK{hub_hint(input, 'dataset')}"
    )
    raise UserError(f"data.input={input!r} is neither a path nor a TFDS dataset; {hint}")


def _read_file(path: str) -> Iterator[Record]:
    folder = None if "://" in path else os.path.dirname(path) or "."
    try:
        if path.endswith(files.PARQUET):
            for number, row in reading.parquet_rows(path):
                yield Record(row, f"{path}: row {number}", folder)
        elif path.endswith(files.JSON_LINES) or _holds_lines(path):
            for number, row in reading.json_lines(path):
                yield Record(row, f"{path}:{number}", folder)
        else:
            for number, row in enumerate(_objects(path), start=1):
                yield Record(row, f"{path}: item {number}", folder)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; repair the file or leave it out of data.input") from error
    except streams.Unreadable as error:
        raise reading.unreadable(path, error) from error


def _holds_lines(path: str) -> bool:
    """Return whether a .json file is JSON lines, as many published ones are: its first line is an object."""
    with streams.open_regular(path) as file:
        first = next((line for line in file if not line.isspace()), b"[]")
    try:
        value = json.loads(first.removeprefix(b"\xef\xbb\xbf").decode())
    except ValueError:
        return False
    return isinstance(value, dict) and wrapped(value) is None


def wrapped(value: dict) -> list | None:
    """Return the list of records that an object such as {"version": 1, "data": […]} holds, or None."""
    return next((value[key] for key in WRAPPERS if isinstance(value.get(key), list)), None)


def _objects(path: str) -> list[dict]:
    """Return the objects of an array, which may be inside an object such as {"version": 1, "data": […]}."""
    with io.TextIOWrapper(streams.open_regular(path), encoding="utf-8-sig") as file:
        try:
            whole = json.load(file)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: not JSON ({error}); write an array of objects, or one object a line") from error
    if isinstance(whole, dict):
        records = wrapped(whole)
        whole = [whole] if records is None else records
    for number, item in enumerate(whole if isinstance(whole, list) else [whole], start=1):
        if not isinstance(item, dict):
            raise UserError(f"{path}: item {number} is a JSON {type(item).__name__}, not an object; write objects")
    return whole


def _plain(value: Any, feature: Any) -> Any:
    """Convert a TFDS value to JSON types: bytes to text, arrays to lists, and dicts of lists to lists of dicts."""
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.FeaturesDict):
        return {key: _plain(item, feature[key]) for key, item in value.items()}
    if isinstance(feature, tfds.features.Sequence):
        if isinstance(feature.feature, tfds.features.FeaturesDict):
            columns = {key: _plain(item, tfds.features.Sequence(feature.feature[key])) for key, item in value.items()}
            return [dict(zip(columns, row)) for row in zip(*columns.values())]
        return [_plain(item, feature.feature) for item in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
