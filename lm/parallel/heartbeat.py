"""Notice that another process of a job is gone, and end with one line and the exit code LOST.

Each process counts up a key of JAX's coordination service, PARTS times in LOST_SECONDS. Process 0 watches the keys of all, the
others that of process 0. A process whose key has not changed in PARTS looks is gone. Looks are counted instead of seconds, so
a job that was frozen as a whole goes on.

If process 0 dies, and with it the service, JAX aborts the other processes at once, with lines of its own; `on_abort` adds ours.
"""

import ctypes
import os
import re
import signal
import socket
from collections.abc import Callable

import jax
from jax._src.lib import _jax

LOST = 75  # exit code; EX_TEMPFAIL of sysexits.h: the same command may succeed
PARTS = 12
ALIVE = "lmcraft/alive"
# Of errors that the loss of another process causes in a collective operation or a barrier.
NETWORK = re.compile(r"Gloo|NCCL|Connection (reset|closed|refused)|Broken pipe|Socket closed|UNAVAILABLE|[Bb]arrier")
_handlers: list[Callable[[int], None]] = []  # of `on_abort`


def lost_seconds() -> float:
    """Return after how many seconds without a sign of life a process counts as gone: LMCRAFT_LOST_SECONDS, or 40."""
    return _seconds("LMCRAFT_LOST_SECONDS", 40.0)


def join_seconds() -> float:
    """Return how many seconds a process waits until all have joined: LMCRAFT_JOIN_SECONDS, or 300. Hosts may start apart."""
    return _seconds("LMCRAFT_JOIN_SECONDS", 300.0)


def _seconds(variable: str, usual: float) -> float:
    text = os.environ.get(variable, "")
    return max(1.0, float(text)) if text.replace(".", "", 1).isdecimal() else usual


class Heartbeat:
    """This process's signs of life, and those of others. process: its number. processes: of the job."""

    def __init__(self, service: _jax.DistributedRuntimeClient, process: int, processes: int) -> None:
        self._service, self._process = service, process
        self._watched = range(1, processes) if process == 0 else range(1)
        self._beats, self._seen, self._missed = 0, dict[int, str | None](), dict.fromkeys(self._watched, 0)
        self.poll = lost_seconds() / PARTS  # seconds between two calls of `beat`
        self._limit = max(0.5, self.poll / 4)  # seconds of a call to process 0, which may be frozen; added to those of `poll`

    def beat(self) -> int | None:
        """Give a sign of life. Return the number of a process that is gone, or None."""
        self._beats += 1
        try:
            if self._process:  # first what has a time limit: process 0 may be frozen
                values = {0: self._service.blocking_key_value_get(f"{ALIVE}/0", int(1000 * self._limit))}
            self._service.key_value_set(f"{ALIVE}/{self._process}", str(self._beats), allow_overwrite=True)
            if not self._process:
                values = {int(key.rpartition("/")[2]): value for key, value in self._service.key_value_dir_get(ALIVE)}
        except jax.errors.JaxRuntimeError:  # process 0 does not answer, or has not begun
            values = {}
        for number in self._watched:
            value = values.get(number, self._seen.get(number))
            self._missed[number] = self._missed[number] + 1 if value == self._seen.get(number) else 0
            self._seen[number] = value
        return next((number for number, missed in self._missed.items() if missed >= PARTS), None)


def words(process: int) -> str:
    """Return the message about a lost process."""
    return f"process {process} was lost: its host or the network is down, or it was killed; run the same command to resume"


def not_joined() -> str:
    """Return the message if some process of the job did not join."""
    return (
        f"not all processes of the job have joined within {join_seconds():g} s (LMCRAFT_JOIN_SECONDS): one was not started, "
        "was killed, or cannot reach process 0; run the same command on all hosts"
    )


def on_abort(address: str | None, line: str) -> Callable[[], None]:
    """End with `line` and LOST if this process is aborted because process 0 at `address` is gone. Return what undoes this.

    address: None ends so after any abort. JAX aborts in C++ from a thread of its own, where Python's signal handlers do not
    run; a handler of C does.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.signal.restype, libc.signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)

    def default() -> None:
        libc.signal(signal.SIGABRT, None)

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def handler(signum: int) -> None:
        if address and _answers(address):
            default()  # another reason: abort() goes on
            return
        os.write(2, f"{line}\n".encode())
        os._exit(LOST)

    libc.signal(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
    _handlers.append(handler)  # C holds no reference to it
    return default


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError:
        return False
    return True
