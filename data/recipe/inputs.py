"""The files of a run, grouped into units of work."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from data.sources import archives, files
from lm.errors import UserError, naming

# A unit ends with the file that reaches its bytes or files. In an input below 256 MB units are smaller, about UNITS of them, so
# that all workers have some. Those of a larger input stay the same if files are added behind.
UNIT_BYTES, MIN_UNIT_BYTES, UNITS, UNIT_FILES = 8 << 20, 1 << 20, 32, 4096


class Unit(NamedTuple):
    """Files that one worker reads. files: (path, id in its source). name: NUMBER-HASH, of the files' ids, sizes and times."""

    name: str
    number: int
    files: tuple[tuple[str, str], ...]
    bytes: int


def units(files: Iterable[tuple[str, str]], max_bytes: int | None = None) -> list[Unit]:
    """Group (path, id), in order, into units. max_bytes: see `archives.Options`; it limits the sizes that are counted."""

    sized = []  # (path, id, bytes that are counted, what names the file)
    for path, id in files:
        size, state = _state(path)
        capped = max_bytes is not None and path.startswith((archives.TFDS, archives.INSTALLATION))
        sized.append((path, id, min(size, max_bytes) if capped else size, (id, size, state)))
    most = min(UNIT_BYTES, max(MIN_UNIT_BYTES, sum(size for _, _, size, _ in sized) // UNITS))
    found: list[Unit] = []
    begin, size = 0, 0
    for end, file in enumerate(sized, 1):
        size += file[2]
        if size >= most or end - begin >= UNIT_FILES or end == len(sized):
            some = sized[begin:end]
            name = f"{len(found):05d}-{digest([state for *_, state in some])}"
            found.append(Unit(name, len(found), tuple((path, id) for path, id, *_ in some), size))
            begin, size = end, 0
    return found


def _state(path: str) -> tuple[int, Any]:
    """Return the size of a file, folder, object or dataset, and what changes when it does."""
    if path.startswith(archives.TFDS):
        from data.sources import tfds_source

        files = [os.stat(file) for file in tfds_source.prepared_files(path.removeprefix(archives.TFDS))]
        return sum(file.st_size for file in files), max((file.st_mtime_ns for file in files), default=0)
    if path.startswith(archives.INSTALLATION):
        from data.sources import python_installation

        files = [(id, os.stat(file)) for id, file in python_installation.files()]
        return sum(file.st_size for _, file in files), digest([(id, file.st_size, file.st_mtime_ns) for id, file in files])
    if "://" in path:
        import fsspec

        system, inside = fsspec.core.url_to_fs(path)
        about = system.info(inside)
        return about.get("size") or 0, str(system.ukey(inside))
    try:
        if not os.path.isdir(path):
            about = os.stat(path)
            return about.st_size, about.st_mtime_ns
        size, seen = 0, []  # a source tree or a repository
        for folder, folders, names in os.walk(path):
            folders[:] = sorted(name for name in folders if name != ".git")  # which is not read
            for name in sorted(names):
                about = os.lstat(os.path.join(folder, name))
                size += about.st_size
                seen.append((folder, name, about.st_size, about.st_mtime_ns))
        return size, digest(seen)
    except OSError:  # the reader will say why
        return 0, None


def inputs(text: str, read: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (path, id) of all input files, in order; an id begins with the name of its source.

    text: FILES or NAME=FILES, several with commas between. A path that exists is no NAME=FILES.
    Raises: UserError: nothing is there.
    """
    found = []
    for part in [text] if os.path.exists(text) else filter(None, (part.strip() for part in text.split(","))):
        name, where = files.named(part)
        with naming("input"):
            some = list(archives.units(where, archives.Options(**read)))
        if where == archives.INSTALLATION and name is None:  # its sources have names
            found += [(path, f"{id}/") for path, id in some]
        else:
            found += [(path, f"{name or 'input'}/{id}") for path, id in some]
    if not found:
        raise UserError(f"input={text!r} names no file; set --config.input to files, folders or globs")
    return found


def digest(value: Any) -> str:
    """Return 12 hexadecimal digits of the SHA-256 of a value that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
