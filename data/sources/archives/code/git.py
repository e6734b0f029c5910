"""Documents of a git repository at HEAD, bare or with a worktree, by the program `git`.

The repository is a stranger's: hooks, filters, file watchers and remote helpers do not run, and objects that a partial clone
lacks are not fetched.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from functools import partial
from typing import BinaryIO

from data.sources import streams
from data.sources.archives.code import tree
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
    with _running(folder, "rev-parse", "--verify", "--quiet", "HEAD^{commit}") as git:
        commit = git.stdout.read(_MAX_NAME_BYTES).decode().strip()
    if not commit:
        raise Unreadable("no commit in git repository")
    with _running(folder, "cat-file", "--batch", stdin=subprocess.PIPE) as objects:
        licences: dict[str, str] = {}
        with contextlib.suppress(Unreadable):  # damage is told below, after the files before it
            for inside, licence in _licences(folder, commit, objects):
                licences.setdefault(inside, licence)
        for digest, size, inside in _blobs(folder, commit):
            content, origin = partial(_content, objects, digest, size), os.path.join(folder, inside)
            yield tree.of_file(content, inside, f"{id}/{inside}", origin, nearest(inside, licences), {"commit": commit})


def _content(objects: subprocess.Popen, digest: str, size: int) -> bytes:
    """Return the bytes of a blob. Raises: Unreadable if it is too large, missing or damaged.

    objects: `git cat-file --batch`, which answers for one object after the other. size: as the blob's tree says.
    """
    if size > tree.MAX_CODE_BYTES:
        raise Unreadable(f"code over {tree.MAX_CODE_BYTES >> 20} MiB")
    try:
        objects.stdin.write(digest.encode() + b"\n")
        objects.stdin.flush()
    except OSError as error:  # it ended: git stops at some kinds of damage
        raise Unreadable("damaged git object") from error
    answer = objects.stdout.readline(1 << 10).split()
    if len(answer) != 3 or answer[1] != b"blob":
        raise Unreadable("missing git object" if answer[1:] == [b"missing"] else "damaged git object")
    data = objects.stdout.read(int(answer[2]))
    if len(data) != int(answer[2]) or objects.stdout.read(1) != b"\n":
        raise Unreadable("damaged git object")
    return data


def _blobs(folder: str, commit: str) -> Iterator[tuple[str, int, str]]:
    """Yield (digest, bytes, path) of the files of a commit, in git's order: by the bytes of their paths.

    The bytes are 0 if git cannot find the object.
    """
    with _running(folder, "ls-tree", "-r", "-l", "-z", "--full-tree", commit) as git:
        for entry in _split(git.stdout):
            about, _, name = entry.partition(b"\t")
            mode, kind, digest, size = about.split()
            if kind == b"blob" and mode != b"120000":
                yield digest.decode(), int(size) if size.isdigit() else 0, name.decode("utf-8", "backslashreplace")
        if git.wait():
            raise Unreadable("damaged git repository")


def _split(stream: BinaryIO) -> Iterator[bytes]:
    left = b""
    while data := stream.read(1 << 16):
        *whole, left = (left + data).split(b"\0")
        if len(left) > _MAX_NAME_BYTES:
            raise Unreadable("name too long")
        yield from whole


def _licences(folder: str, commit: str, objects: subprocess.Popen) -> Iterator[tuple[str, str]]:
    """Yield (folder in the repository, SPDX identifier) of every licence file that is known."""
    for digest, size, inside in _blobs(folder, commit):
        if is_licence_file(inside):
            with contextlib.suppress(Unreadable):
                if licence := licence_of(decode(_content(objects, digest, size))):
                    yield os.path.dirname(inside), licence


@contextlib.contextmanager
def _running(folder: str, *command: str, stdin: int = subprocess.DEVNULL) -> Iterator[subprocess.Popen]:
    """Run git on a repository, and end it with the block."""
    where = ("--git-dir", folder) if _is_bare(folder) else ("-C", folder)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment = kept | _ENVIRONMENT | {"GIT_CEILING_DIRECTORIES": os.path.dirname(os.path.abspath(folder))}
    git = subprocess.Popen(
        ["git", *_SAFE, *where, *command], stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    )
    try:
        yield git
    finally:
        if git.poll() is None:
            git.kill()
        for pipe in filter(None, (git.stdin, git.stdout)):
            with contextlib.suppress(OSError):  # what was written was not read by a process that has ended
                pipe.close()
        git.wait()


def _is_bare(folder: str) -> bool:
    inside = {name: os.path.join(folder, name) for name in ("HEAD", "objects", "refs")}
    return os.path.isfile(inside["HEAD"]) and os.path.isdir(inside["objects"]) and os.path.isdir(inside["refs"])


def _check_regular(folder: str) -> None:
    """Raise Unreadable if git would wait for a FIFO or read a device among its own tree."""
    private = folder if _is_bare(folder) else os.path.join(folder, ".git")
    if os.path.isfile(private):  # of a linked worktree or a submodule: "gitdir: PATH"
        with streams.open_regular(private) as file:
            target = file.read(_MAX_NAME_BYTES).decode("utf-8", "replace").removeprefix("gitdir:").strip()
        private = os.path.join(folder, target)
    elif not os.path.isdir(private):
        raise Unreadable("damaged git repository")
    shared = os.path.join(private, "commondir")  # of a linked worktree
    roots = [private]
    if os.path.isfile(shared):
        with streams.open_regular(shared) as file:
            roots.append(os.path.join(private, file.read(_MAX_NAME_BYTES).decode("utf-8", "replace").strip()))
    for root in roots:
        for parent, _, names in os.walk(root):
            for name in names:
                with contextlib.suppress(OSError):
                    mode = os.stat(os.path.join(parent, name)).st_mode
                    if not stat.S_ISREG(mode) and not stat.S_ISSOCK(mode):
                        raise Unreadable("not a regular file in git repository")
