"""Documents of a folder of source code that is not a git repository, or of the files of one."""

from __future__ import annotations

import os
from collections.abc import Iterator

from data.sources import streams, walk
from data.sources.archives.code import files
from data.sources.archives.code.licences import is_licence_file, licence_of, nearest
from data.sources.archives.encodings import decode
from data.sources.source import Document, Quarantined
from data.sources.streams import Unreadable, open_regular


def read(root: str, id: str) -> Iterator[Document | Quarantined]:
    """Yield the source files below `root` in order of names; hidden names are skipped.

    A file's licence is its own SPDX mark or header, else that of the nearest licence file above it.
    """
    licences: dict[str, str] = {}
    licences.update(_licences(root, ""))
    for path, is_folder in walk.entries(root):
        inside = os.path.relpath(path, root).replace(os.sep, "/")
        if is_folder:
            licences.update(_licences(path, inside))
            continue
        reason = files.refused_name(inside)
        if reason:
            yield Quarantined(path, "", reason)
            continue
        try:
            data = _content(path)
            yield files.document(data, inside, f"{id}/{inside}", path, nearest(inside, licences), {})
        except Unreadable as error:
            yield Quarantined(path, "", error.reason)
        except OSError as error:
            yield Quarantined(path, "", streams.reason(error))


def read_file(path: str, id: str) -> Iterator[Document | Quarantined]:
    """Yield the document of one source file. Its licence is its own mark, or that of a licence file beside it."""
    name = os.path.basename(path)
    if reason := files.refused_name(name):
        raise Unreadable(reason)
    beside = dict(_licences(os.path.dirname(path) or ".", "")) if "://" not in path else {}
    yield files.document(_content(path), name, id, path, beside.get(""), {})


def _content(path: str) -> bytes:
    with open_regular(path) as file:
        return file.read(files.MAX_CODE_BYTES + 1)


def _licences(folder: str, inside: str) -> Iterator[tuple[str, str]]:
    """Yield (inside, SPDX identifier) for the first licence file of a folder that is known."""
    try:
        names = sorted(name for name in os.listdir(folder) if is_licence_file(name))
    except OSError:
        return
    for name in names:
        try:
            found = licence_of(decode(_content(os.path.join(folder, name))))
        except (Unreadable, OSError):
            continue
        if found:
            yield inside, found
            return
