"""Save files whole or not at all: write beside the file, sync it to the disk, then rename. Set damaged ones aside.

Without the sync, a failing disk or a loss of power may leave an empty file of that name.
"""

import contextlib
import errno
import itertools
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any


@contextlib.contextmanager
def replacing(path: Path, mode: str = "w", shared: bool = False) -> Iterator[IO]:
    """Yield a file beside `path`, whose folder is made. The block may close it.

    It replaces `path` when the block ends. If the block fails, it is deleted.

    shared: several processes may write `path` at once. Otherwise the next one replaces what a killed process left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new" if shared else f"{path.name}.new")
    try:
        with temporary.open(mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync(folder: Path) -> None:
    """Write the names of a folder's files through to the disk, where the file system can."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(handle)


@contextlib.contextmanager
def naming(file: Path) -> Iterator[None]:
    """Add the file name to the error of a full disk, which has none."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:  # without a number, str(error) would lose its message
            error.filename = error.filename or str(file)
        raise


def write(path: Path, content: str | bytes) -> None:
    with naming(path), replacing(path, "wb", shared=True) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: object) -> None:
    with replacing(path) as file:
        file.write(json.dumps(value, indent=1) + "\n")


def write_lines(path: Path, rows: Iterable[Mapping], ensure_ascii: bool = False) -> None:
    """Write JSON lines. ensure_ascii: escape what is not ASCII, as text with lone surrogates needs."""
    with replacing(path) as file:
        file.writelines(json.dumps(row, ensure_ascii=ensure_ascii) + "\n" for row in rows)


def plain(value: Any) -> Any:
    """Return `value` as JSON has it: mappings, lists, strings, finite numbers (others become None). The rest become strings."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # NumPy and JAX arrays and scalars
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def place_aside(path: Path, name: str | None = None) -> Path:
    """Return the path that `set_aside` would rename to: NAME.damaged in the same folder, or NAME.damaged-1, … if it exists.

    name: used instead of the path's own name.
    """
    names = (f"{name or path.name}.damaged{n and f'-{n}' or ''}" for n in itertools.count())
    return next(place for name in names if not (place := path.with_name(name)).exists())


def set_aside(path: Path, name: str | None = None) -> Path:
    """Rename a damaged file or folder to `place_aside`, so that its owner can inspect it, and return that path."""
    place = place_aside(path, name)
    os.rename(path, place)
    return place
