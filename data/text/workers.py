"""One function over many items in worker processes; results come in the order of the items, however many processes work."""

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

HERE = 4  # items done in this process first: a small input starts no other
AHEAD = 2  # items for each worker that wait or are done; more holds more memory


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered(
    function: Callable[[Any, Any], Any], state: Any, items: Iterable[Any], *, processes: int | None = None
) -> Iterator[Any]:
    """Yields function(state, item) for each item, in order.

    The processes are spawned, since a fork copies the locks of JAX's threads. They end with this one, however it ends.

    Args:
        function: of a module; it must depend on its arguments alone.
        state: what all calls share; pickled once and sent to each process.
        items: pickled; asked for as results are taken, a few ahead.
        processes: default: one a core. With 1 all is done here.

    Raises:
        UserError: a worker was killed, or `function` raised it. RuntimeError: any other error of `function` in a worker, with
            its traceback. An error of `items` comes as it is.
    """
    processes = cores() if processes is None else processes
    items = iter(items)
    alone = processes < 2 or multiprocessing.current_process().daemon  # a daemon may have no children
    for item in items if alone else itertools.islice(items, HERE):
        yield function(state, item)
    first = [] if alone else list(itertools.islice(items, processes))
    workers = _started(len(first), function, state)
    waiting: collections.deque[Connection] = collections.deque()  # which worker has which item, the next result's first
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
            worker.close()  # which ends it


def _started(processes: int, function: Callable[[Any, Any], Any], state: Any) -> list[Connection]:
    """Connections to new workers. Pipes alone, since a queue's semaphores need cleaning up that a kill or os._exit skips."""
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
    """Says in a line that a worker, with which something is exchanged, is gone."""
    try:
        yield
    except (EOFError, ConnectionError):
        raise UserError(
            "one of the worker processes that prepare the data was killed, most likely for want of memory; give the run more "
            "memory or fewer cores (taskset -c 0-3 …) and start it again"
        ) from None


def _result(worker: Connection) -> Any:
    with _alive():
        done, value = worker.recv()
    if not done:
        raise value
    return value


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """Processes that are started meanwhile do not hear Ctrl-C, of which this one says a line; they end with it."""
    main = threading.current_thread() is threading.main_thread()  # no other may set a handler
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if main else None
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)


def _work(parent: Connection) -> None:
    """A worker: it ends when its parent closes the pipe, which the kernel does when that one is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread a process
    try:
        function, state = pickle.loads(parent.recv_bytes())
    except (EOFError, OSError):
        return
    items = queue.SimpleQueue()
    # Items are taken at once, so that the parent never waits with one while this worker waits with a result.
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
