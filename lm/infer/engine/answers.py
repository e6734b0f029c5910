"""Wait for the answers of many requests."""

import queue
from collections.abc import Callable, Iterator
from collections.abc import Sequence as List
from typing import TYPE_CHECKING

from lm.infer.engine.request import Event, Handle, Request, joined

if TYPE_CHECKING:
    from lm.infer.engine.engine import Engine


def ended(
    engine: "Engine", requests: List[Request], enough: Callable[[int, Event], bool] | None = None
) -> Iterator[tuple[int, Event]]:
    """Yield (index, its events as one) of each request when it is finished.

    enough: called on the engine's thread with the index and each event; True ends the request as "cancelled". So it ends at the
    same step on all processes. Its errors are raised here.
    """
    events: list[list[Event]] = [[] for _ in requests]
    finished = queue.SimpleQueue[int | Exception]()

    def take(n: int, handle: Handle, event: Event) -> None:
        if events[n] and events[n][-1].finish:  # it is over, and this is the last event of a cancelled request
            return
        events[n].append(event)
        try:
            if enough is not None and not event.finish and enough(n, event):
                handle.cancel()
                events[n].append(Event(finish="cancelled"))
        except Exception as error:
            return finished.put(error)
        if events[n][-1].finish:
            finished.put(n)

    handles = engine.submit_all(requests, take)
    try:
        for _ in requests:
            if isinstance(n := finished.get(), Exception):
                raise n
            yield n, joined(events[n])
    finally:
        for handle in handles:
            handle.cancel()
