"""Map a function over items in worker processes; results keep the order of the items."""

import collections
import contextlib
import itertools
import multiprocessing
import os
import pickle
import queue
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from typing import Any

from lm.errors import UserError

HERE = 4  # usual number of items processed in this process first, so that a small input starts no worker
AHEAD = 2  # queued or finished items per worker; more takes more memory


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered(
    function: Callable[[Any, Any], Any], state: Any, items: Iterable[Any], *, processes: int | None = None, here: int = HERE
) -> Iterator[Any]:
    """Yield function(state, item) for each item, in order.

    Workers are spawned, because a fork would copy locks held by JAX's threads. They always end with this process.

    Args:
        function: a module-level function that depends only on its arguments.
        state: shared by all calls; pickled once and sent to each worker.
        items: pickled; read lazily, a few ahead of the results.
        processes: default: one per core. With 1, all work is done in this process.
        here: items processed in this process first.

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
    workers = _started(len(first), function, state)
    waiting: collections.deque[Connection] = collections.deque()  # the workers of queued items, in order
    try:
        for item, worker in zip(itertools.chain(first, items), itertools.cycle(workers)):
            with _alive():
                worker.send(item)
            waiting.append(worker)
            if len(waiting) == AHEAD * len(workers):
                yield _result(waiting.popleft())
        while waiting:
            yield _result(waiting.popleft())
    finally:
        for worker in workers:
            worker.close()  # the worker ends when its pipe closes


def _started(processes: int, function: Callable[[Any, Any], Any], state: Any) -> list[Connection]:
    """Start workers and return their connections. Pipes need no cleanup after a kill or os._exit, unlike queues."""
    spawning, shared, workers = multiprocessing.get_context("spawn"), pickle.dumps((function, state)), []
    with _unheard():
        for _ in range(processes):
            ours, theirs = spawning.Pipe()
            spawning.Process(target=_work, args=(theirs,), daemon=True).start()
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


def _result(worker: Connection) -> Any:
    with _alive():
        done, value = worker.recv()
    if not done:
        raise value
    return value


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
