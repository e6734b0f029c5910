"""Several processes of one job: their start, their common end, and what the first of them does for all.

Anything collective (a computation on the mesh, a checkpoint) is called by all processes. What one process does alone holds
nothing collective, and the others wait for it: in `from_first` or, at the end of a verb, in `leave`. An error on
one process ends all of them (`end`): the process tells it through JAX's coordination service, where a thread of every process
listens.
"""

import contextlib
import json
import os
import pickle
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src import distributed  # the coordination service's client has no public name
from jax.experimental import multihost_utils

from lm.errors import UserError
from lm.parallel import cluster

LONGEST = 24 * 3600  # seconds that process 0 may write its report while the others wait
POLL = 5  # seconds of one call to the service; between two calls Python handles signals
GRACE = 10  # seconds that process 0, which holds the service, waits for the others to hear of an error
TIDY = 1  # seconds in which a process may end by the same error itself, and tidy up, before it is ended
TEXT_BYTES = 1024  # of a text that processes exchange
# Keys of the service, and a barrier.
FAILED, HEARD, MADE, LEAVE = "lmcraft/failed", "lmcraft/heard", "lmcraft/made", "lmcraft/leave"

T = TypeVar("T")
_listener: threading.Thread
_ending = threading.Lock()
_made = 0  # calls of from_first so far
_unread: deque[str] = deque()  # on process 0: keys of values that some process may not have read yet
_alone = False  # whether this process is at work in from_first


def start(trains: bool = True) -> None:
    """Joins the other processes of this job, if there are any; call it before the first use of a device.

    trains: SIGTERM is left to the training loop, which saves. Without one it ends the process, and with it the job.
    On Slurm, Open MPI, and TPU pods JAX finds out by itself. Elsewhere set JAX_COORDINATOR_ADDRESS (host:port of
    process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID for each process.
    """
    if not cluster.several():
        return

    def number(name: str) -> int | None:
        text = os.environ.get(name)
        if text is not None and not text.isdecimal():
            raise UserError(f"{name}={text!r} is not a number: it counts the processes of this job, from 0")
        return int(text) if text is not None else None

    jax.config.update("jax_enable_preemption_service", trains)
    jax.distributed.initialize(
        num_processes=number("JAX_NUM_PROCESSES"), process_id=number("JAX_PROCESS_ID"), shutdown_timeout_seconds=LONGEST
    )
    global _listener
    _listener = threading.Thread(target=_listen, args=(_service(),), daemon=True)
    _listener.start()


def leave() -> None:
    """Waits until all processes are here and ends the job: none may take another's exit for a crash.

    A process that fails instead of coming here ends those that wait.
    """
    if (service := _service()) is not None:
        service.wait_at_barrier(LEAVE, LONGEST * 1000)
        jax.distributed.shutdown()
        _listener.join()  # inside the service it would not survive the end of Python


def several() -> bool:
    """True for one of several processes, from `start` to `leave`."""
    return _service() is not None


def end(line: str, code: int, details: str = "") -> None:
    """Ends this process with one line on stderr and an exit code, and likewise all others of the job; never returns.

    Where another process has failed before, its line and code count: what failed here is a consequence. details: printed above
    the line of the process that failed first.
    """
    if not _ending.acquire(blocking=False):
        threading.Event().wait()  # another thread is ending this process
    service = _service()
    if service is not None:
        number, first, code = _told(service, line, code)
        if number != distributed.global_state.process_id:
            program, _, message = first.partition(": ")
            line, details = line if line == first else f"{program}: process {number}: {message}", ""
    print(details + line, file=sys.stderr, flush=True)
    if service is not None:
        _let_all_hear(service)
    os._exit(code)


def is_first() -> bool:
    """True on the one process that writes logs, datasets and reports."""
    return jax.process_index() == 0


def first_told(text: str | None) -> str | None:
    """The text of the first process that has one, on every process; None if none has. All processes call this together."""
    if jax.process_count() == 1:
        return text
    mine = np.zeros(TEXT_BYTES, np.uint8)
    encoded = (text or "").encode()[:TEXT_BYTES]
    mine[: len(encoded)] = list(encoded)
    texts = (bytes(row).rstrip(b"\0").decode(errors="ignore") for row in multihost_utils.process_allgather(mine))
    return next(filter(None, texts), None)


