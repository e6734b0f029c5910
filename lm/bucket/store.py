"""The objects below one URL of a bucket: list, fetch, put and remove them. Every error is one line that names the object.

fsspec opens gs:// with gcsfs and s3:// with s3fs. They find credentials, regions and endpoints as the tools of Google and
Amazon do: `gcloud auth application-default login`, ~/.aws, AWS_PROFILE, AWS_ENDPOINT_URL, the machine's own role.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, ParamSpec, TypeVar

from lm.errors import UserError

PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}
AT_ONCE = 8  # objects
WHOLE = 64 << 20  # bytes; a smaller file is read before it is sent, so it may grow meanwhile
PAUSES = (1, 3, 9)  # seconds before a read is tried again
CONNECT, ANSWER = 30, 60  # seconds for a connection to Google, and until the next bytes of an answer, before another try

P, T = ParamSpec("P"), TypeVar("T")


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

    try:
        return fsspec.core.url_to_fs(url, use_listings_cache=False, **_options(url))
    except ImportError as error:
        package = PACKAGES.get(url.partition("://")[0])
        cure = f"needs {package}: pip install -r requirements/buckets.txt, or pip install {package}" if package else str(error)
        raise Refused(f"{url} {cure}") from None
    except ValueError as error:
        raise Refused(f"{url}: {error}") from None


def _options(url: str) -> dict:
    """Options of a driver. gcsfs would wait five minutes for an answer, and end the fetch of a large file after that time."""
    if not url.startswith("gs://"):
        return {}
    import aiohttp

    return {"requests_timeout": aiohttp.ClientTimeout(total=None, sock_connect=CONNECT, sock_read=ANSWER)}


@contextlib.contextmanager
def plainly(url: str) -> Iterator[None]:
    """Turn the errors of a driver into a UserError that begins with the URL; Refused if another try is of no use."""
    try:
        yield
    except (UserError, FileExistsError):
        raise
    except FileNotFoundError as error:
        raise Refused(f"{url}: there is no such bucket or object ({_short(error)})") from error
    except PermissionError as error:
        raise Refused(f"{url}: access is denied ({_short(error)})") from error
    except Exception as error:  # each driver and its HTTP client have types of their own
        if any(kind.__name__ in ("NoCredentialsError", "DefaultCredentialsError") for kind in type(error).__mro__):
            cure = "aws configure" if url.startswith("s3") else "gcloud auth application-default login"
            raise Refused(f"{url}: no credentials were found: {cure}, or set those of the environment") from error
        raise UserError(f"{url} cannot be reached ({type(error).__name__}: {_short(error)})") from error


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def patient(call: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function: a UserError that is not Refused is followed by another try, up to len(PAUSES) times."""

    @functools.wraps(call)
    def patiently(*args: P.args, **options: P.kwargs) -> T:
        for pause in PAUSES:
            try:
                return call(*args, **options)
            except Refused:
                raise
            except UserError:
                time.sleep(pause)
        return call(*args, **options)

    return patiently


class Store:
    """The objects below a URL, by their names relative to it."""

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        self._system, self._root = open_system(self.url)

    @patient
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
        """Write objects to files, several at a time. A file appears under its name when it is whole."""

        def one(name: str) -> None:
            path = places[name]
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f"{path.name}.new")
            try:
                self._get(name, part)
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)

        self._each(one, places)

    @patient
    def _get(self, name: str, path: Path) -> None:
        with plainly(self._url(name)):
            self._system.get_file(self._path(name), str(path))

    def put(self, names: Iterable[str], folder: Path) -> None:
        """Upload files of a folder, several at a time. An object is replaced as a whole. A file that is gone is left out."""

        def one(name: str) -> None:
            path = folder / name
            with plainly(self._url(name)):
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

        self._each(one, names)

    @patient
    def read(self, name: str) -> bytes | None:
        """Return an object's content, or None if there is none."""
        with plainly(self._url(name)):
            try:
                return self._system.cat_file(self._path(name))
            except FileNotFoundError:
                return None

    @patient
    def write(self, name: str, content: bytes, *, new: bool = False) -> bool:
        """Write an object. new: only if there is none yet; return whether it was written."""
        with plainly(self._url(name)):
            try:
                self._system.pipe_file(self._path(name), content, **({"mode": "create"} if new else {}))
            except FileExistsError:
                return False
        return True

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects one after another; those that are gone are left out."""
        for name in names:
            with plainly(self._url(name)), contextlib.suppress(FileNotFoundError):
                self._system.rm_file(self._path(name))

    def _each(self, do: Callable[[str], None], names: Iterable[str]) -> None:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(do, names))  # the first error cancels those that have not begun

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _url(self, name: str) -> str:
        return f"{self.url}/{name}" if name else self.url
