"""Multi-process jobs: start, common end, and work that process 0 does for all.

All processes call every collective operation (a computation on the mesh, a checkpoint). Work that one process does alone must
hold no collective; the others wait for it in `from_first` or, at the end of a verb, in `leave`. An error on one process ends
all of them (`end`): it is published through JAX's coordination service, and a thread of every process listens for it. The same
thread notices a process that is gone (lm/parallel/heartbeat.py).
"""

import contextlib
import json
import os
import pickle
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np
from jax._src import distributed  # the coordination service's client has no public name
from jax._src.lib import _jax
from jax.experimental import multihost_utils

from lm.errors import UserError
from lm.parallel import cluster, gloo, heartbeat
from lm.parallel.arrays import PyTree
from lm.parallel.channel import POLL, Channel, get

LONGEST = 24 * 3600  # seconds that process 0 may write its report while the others wait
GRACE = 10  # seconds that process 0, which runs the service, waits until the others have read an error
TIDY = 1  # seconds that a process has to fail and clean up by itself after another has failed
TEXT_BYTES = 1024  # size of a text that processes exchange
# Keys of the service, and the name of a barrier.
FAILED, HEARD, MADE, SEEN, LEAVE = (f"lmcraft/{name}" for name in ("failed", "heard", "made", "seen", "leave"))

T = TypeVar("T")
Tree = TypeVar("Tree")  # of arrays
_listener: threading.Thread
_undo_abort: Callable[[], None] | None = None
_ending = threading.Lock()
_leaving = False  # whether this process waits for the others at its end
at_end: list[Callable[[int, str], None]] = []  # called with exit code and line of a failure before it ends this process


def start(trains: bool = True) -> None:
    """Join the other processes of this job, if there are any. Call it before the first use of a device.

    trains: the training loop handles SIGTERM and saves. If False, SIGTERM ends the process and with it the job.
    JAX detects Slurm, Open MPI and Cloud TPUs. Elsewhere set JAX_COORDINATOR_ADDRESS (host:port of process 0),
    JAX_NUM_PROCESSES and JAX_PROCESS_ID for each process.
    """
    if not cluster.several():
        return

    def number(name: str) -> int | None:
        text = os.environ.get(name)
        if text is not None and not text.isdecimal():
            raise UserError(f"{name}={text!r} is not a number: it counts the processes of this job, from 0")
        return int(text) if text is not None else None

    jax.config.update("jax_enable_preemption_service", trains)
    joined = heartbeat.on_abort(None, _program() + heartbeat.not_joined())  # JAX aborts in place of an error
    jax.distributed.initialize(
        num_processes=number("JAX_NUM_PROCESSES"),
        process_id=number("JAX_PROCESS_ID"),
        initialization_timeout=int(heartbeat.join_seconds()),
        shutdown_timeout_seconds=LONGEST,
        heartbeat_timeout_seconds=max(600, int(10 * heartbeat.lost_seconds())),  # ours comes first, and survives a frozen job
    )
    joined()
    gloo.avoid_reduce_scatter()
    global _listener, _undo_abort
    if distributed.global_state.process_id:
        _undo_abort = heartbeat.on_abort(distributed.global_state.coordinator_address, _program() + heartbeat.words(0))
    _listener = threading.Thread(target=_listen, args=(_service(),), daemon=True)
    _listener.start()
    folder, backend = jax.config.values["jax_compilation_cache_dir"], jax.default_backend()
    if distributed.global_state.process_id:
        jax.config.update("jax_compilation_cache_max_size", -1)  # read without a lock; only process 0 writes
    # On CPUs only process 0 would find its programs there. The collectives of a program that was read run in another order than
    # those of one that was compiled, and the processes would wait for one another for ever.
    if backend == "cpu" or backend == "gpu" and not all_see(folder):
        jax.config.update("jax_enable_compilation_cache", False)


def all_see(folder: str | None) -> bool:
    """Return whether `folder` exists and is the same one on all processes. Collective.

    XLA tunes a program for GPUs on all processes together. With a compilation cache in a folder that only some of them see,
    those that find the program there would let the others wait for ever.
    """
    service, state = _service(), distributed.global_state
    assert service is not None
    name = from_first(lambda: f"job-{os.getpid()}-{time.time_ns()}")
    mark = Path(folder) / name if folder else None
    if not state.process_id and mark:
        with contextlib.suppress(OSError):
            mark.touch()
    from_first(lambda: None)  # it is there now
    service.key_value_set(f"{SEEN}/{name}/{state.process_id}", str(mark is not None and mark.exists()))
    try:
        return from_first(
            lambda: all(get(service, f"{SEEN}/{name}/{i}", LONGEST) == "True" for i in range(state.num_processes))
        )
    finally:
        if not state.process_id and mark:
            mark.unlink(missing_ok=True)


def leave() -> None:
    """Wait for all processes, then end the job, so that no process takes another's exit for a crash.

    A process that fails before it gets here ends those that wait.
    """
    global _leaving
    if (service := _service()) is not None:
        service.wait_at_barrier(LEAVE, LONGEST * 1000)
        _leaving = True
        jax.distributed.shutdown()
        if _undo_abort:
            _undo_abort()
        _listener.join()  # a thread that is inside the service when Python exits would crash


def several() -> bool:
    """Return whether this process has joined a job of several processes: True from `start` to `leave`."""
    return _service() is not None


def number() -> tuple[int, int]:
    """Return this process's number and how many processes the job has."""
    return jax.process_index(), jax.process_count()


def _program() -> str:
    return f"{Path(sys.argv[0]).name}: "