def from_first(make: Callable[[], T]) -> T:
    """Return the value of make(), which process 0 alone calls, or raise its error, on all processes.

    For what may differ between processes: the answer of an endpoint, the outcome of a program, what stands on a disk. All
    processes call this in the same order, from their main threads. `make` holds nothing collective; inside it a further
    from_first is a plain call. Values and errors travel pickled; an error that cannot becomes a RuntimeError that says it.
    """
    global _alone, _made
    service = _service()
    if service is None or _alone or distributed.global_state.num_processes == 1:
        return make()
    key, _made = f"{MADE}/{_made}", _made + 1
    if distributed.global_state.process_id:
        while (packed := _get(service, key, POLL, bytes_=True)) is None:
            pass
        value, error = pickle.loads(packed)
        service.key_value_increment(f"{key}/read", 1)
    else:
        value = error = None
        _alone = True
        try:
            value = make()
            packed = pickle.dumps((value, None))
        except Exception as raised:
            packed, error = _packed(raised)
        finally:
            _alone = False
        service.key_value_set_bytes(key, packed)
        _forget(service, key)
    if error is not None:
        raise error
    return value


def gathered(tree: Any) -> Any:
    """Return the arrays of a tree whole, as NumPy arrays.

    Those that other processes hold a part of are gathered, so every process must call this. Arrays of this process alone are
    only read.
    """

    def whole(x: jax.Array) -> np.ndarray:
        if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
            return np.asarray(x)
        if _alone:
            raise RuntimeError("what process 0 does alone must not compute on the mesh of all processes")
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))

    return jax.tree.map(whole, tree)


def _service():
    """The client of the coordination service, or None for a process by itself."""
    return distributed.global_state.client


def _packed(error: Exception) -> tuple[bytes, Exception]:
    """An error as `from_first` sends it, and as all processes raise it."""
    try:
        packed = pickle.dumps((None, error))
        pickle.loads(packed)  # some errors can be written and not read
    except Exception:
        told = RuntimeError(f"{type(error).__name__}: {error}")
        return pickle.dumps((None, told)), told
    return packed, error


def _forget(service, key: str) -> None:
    """Deletes values from the service that all processes have read; `key` is the newest one."""
    _unread.append(key)
    others = str(distributed.global_state.num_processes - 1)
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # nobody has read it
        while _unread and service.key_value_try_get(f"{_unread[0]}/read") == others:
            service.key_value_delete(_unread.popleft())


def _listen(service) -> None:
    """Ends this process as soon as another one has failed."""
    try:
        while _get(service, FAILED, POLL) is None:
            pass
    except jax.errors.JaxRuntimeError:  # the job is over
        return
    time.sleep(TIDY)
    end("", 1)  # the line and the code of that process replace these


def _told(service, line: str, code: int) -> tuple[int, str, int]:
    """Tells the others of a failure. Returns the first one of the job: the number of its process, its line, its code."""
    mine = distributed.global_state.process_id, line, code
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # there is one already, or no service any more
        service.key_value_set(FAILED, json.dumps(mine))
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        return tuple(json.loads(_get(service, FAILED, POLL) or json.dumps(mine)))
    return mine


def _let_all_hear(service) -> None:
    """On process 0: waits until the others have heard of the failure. JAX aborts a process that has lost the service."""
    state = distributed.global_state
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        if state.process_id:
            service.key_value_set(f"{HEARD}/{state.process_id}", "")
            return
        until = time.monotonic() + GRACE
        for number in range(1, state.num_processes):
            _get(service, f"{HEARD}/{number}", until - time.monotonic())
        time.sleep(0.5)  # they are about to exit


def _get(service, key: str, seconds: float, bytes_: bool = False) -> Any:
    """The value of a key of the service, text or bytes, or None if there is none after so many seconds."""
    get = service.blocking_key_value_get_bytes if bytes_ else service.blocking_key_value_get
    try:
        return get(key, max(1, int(seconds * 1000)))
    except jax.errors.JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" not in str(error):
            raise
        return None
