"""The lock of a workdir: WORKDIR/.lock is locked while the process that writes the workdir lives, and names that process.

A process that ends in order removes the file. One that fails writes its error below its name, and one that is killed leaves its
name, so the file also tells how a run ended (`last_process`). Nothing here loads JAX, so errors show at once.
"""

import contextlib
import errno
import fcntl
import os
import re
import socket
import stat
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

from lm.errors import Stopped, UserError
from lm.files.untrusted import shown
from lm.runs.workdir import repair

LOCK = ".lock"
MAX = 1000  # bytes of the file that are read
KILLED = "its process is gone and wrote no error, as after kill -9 or when a machine has no memory left"


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Lock the workdir for this job until the block or the process ends. A damaged config.json is repaired first (`repair`).

    All processes call this; process 0 takes the lock. Folders created here that are still empty at the end are removed.
    Raises: UserError, on all processes, if another job has locked the workdir or it is not writable.
    """
    from lm.parallel import cluster

    locks, error = [], ""

    def take() -> None:
        try:
            locks.append(_Lock(workdir))
            repair(workdir)
        except OSError as error:
            fault = f"{error.filename or workdir}: {error.strerror}"
            raise UserError(f"{fault}; fix this and run the same command again") from None

    try:
        if cluster.several():
            from lm.parallel import hosts

            hosts.from_first(take)
        else:  # without JAX, after which worker processes could not be forked
            take()
        yield
    except (UserError, Stopped) as failure:
        if failure.__cause__ is not None and not isinstance(failure.__cause__, UserError | OSError):  # the user's own code
            error = str(failure)
        raise
    except Exception as failure:
        error = f"{type(failure).__name__}: {failure}"
        raise
    finally:
        for lock in locks:
            lock.release(error)


class _Lock:
    """A POSIX record lock on WORKDIR/.lock. The kernel releases it when the process ends; child processes do not inherit it."""

    def __init__(self, workdir: Path):
        self._path = workdir / LOCK
        self._made = [folder for folder in (workdir, *workdir.parents) if not folder.exists()]
        while True:
            workdir.mkdir(parents=True, exist_ok=True)
            try:
                self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            except FileNotFoundError:  # a job that failed has just removed the folder
                continue
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.EACCES):
                    holder = _lines(os.pread(self._file, MAX, 0))[0] or "a process that starts just now"
                    raise UserError(
                        f"{workdir} is in use by another run, {holder}: wait for it, end it, or use another --workdir"
                    ) from None
                if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                    raise
                print(f"{workdir}: this file system has no locks; start no second run in it", file=sys.stderr, flush=True)
            with contextlib.suppress(FileNotFoundError):  # another job ended just now, and removed the file that we locked
                if os.path.samestat(os.fstat(self._file), os.stat(self._path)):
                    break
            os.close(self._file)
        with contextlib.suppress(OSError):  # a full disk: the lock holds without a name in it
            os.ftruncate(self._file, 0)
            os.write(self._file, f"process {os.getpid()} on {socket.gethostname()}\n".encode())

    def release(self, error: str) -> None:
        """Write the error into the file. Without one, remove the file, and folders that this lock created, if empty.

        The file is removed before it is unlocked.
        """
        with contextlib.suppress(OSError):
            if error:
                os.write(self._file, shown(" ".join(error.split())).encode(errors="replace")[: MAX // 2] + b"\n")
            else:
                self._path.unlink()
                for folder in self._made:
                    folder.rmdir()
        os.close(self._file)


def last_process(workdir: Path) -> tuple[str, str]:
    """Return (the process that holds the lock, as it says itself; how the last one failed), each "" if there is none.

    Takes no lock. A process that is gone without an error counts as failed if it was one of this host: of others nothing is
    known here.
    """
    pack = "qqihh" if sys.platform == "darwin" else "hhqqi"  # struct flock
    ask = (0, 0, 0, fcntl.F_WRLCK, 0) if sys.platform == "darwin" else (fcntl.F_WRLCK, 0, 0, 0, 0)
    try:
        with open(os.open(workdir / LOCK, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # a pipe would be waited for
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return "", ""
            answer = struct.unpack(pack, fcntl.fcntl(file, fcntl.F_GETLK, struct.pack(pack, *ask)))
            name, error = _lines(file.read(MAX))
    except OSError:
        return "", ""
    if answer[3 if sys.platform == "darwin" else 0] != fcntl.F_UNLCK:
        return name or "a process", ""
    process = re.fullmatch(r"process (\d{1,9}) on (.*)", name)
    gone = process and process[2] == socket.gethostname() and not psutil.pid_exists(int(process[1]))
    return "", error or (KILLED if gone else "")


def _lines(content: bytes) -> tuple[str, str]:
    """Return the name of the process and its error, "" where there is none."""
    name, _, error = content.decode(errors="replace").strip().partition("\n")
    return name.strip(), error.strip()
