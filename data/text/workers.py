"""Map a function over items in worker processes; results keep the order of the items."""

import collections
import contextlib
import itertools
import multiprocessing
import os
import pickle
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any

from tqdm import TMonitor

from lm.errors import UserError

HERE = 4  # usual number of items processed in this process first, so that a small input starts no worker
AHEAD = 2  # queued items per worker
HELD = 8  # queued or finished items per worker; more takes more memory
_END = object()


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered(
    function: Callable[[Any, Any], Any],
    state: Any,
    items: Iterable[Any],
    *,
    processes: int | None = None,
    here: int = HERE,
    warm: bool = False,
) -> Iterator[Any]:
    """Yield function(state, item) for each item, in order. An item goes to the worker that has least to do.

    Workers always end with this process.

    Args:
        function: a module-level function that depends only on its arguments.
        state: shared by all calls; pickled once and sent to each worker.
        items: pickled; read lazily, a few ahead of the results.
        processes: default: one per core. With 1, all work is done in this process.
        here: items processed in this process first.
        warm: fork workers, which then share what this process has loaded, if `may_fork`. Otherwise they are spawned.

    Raises:
        UserError: a worker was killed, or `function` raised it. RuntimeError: any other error of `function` in a worker, with
            its traceback. Errors of `items` are raised unchanged.
    """
    processes = cores() if processes is None else processes
    items = iter(items)
    alone = processes < 2 or multiprocessing.current_process().daemon  # a daemon cannot have children
    for item in items if alone else itertools.islice(items, here):
        yield function(state, item)
    first = [] if alone else list(itertools.islice(items, processes))
    if len(first) == 1:  # and the last: nothing else could be done meanwhile
        yield function(state, first.pop())
    workers = _started(len(first), function, state, warm and may_fork())
    queued: dict[Connection, collections.deque[int]] = {worker: collections.deque() for worker in workers}
    waiting, more = enumerate(itertools.chain(first, items)), True
    finished: dict[int, tuple[bool, Any]] = {}
    given = wanted = 0  # the numbers of the next item to send and of the next result to yield
    try:
        while workers and (more or given > wanted):
            worker = min(workers, key=lambda one: len(queued[one]))
            if more and len(queued[worker]) < AHEAD and given - wanted < HELD * len(workers):
                given, item = next(waiting, (given, _END))
                if more := item is not _END:
                    with _alive():
                        worker.send(item)
                    queued[worker].append(given)
                    given += 1
                continue
            for worker in wait([one for one in workers if queued[one]]):
                with _alive():
                    finished[queued[worker].popleft()] = worker.recv()
            while wanted in finished:
                done, value = finished.pop(wanted)
                if not done:
                    raise value
                yield value
                wanted += 1
    finally:
        for worker in workers:
            worker.close()  # the worker ends when its pipe closes


def may_fork() -> bool:
    """Return whether a fork is safe: on Linux, if no other thread of Python and no package with threads could hold a lock.

    The threads of NumPy and Arrow take care of themselves in a fork; those of JAX, PyTorch and TensorFlow do not.
    """
    others = [one for one in threading.enumerate() if one is not threading.main_thread() and not isinstance(one, TMonitor)]
    threaded = {"jax", "torch", "tensorflow", "grpc"} & sys.modules.keys()
    return sys.platform == "linux" and not others and not threaded


def _started(processes: int, function: Callable[[Any, Any], Any], state: Any, fork: bool) -> list[Connection]:
    """Start workers and return their connections. Pipes need no cleanup after a kill or os._exit, unlike queues."""
    context, shared, workers = multiprocessing.get_context("fork" if fork else "spawn"), pickle.dumps((function, state)), []
    with _unheard():
        for _ in range(processes):
            ours, theirs = context.Pipe()
            context.Process(target=_forked if fork else _work, args=(theirs,), daemon=True).start()
            theirs.close()
            workers.append(ours)
    for worker in workers:
        with _alive():
            worker.send_bytes(shared)
    return workers


@contextlib.contextmanager
def _alive() -> Iterator[None]:
    """Convert a broken connection to a worker into a UserError."""
    try:
        yield
    except (EOFError, ConnectionError):
        raise UserError(
            "one of the worker processes that prepare the data was killed, most likely because memory ran out; give the run "
            "more memory or fewer cores (taskset -c 0-3 …) and start it again"
        ) from None


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """Ignore Ctrl-C in processes that are started meanwhile; this process reports it, and they end with it."""
    main = threading.current_thread() is threading.main_thread()  # only the main thread may set a handler
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if main else None
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)


def _forked(parent: Connection) -> None:
    """Close what a fork inherits, such as the ends of other workers' pipes and the lock of a folder, then work."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) != parent.fileno():
            with contextlib.suppress(OSError):
                os.close(int(name))
    _work(parent)


def _work(parent: Connection) -> None:
    """Run a worker until its parent closes the pipe; if the parent is killed, the kernel closes it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread per process
    try:
        function, state = pickle.loads(parent.recv_bytes())
    except (EOFError, OSError):
        return
    items = queue.SimpleQueue()
    # Receive items at once: otherwise the parent could block on an item while this worker blocks on a result.
    threading.Thread(target=_receive, args=(parent, items), daemon=True).start()
    while True:
        item = items.get()
        try:
            result = True, function(state, item)
        except UserError as error:
            result = False, UserError(str(error))
        except Exception:
            result = False, RuntimeError(f"in a worker process:\n{traceback.format_exc()}")
        try:
            parent.send(result)
        except OSError:
            return


def _receive(parent: Connection, items: queue.SimpleQueue) -> None:
    while True:
        try:
            items.put(parent.recv())
        except (EOFError, OSError):
            os._exit(0)