def end(line: str, code: int, details: str = "", gone: int | None = None) -> None:
    """End this process and all others of the job with one line on stderr and an exit code. Never returns.

    If another process failed before, its line and code are used, because the failure here is a consequence. details: printed
    above the line, if this process failed first. gone: the number of a process that cannot read it any more. An error of the
    network waits until the listener has found who is gone.
    """
    failed = details or "JaxRuntimeError" in line  # which the engine tells as an error of a request
    if failed and several() and heartbeat.NETWORK.search(line):
        threading.Event().wait(1.5 * heartbeat.lost_seconds() + GRACE)
    if not _ending.acquire(blocking=False):
        threading.Event().wait()  # another thread is ending this process
    service = _service()
    if service is not None:
        number, first, code = _first_failure(service, line, code)
        if number != distributed.global_state.process_id:
            program, _, message = first.partition(": ")
            line, details = line if line == first else f"{program}: process {number}: {message}", ""
    for call in list(at_end):
        call(code, line)
    print(details + line, file=sys.stderr, flush=True)
    if service is not None:
        _wait_until_read(service, gone)
    os._exit(code)


def is_first() -> bool:
    """Return True on process 0, which writes logs, datasets and reports."""
    return jax.process_index() == 0


def first_text(text: str | None) -> str | None:
    """Return the text of the first process that has one, or None. Collective; every process gets the same result."""
    if jax.process_count() == 1:
        return text
    mine = np.zeros(TEXT_BYTES, np.uint8)
    encoded = (text or "").encode()[:TEXT_BYTES]
    mine[: len(encoded)] = list(encoded)
    texts = (bytes(row).rstrip(b"\0").decode(errors="ignore") for row in multihost_utils.process_allgather(mine))
    return next(filter(None, texts), None)


class _OfThread(threading.local):
    """What `from_first` needs in each thread. alone: whether this process is inside make()."""

    def __init__(self) -> None:
        self.made, self.alone = Channel(f"{MADE}/{threading.current_thread().name}"), False


_first = _OfThread()


def from_first(make: Callable[[], T]) -> T:
    """Call make() on process 0 only; return its value, or raise its error, on all processes.

    Use it for what may differ between processes: an endpoint's answer, a program's outcome, files on a disk. On all processes,
    threads of one name call it in the same order. `make` must hold no collective; a from_first inside it is a plain call.
    Values and errors are sent pickled. An error that cannot be pickled becomes a RuntimeError with its text.
    """
    if _service() is None or _first.alone or distributed.global_state.num_processes == 1:
        return make()
    if distributed.global_state.process_id:
        value, error = pickle.loads(_first.made.receive_bytes())
    else:
        value = error = None
        _first.alone = True
        try:
            value = make()
            packed = pickle.dumps((value, None))
        except Exception as raised:
            packed, error = _packed(raised)
        finally:
            _first.alone = False
        _first.made.send_bytes(packed)
    if error is not None:
        raise error
    return value


def gathered(tree: PyTree) -> PyTree:
    """Return the arrays of a tree as whole NumPy arrays.

    Arrays that are split over processes are gathered, so every process must call this. Other arrays are only read.
    """

    def whole(x: jax.Array) -> np.ndarray:
        if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
            return np.asarray(x)
        if _first.alone:
            raise RuntimeError("the function that from_first calls must not compute on the mesh of all processes")
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))

    return jax.tree.map(whole, tree)


def _service() -> _jax.DistributedRuntimeClient | None:
    """Return the client of the coordination service, or None in a single-process job."""
    return distributed.global_state.client


def _packed(error: Exception) -> tuple[bytes, Exception]:
    """Return an error as `from_first` sends it, and as all processes raise it."""
    try:
        packed = pickle.dumps((None, error))
        pickle.loads(packed)  # some errors can be pickled but not unpickled
    except Exception:
        plain_error = RuntimeError(f"{type(error).__name__}: {error}")
        return pickle.dumps((None, plain_error)), plain_error
    return packed, error


def _listen(service: _jax.DistributedRuntimeClient) -> None:
    """End this process as soon as another one has failed or is gone."""
    state = distributed.global_state
    life = heartbeat.Heartbeat(service, state.process_id, state.num_processes)
    try:
        while (failed := get(service, FAILED, min(POLL, life.poll))) is None:
            gone = life.beat()
            if gone == 0 and not _leaving and _ending.acquire(blocking=False):  # without it, nobody can be told
                print(_program() + heartbeat.words(0), file=sys.stderr, flush=True)
                os._exit(heartbeat.LOST)
            if gone is not None and not _leaving:
                end(_program() + heartbeat.words(gone), heartbeat.LOST, gone=gone)
    except jax.errors.JaxRuntimeError:  # the job is over
        return
    _, line, code = json.loads(failed)
    for call in list(at_end):  # now, while the main thread is still where it was
        call(code, line)
    time.sleep(TIDY)
    end("", 1)  # the line and the code of that process replace these


def _first_failure(service: _jax.DistributedRuntimeClient, line: str, code: int) -> tuple[int, str, int]:
    """Publish a failure. Return the job's first failure: its process number, line and exit code."""
    mine = distributed.global_state.process_id, line, code
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # there is one already, or no service any more
        service.key_value_set(FAILED, json.dumps(mine))
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        return tuple(json.loads(get(service, FAILED, POLL) or json.dumps(mine)))
    return mine


def _wait_until_read(service: _jax.DistributedRuntimeClient, gone: int | None) -> None:
    """On process 0, wait until the others have read the failure, because JAX aborts a process that loses the service.

    gone: the number of a process that is not waited for.
    """
    state = distributed.global_state
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        if state.process_id:
            service.key_value_set(f"{HEARD}/{state.process_id}", "")
            return
        until = time.monotonic() + GRACE
        for number in {*range(1, state.num_processes)} - {gone}:
            get(service, f"{HEARD}/{number}", until - time.monotonic())
        time.sleep(0.5)  # they are about to exit
