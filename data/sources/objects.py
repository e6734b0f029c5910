"""Find the objects of buckets (gs://, s3://) that an input names, and open those of any URL that fsspec knows."""

import errno
import io
import re
from typing import BinaryIO

from data.sources import walk
from lm.bucket.store import Entry, Store, open_system

_seen: dict[str, Entry] = {}


def listed(url: str) -> list[str]:
    """Return the URLs of the objects that a URL names, sorted: itself, all below it, or those that match a glob.

    Hidden names are left out. Raises: UserError: the bucket cannot be read.
    """
    root = fixed(url)
    parts = url[len(root) :].strip("/").split("/")
    found = []
    for name, entry in Store(root).list().items():
        names = name.split("/")
        if any(one.startswith(".") for one in names):
            continue
        if not has_glob(url) or any(walk.matches_parts(names[: n + 1], parts) for n in range(len(names))):
            found.append(f"{root}/{name}" if name else root)
            _seen[found[-1]] = entry
    return found


def entry(url: str) -> Entry:
    """Return the size and the tag of an object that `listed` has found."""
    return _seen[url]


def content(url: str) -> bytes:
    """Return what an object holds. Raises: FileNotFoundError; UserError: the bucket cannot be read."""
    folder, _, name = url.rpartition("/")
    found = Store(folder).read(name)
    if found is None:
        raise FileNotFoundError(url)
    return found


def has_glob(url: str) -> bool:
    return re.search(r"[*?\[]", url) is not None


def fixed(url: str) -> str:
    """Return the URL up to the last folder before the first glob character; without one, the whole URL."""
    url = url.rstrip("/")
    return re.split(r"[*?\[]", url, maxsplit=1)[0].rpartition("/")[0] if has_glob(url) else url


def open_object(url: str) -> BinaryIO:
    """Open an object for reading. Every error, then and later, is an OSError, except for a missing package (UserError)."""
    system, path = open_system(url)
    return io.BufferedReader(_Object(url, system, path), 1 << 20)


class _Object(io.RawIOBase):
    """An open object, whose driver's own exceptions become OSErrors."""

    def __init__(self, url: str, system, path: str):
        self._url = url
        self._file = self._plainly(lambda: system.open(path, "rb"))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._plainly(lambda: self._file.seek(offset, whence))

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer) -> int:
        data = self._plainly(lambda: self._file.read(len(buffer)))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed and hasattr(self, "_file"):
            self._file.close()
        super().close()

    def _plainly(self, call):
        try:
            return call()
        except OSError:
            raise
        except Exception as error:  # each driver and its HTTP client have types of their own
            told = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise OSError(errno.EIO, told, self._url) from error
