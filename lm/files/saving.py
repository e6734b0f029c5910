"""Save files and folders whole or not at all: write beside them, sync to the disk, then rename. Set damaged ones aside.

Without the sync, a failing disk or a loss of power may leave an empty file of that name.
"""

import contextlib
import errno
import filecmp
import itertools
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from lm.errors import UserError


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


def check_free(folder: Path, flag: str) -> None:
    """Raise UserError if `folder` exists, unless it is an empty folder."""
    for place in (folder, *folder.parents):
        if place.exists() and not place.is_dir():
            raise UserError(f"--{flag}={folder}: {place} is a file; name a new folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"--{flag}={folder} exists and is not empty: name a new folder, since files are never overwritten")


@contextlib.contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder next to `folder`; rename it to `folder` at the end of the block.

    If `folder` holds all of its files already, with the same bytes, it is left as it is. If the block fails, the temporary
    folder is removed. The next call for the same name removes what a killed process left.
    Raises: UserError at the end of the block if `folder` is not empty, and lacks a file or holds another one.
    """
    staging = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        yield staging
        if folder.is_dir() and any(folder.iterdir()):
            check_unchanged(staging, folder)
            shutil.rmtree(staging)
        else:
            os.rename(staging, folder)  # over an empty folder, never over a full one
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def check_unchanged(new: Path, old: Path) -> None:
    """Raise UserError if the file `old` differs from `new`, or the folder `old` lacks or changes a file of `new`."""
    pairs = [(path, old / path.relative_to(new)) for path in sorted(new.rglob("*"))] if new.is_dir() else [(new, old)]
    what, kind = ("is not empty", "folder") if new.is_dir() else ("exists", "file")
    for one, other in pairs:
        if one.is_file() and not (other.is_file() and filecmp.cmp(one, other, shallow=False)):
            raise UserError(
                f"--to={old} {what}, and its {other.name} is not that of this export: name a new {kind}, since files are never "
                "overwritten"
            )
