"""Find a task's data: a folder in data_dir, a file or items of its own, a TFDS name, or a task that is made on the spot."""

import difflib
import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from lm.errors import UserError
from lm.evals.stats.joining import Problems
from lm.evals.task import TaskSettings
from lm.evals.tasks import items as files

EXAMPLES = 100  # of a task that is made on the spot, for few-shot prompts


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
    endings: Sequence[str] = files.ENDINGS,
    find: Callable[[Path], dict[str, list[Path]]] | None = None,
    read: Callable[[Path], list[dict]] = files.read,
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
    if data.startswith("tfds:"):
        return Data(_tfds(data.removeprefix("tfds:"), name), data)
    if data not in ("", "builtin") and not Path(data).is_file():
        raise UserError(f"task {name}: data: {data!r} is neither builtin:NAME, tfds:NAME nor a file beside the task's")
    if (folder := folder_of(name, values, settings)) is None:
        text = json.dumps(values["items"], sort_keys=True, default=str)
        return Data({"builtin": lambda: list(values["items"])}, "sha256:" + hashlib.sha256(text.encode()).hexdigest())
    pattern = values.get("files", "**/*") if data in ("", "builtin") else Path(data).name
    paths = find(folder) if find else files.find_files(folder, pattern, endings)

    def reader(of_split: Sequence[Path]) -> list[dict]:
        by_file = {path: read(path) for path in of_split}
        for path in (path for path, rows in by_file.items() if not rows):
            problems.add("empty_files", str(path.relative_to(folder)))
        return [row for rows in by_file.values() for row in rows]

    checksum = files.checksum([path for split in sorted(paths) for path in paths[split]])
    return Data({split: functools.partial(reader, some) for split, some in paths.items()}, checksum, folder)


def folder_of(name: str, values: Mapping[str, Any], settings: TaskSettings) -> Path | None:
    """Return the folder of a task's files: that of its file `data`, DIR/<its name> or DIR/<its `folder`>.

    None: it has no files, or `items` and no folder. Raises: UserError without a data_dir.
    """
    data, inside = values.get("data") or "", values.get("folder", name)
    if data.startswith(("builtin:", "tfds:")):
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
        files.find_files(folder, values.get("files", "**/*"))  # raises an error that says which files it looks for


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


def _tfds(name: str, task: str) -> dict[str, Callable[[], list[dict]]]:
    """Return a reader for each split of a prepared TensorFlow Dataset `dataset[/config][:version]`.

    Bytes become text and arrays become lists. Raises: UserError if the dataset is unknown, not prepared, or stored in a format
    without random access.
    """
    import tensorflow_datasets as tfds

    from data.sources import tfds_source

    where = f"task {task}: data: tfds:{name}"
    if not tfds_source.is_known(name):
        near = difflib.get_close_matches(name, tfds_source.names(), n=1)
        raise UserError(f"{where}: TFDS knows no such dataset" + (f"; did you mean {near[0]}?" if near else ""))
    try:
        builder = tfds.builder(name)
        splits = {files.SPLITS.get(split, split): builder.as_data_source(split) for split in builder.info.splits}
    except Exception as error:  # the dataset's own code
        raise UserError(f"{where}: {type(error).__name__}: {' '.join(str(error).split())[:200]}") from None
    if not splits:
        raise UserError(f"{where}: not prepared; prepare it with file_format=array_record")
    return {split: lambda rows=rows: [_plain(rows[i]) for i in range(len(rows))] for split, rows in splits.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value
