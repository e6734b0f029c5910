"""One function over many items in worker processes; results come in the order of the items, however many processes work."""

import collections
import itertools
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from lm.errors import UserError

HERE = 4  # items done in this process first: a small input starts no other
AHEAD = 2  # items for each worker that wait or are done; more holds more memory

_function: Callable[[Any, Any], Any]
_state: Any


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered(
    function: Callable[[Any, Any], Any], state: Any, items: Iterable[Any], *, processes: int | None = None
) -> Iterator[Any]:  # fmt: skip
    """Yields function(state, item) for each item, in order.

    The processes are spawned, since a fork copies the locks of JAX's threads. They end with this one, however it ends.

    Args:
        function: of a module; it must depend on its arguments alone.
        state: what all calls share; pickled once and sent to each process.
        items: pickled; asked for as results are taken, a few ahead.
        processes: default: one a core. With 1 all is done here.

    Raises:
        UserError: a worker was killed. An error of `function` or `items` comes as it is.
    """
    processes = cores() if processes is None else processes
    items = iter(items)
    alone = processes < 2 or multiprocessing.current_process().daemon  # a daemon may have no children
    for item in items if alone else itertools.islice(items, HERE):
        yield function(state, item)
    if alone or (following := next(items, None)) is None:
        return
    pool = futures.ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), _begin, (pickle.dumps((function, state)),)
    )
    waiting: collections.deque[futures.Future] = collections.deque()
    try:
        for item in itertools.chain([following], items):
            waiting.append(pool.submit(_call, item))
            if len(waiting) >= AHEAD * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise UserError(
            f"one of {processes} worker processes that prepare the data was killed, most likely for want of memory; give the "
            "run more memory or fewer cores (taskset -c 0-3 …) and start it again"
        ) from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _begin(pickled: bytes) -> None:
    """Sets up a worker. Its parent hears Ctrl-C; when the parent is gone, killed or not, the worker goes too."""
    global _function, _state
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread a process
    _function, _state = pickle.loads(pickled)


def _follow() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _call(item: Any) -> Any:
    return _function(_state, item)
