"""Documents of a git repository at HEAD, bare or with a worktree, by the program `git`.

The repository is a stranger's: hooks, filters, file watchers and remote helpers do not run, and objects that a partial clone
lacks are not fetched.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from data.sources import streams
from data.sources.archives.code import files, tree
from data.sources.archives.code.licences import is_licence_file, licence_of, nearest
from data.sources.archives.encodings import decode
from data.sources.source import Document, Quarantined
from data.sources.streams import Unreadable

_SAFE = ("-c", "safe.directory=*", "-c", "core.fsmonitor=false", "-c", "protocol.allow=never", "--no-pager")
_ENVIRONMENT = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_OPTIONAL_LOCKS": "0",
    "LC_ALL": "C",
}
_MAX_NAME_BYTES = 1 << 16


class _Blob(NamedTuple):
    digest: str
    size: int
    path: str


def is_repository(folder: str) -> bool:
    """Return whether a folder is a git repository: a worktree with `.git`, or a bare one."""
    return os.path.lexists(os.path.join(folder, ".git")) or _is_bare(folder)


def read(folder: str, id: str) -> Iterator[Document | Quarantined]:
    """Yield the source files of a repository at HEAD in order of paths; links and submodules are left out.

    Without the program `git`, the files of the worktree are read as they are. Raises: Unreadable.
    """
    if shutil.which("git") is None:
        if _is_bare(folder):
            raise Unreadable("git is not installed")
        yield from tree.read(folder, id)
        return
    _check_regular(folder)
    commit = _output(folder, "rev-parse", "--verify", "--quiet", "HEAD^{commit}").decode().strip()
    if not commit:
        raise Unreadable("no commit in git repository")
    licences = dict(_licences(folder, commit))
    with _Objects(folder) as objects:
        for blob in _blobs(folder, commit):
            origin = os.path.join(folder, blob.path)
            reason = files.refused_name(blob.path)
            if not reason and blob.size > files.MAX_CODE_BYTES:
                reason = f"code over {files.MAX_CODE_BYTES >> 20} MiB"
            if reason:
                yield Quarantined(origin, "", reason)
                continue
            data = objects.read(blob)
            try:
                licence = nearest(blob.path, licences)
                yield files.document(data, blob.path, f"{id}/{blob.path}", origin, licence, {"commit": commit})
            except Unreadable as error:
                yield Quarantined(origin, "", error.reason)


class _Objects:
    """A running `git cat-file --batch`, which gives the content of one object after the other."""

    def __init__(self, folder: str):
        self._git = _start(folder, "cat-file", "--batch", stdin=subprocess.PIPE)

    def __enter__(self) -> _Objects:
        return self

    def __exit__(self, *_) -> None:
        _end(self._git)

    def read(self, blob: _Blob) -> bytes:
        """Return the bytes of a blob. Raises: Unreadable if the repository is damaged."""
        try:
            self._git.stdin.write(blob.digest.encode() + b"\n")
            self._git.stdin.flush()
        except OSError as error:
            raise Unreadable("damaged git repository") from error
        header = self._git.stdout.readline(1 << 10).split()
        if len(header) != 3 or header[1] != b"blob" or int(header[2]) != blob.size:
            raise Unreadable("damaged git repository")
        data = self._git.stdout.read(blob.size)
        if len(data) != blob.size or self._git.stdout.read(1) != b"\n":
            raise Unreadable("damaged git repository")
        return data


def _blobs(folder: str, commit: str) -> Iterator[_Blob]:
    """Yield the files of a commit, in git's order: by the bytes of their paths."""
    git = _start(folder, "ls-tree", "-r", "-z", "-l", "--full-tree", commit)
    try:
        for entry in _split(git.stdout):
            about, _, name = entry.partition(b"\t")
            mode, kind, digest, size = about.split()
            if kind == b"blob" and mode != b"120000":
                yield _Blob(digest.decode(), int(size), name.decode("utf-8", "replace"))
        if git.wait():
            raise Unreadable("damaged git repository")
    finally:
        _end(git)


def _split(stream: BinaryIO) -> Iterator[bytes]:
    left = b""
    while data := stream.read(1 << 16):
        *whole, left = (left + data).split(b"\0")
        if len(left) > _MAX_NAME_BYTES:
            raise Unreadable("name too long")
        yield from whole


def _licences(folder: str, commit: str) -> Iterator[tuple[str, str]]:
    found: set[str] = set()
    with _Objects(folder) as objects:
        for blob in _blobs(folder, commit):
            inside = os.path.dirname(blob.path)
            if inside in found or not is_licence_file(blob.path) or blob.size > files.MAX_CODE_BYTES:
                continue
            try:
                licence = licence_of(decode(objects.read(blob)))
            except Unreadable as error:
                if error.reason.startswith("damaged"):
                    raise
                continue
            if licence:
                found.add(inside)
                yield inside, licence


def _start(folder: str, *command: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen:
    where = ("--git-dir", folder) if _is_bare(folder) else ("-C", folder)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment = kept | _ENVIRONMENT | {"GIT_CEILING_DIRECTORIES": os.path.dirname(os.path.abspath(folder))}
    return subprocess.Popen(
        ["git", *_SAFE, *where, *command], stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    )


def _output(folder: str, *command: str) -> bytes:
    git = _start(folder, *command)
    try:
        return git.stdout.read(_MAX_NAME_BYTES)
    finally:
        _end(git)


def _end(git: subprocess.Popen) -> None:
    if git.poll() is None:
        git.kill()
    for pipe in (git.stdin, git.stdout):
        if pipe:
            try:
                pipe.close()
            except OSError:  # what was written was not read by a process that has ended
                pass
    git.wait()


def _is_bare(folder: str) -> bool:
    inside = {name: os.path.join(folder, name) for name in ("HEAD", "objects", "refs")}
    return os.path.isfile(inside["HEAD"]) and os.path.isdir(inside["objects"]) and os.path.isdir(inside["refs"])


def _check_regular(folder: str) -> None:
    """Raise Unreadable if git would wait for a FIFO or read a device among its own files."""
    private = folder if _is_bare(folder) else os.path.join(folder, ".git")
    if os.path.isfile(private):  # of a linked worktree or a submodule: "gitdir: PATH"
        with streams.open_regular(private) as file:
            target = file.read(_MAX_NAME_BYTES).decode("utf-8", "replace").removeprefix("gitdir:").strip()
        private = os.path.join(folder, target)
    elif not os.path.isdir(private):
        raise Unreadable("damaged git repository")
    for parent, _, names in os.walk(private):
        for name in names:
            try:
                mode = os.stat(os.path.join(parent, name)).st_mode
            except OSError:
                continue
            if not stat.S_ISREG(mode) and not stat.S_ISSOCK(mode):
                raise Unreadable("not a regular file in git repository")
