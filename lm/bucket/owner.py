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
        self._store, self._lost, self._beat, self._released = store, lost, beat, threading.Event()
        self._content = {
            "who": f"process {os.getpid()} on {socket.gethostname()}",
            "mirror": mirror,
            "job": uuid.uuid4().hex,
            "beat": 0,
        }
        lock = self._read()
        if lock and lock.get("mirror") != mirror:
            print(f"{store.url} is locked by {lock.get('who')}: waiting for a sign of life, {dead:.0f} s", flush=True)
            end = time.monotonic() + dead
            while time.monotonic() < end and self._read() == lock:
                time.sleep(poll)
        now = self._read() if lock else {}
        if now and now != lock:
            raise UserError(self._in_use(now))
        if now:
            store.remove([LOCK])
        if not self._write(new=True):
            raise UserError(self._in_use(self._read()))
        self._thread = threading.Thread(target=self._beats, name="lock of the bucket", daemon=True)
        self._thread.start()

    def release(self) -> None:
        self._released.set()
        self._thread.join()
        if self._is_ours(self._read()):
            self._store.remove([LOCK])

    def _beats(self) -> None:
        while not self._released.wait(self._beat):
            try:
                lock = self._read()
                if self._is_ours(lock):
                    self._write()
                    continue
            except UserError:  # the bucket cannot be reached just now
                continue
            self._lost(f"{self._in_use(lock)}; this run ends, because its own lock was not renewed in time")
            return

    def _is_ours(self, lock: dict) -> bool:
        return lock.get("job") == self._content["job"]

    def _write(self, new: bool = False) -> bool:
        self._content["beat"] += 1
        return self._store.write(LOCK, json.dumps(self._content).encode(), new=new)

    def _read(self) -> dict:
        try:
            lock = json.loads(self._store.read(LOCK) or b"{}")
        except ValueError:
            return {}
        return lock if isinstance(lock, dict) else {}

    def _in_use(self, lock: dict) -> str:
        who = lock.get("who", "another process")
        return f"{self._store.url} is in use by another run, {who}: wait for it, end it, or use another --workdir"
