"""The lock of a workdir: WORKDIR/.lock is locked while the process that writes the workdir lives, and names that process.

Nothing here loads JAX, so errors show at once.
"""

import contextlib
import errno
import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from lm.errors import UserError
from lm.workdir import repair

LOCK = ".lock"


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Lock the workdir for this job until the block or the process ends. A damaged config.json is repaired first (`repair`).

    All processes call this; process 0 takes the lock. Folders created here that are still empty at the end are removed.
    Raises: UserError, on all processes, if another job has locked the workdir or it is not writable.
    """
    from lm.parallel import cluster

    locks = []

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
    finally:
        for lock in locks:
            lock.release()


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
                    holder = os.pread(self._file, 200, 0).decode(errors="replace").strip() or "a process that starts just now"
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

    def release(self) -> None:
        """Remove the file, and the folders that this lock created if they are empty. The file is removed before unlocking."""
        with contextlib.suppress(OSError):
            self._path.unlink()
            for folder in self._made:
                folder.rmdir()
        os.close(self._file)
