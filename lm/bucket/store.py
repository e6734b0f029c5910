"""The objects below one URL of a bucket: list, fetch, put and remove them. Every error is one line that names the object.

fsspec opens gs:// with gcsfs and s3:// with s3fs, which send failed requests again. They find credentials, regions and
endpoints as the tools of Google and Amazon do: `gcloud auth application-default login`, ~/.aws, AWS_PROFILE, AWS_ENDPOINT_URL,
the machine's own role.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from lm.errors import UserError

PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}
AT_ONCE = 8  # objects
WHOLE = 64 << 20  # bytes; a smaller file is read before it is sent, so it may grow meanwhile
CONNECT, ANSWER = 30, 60  # seconds for a connection to Google, and until the next bytes of an answer, before another try


class Entry(NamedTuple):
    """The size of an object in bytes, and a tag that changes when its content does."""

    size: int
    tag: str


class Refused(UserError):
    """What another try will not change: no such bucket, no permission, no credentials, a missing package."""


def is_url(path: object) -> bool:
    return str(path).startswith(tuple(f"{scheme}://" for scheme in PACKAGES))


def open_system(url: str):
    """Return (fsspec's file system, the path in it) of a URL. Raises: UserError: its package is missing, or it is no URL."""
    import fsspec

    options = {}
    try:
        if url.startswith("gs://"):  # gcsfs would wait five minutes for an answer, and end the fetch of a large file after that
            import aiohttp

            options = {"requests_timeout": aiohttp.ClientTimeout(total=None, sock_connect=CONNECT, sock_read=ANSWER)}
        return fsspec.core.url_to_fs(url, use_listings_cache=False, **options)
    except ImportError as error:
        package = PACKAGES.get(url.partition("://")[0])
        cure = f"needs {package}: pip install -r requirements/buckets.txt, or pip install {package}" if package else str(error)
        raise Refused(f"{url} {cure}") from None
    except ValueError as error:
        raise Refused(f"{url}: {error}") from None


@contextlib.contextmanager
def plainly(url: str) -> Iterator[None]:
    """Turn the errors of a driver into a UserError that begins with the URL; Refused if another try is of no use."""
    try:
        yield
    except (UserError, FileExistsError):
        raise
    except Exception as error:  # each driver and its HTTP client have types of their own
        short = " ".join(str(error).split())[:200]
        if isinstance(error, FileNotFoundError):
            raise Refused(f"{url}: there is no such bucket or object ({short})") from error
        if isinstance(error, PermissionError):
            raise Refused(f"{url}: access is denied ({short})") from error
        if any(kind.__name__ in ("NoCredentialsError", "DefaultCredentialsError") for kind in type(error).__mro__):
            cure = "aws configure" if url.startswith("s3") else "gcloud auth application-default login"
            raise Refused(f"{url}: no credentials were found: {cure}, or set those of the environment") from error
        raise UserError(f"{url} cannot be reached ({type(error).__name__}: {short})") from error


class Store:
    """The objects below a URL, by their names relative to it."""

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        self._system, self._root = open_system(self.url)

    def list(self) -> dict[str, Entry]:
        """Return all objects, sorted by name. If the URL is itself an object, its name is ""."""
        with plainly(self.url):
            listed = self._system.find(self._root, detail=True)
        entries = {}
        for path, about in sorted(listed.items()):
            if about.get("type", "file") == "file" and not path.endswith("/") and "/../" not in f"/{path}/":
                tag = next((about[key] for key in ("generation", "ETag", "etag", "mtime") if about.get(key)), "")
                entries[path[len(self._root) :].lstrip("/")] = Entry(int(about.get("size") or 0), str(tag))
        return entries

    def fetch(self, places: Mapping[str, Path]) -> None:
        """Write objects to files, several at a time. A file appears under its name when all are whole."""
        parts = {name: path.with_name(f"{path.name}.new") for name, path in places.items()}
        with plainly(self.url):
            self._system.get([self._path(name) for name in parts], [str(part) for part in parts.values()], batch_size=AT_ONCE)
        for name, part in parts.items():
            part.replace(places[name])

    def put(self, names: Iterable[str], folder: Path) -> None:
        """Upload files of a folder, several at a time. An object is replaced as a whole. A file that is gone is left out."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda name: self._put(name, folder / name), names))  # the first error cancels those not begun

    def _put(self, name: str, path: Path) -> None:
        with plainly(f"{self.url}/{name}"):
            try:
                content = path.read_bytes() if path.stat().st_size <= WHOLE else None
            except FileNotFoundError:
                return
            if content is None:
                self._system.put_file(str(path), self._path(name))
            elif self.url.startswith("gs://") and (content.endswith(b"\r") or b"\n--==0==" in content):
                # gcsfs sends small objects between lines "--==0==" that end in "\n" alone: a "\r" before them gets lost.
                with self._system.open(self._path(name), "wb", autocommit=False) as alone:
                    alone.write(content)
                alone.commit()
            else:
                self._system.pipe_file(self._path(name), content)

    def read(self, name: str) -> bytes | None:
        """Return an object's content, or None if there is none."""
        with plainly(f"{self.url}/{name}"), contextlib.suppress(FileNotFoundError):
            return self._system.cat_file(self._path(name))
        return None

    def write(self, name: str, content: bytes, *, new: bool = False) -> bool:
        """Write an object. new: only if there is none yet; return whether it was written."""
        with plainly(f"{self.url}/{name}"), contextlib.suppress(FileExistsError):
            self._system.pipe_file(self._path(name), content, **({"mode": "create"} if new else {}))
            return True
        return False

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects one after another; those that are gone are left out."""
        for name in names:
            with plainly(f"{self.url}/{name}"), contextlib.suppress(FileNotFoundError):
                self._system.rm_file(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root
