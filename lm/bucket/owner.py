"""The lock of a workdir in a bucket: the object .lock names the job that writes there, and changes every few seconds.

It is made only if there is none, which a bucket does atomically. Clocks are not compared: a lock that does not change for
`dead` seconds belongs to a machine that is gone, and is taken over.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable

from lm.bucket.store import Store
from lm.errors import UserError

LOCK = ".lock"
BEAT, DEAD = 10.0, 60.0  # seconds between two changes of a lock; seconds without one after which its job is gone


class Owner:
    """The lock of this job. `release` it at the end.

    mirror: the id of this job's mirror, which no two jobs use at once. A lock of the same mirror is left by a job that was
    killed, so it is taken over at once.
    lost: called with a line if another job has taken the lock over, because this one could not change it for `dead` seconds.
    Raises: UserError if another job has the lock.
    """

    def __init__(
        self,
        store: Store,
        mirror: str,
        lost: Callable[[str], None],
        *,
        beat: float = BEAT,
        dead: float = DEAD,
        poll: float = 1.0,
    ):
        self._store, self._mirror, self._lost, self._beat = store, mirror, lost, beat
        self._job, self._count, self._released = uuid.uuid4().hex, 0, threading.Event()
        while True:
            other = self._read()
            if other and other.get("mirror") != mirror:
                self._wait_for_end(other, dead, poll)
            if other and self._read() == other:
                store.remove([LOCK])
            if store.write(LOCK, self._content(), new=True):
                break
        self._thread = threading.Thread(target=self._beats, name="lock of the bucket", daemon=True)
        self._thread.start()

    def release(self) -> None:
        self._released.set()
        self._thread.join()
        if self._read().get("job") == self._job:
            self._store.remove([LOCK])

    def _content(self) -> bytes:
        self._count += 1
        who = f"process {os.getpid()} on {socket.gethostname()}"
        return json.dumps({"who": who, "mirror": self._mirror, "job": self._job, "beat": self._count}).encode()

    def _read(self) -> dict:
        try:
            found = json.loads(self._store.read(LOCK) or b"{}")
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def _wait_for_end(self, other: dict, dead: float, poll: float) -> None:
        """Return when the lock is gone, or has not changed for `dead` seconds. Raises UserError if it changes."""
        end = time.monotonic() + dead
        told = False
        while time.monotonic() < end:
            found = self._read()
            if found != other:
                if found:
                    raise UserError(self._in_use(found))
                return
            if not told:
                print(
                    f"{self._store.url} is locked by {other.get('who')}: waiting for a sign of life, {dead:.0f} s", flush=True
                )
                told = True
            time.sleep(poll)

    def _in_use(self, other: dict) -> str:
        who = other.get("who", "another process")
        return f"{self._store.url} is in use by another run, {who}: wait for it, end it, or use another --workdir"

    def _beats(self) -> None:
        while not self._released.wait(self._beat):
            try:
                found = self._read()
                if found.get("job") == self._job:
                    self._store.write(LOCK, self._content())
            except UserError:  # the bucket cannot be reached just now
                continue
            if found.get("job") != self._job:
                self._lost(f"{self._in_use(found)}; this run ends, because its own lock was not renewed in time")
                return
