"""Send lines of metrics to a tracker from a thread of its own, so that a slow or failing one neither stops nor delays a run."""

import contextlib
import functools
import math
import queue
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm.files.saving import write_json
from lm.runs.workdir import kept_json
from lm.train.history import json_lines
from lm.train.trackers.packages import OPENERS, Tracker, abandon

KEYS = "trackers.json"  # in the workdir: name of a tracker -> key of this run there
ROOM = 100_000  # lines that may wait
PATIENCE = 60.0  # seconds that the end of a run waits for its trackers


def open_sinks(names: Sequence[str], workdir: Path, facts: Mapping[str, Any], say: Callable[[str], None]) -> list["Sink"]:
    """Return a sink for each tracker. Each first sends the lines of metrics.jsonl that its tracker does not have.

    facts: parameters of the run. say: prints the line of a tracker that fails.
    """
    if not names:
        return []
    path = workdir / KEYS
    keys = kept_json(path, lambda value: isinstance(value, dict)) or {}
    keys = {name: keys.get(name) or uuid.uuid4().hex[:8] for name in (*keys, *names)}
    write_json(path, keys)
    before = json_lines(workdir / "metrics.jsonl") if (workdir / "metrics.jsonl").exists() else []
    return [Sink(name, functools.partial(OPENERS[name], workdir, keys[name], facts), before, say) for name in names]


def close_sinks(sinks: Sequence["Sink"], patience: float | None = None) -> None:
    """Close all sinks; wait at most `patience` seconds, by default PATIENCE, for all of them together."""
    end = time.monotonic() + (PATIENCE if patience is None else patience)
    for sink in sinks:
        sink.end()
    for sink in sinks:
        sink.wait(max(0.0, end - time.monotonic()))


class Sink:
    """A thread that opens a tracker and sends it lines, only the steps of each metric that it does not have.

    If the tracker raises or cannot keep up, one line is said, and the sink is off.
    """

    def __init__(
        self, name: str, opening: Callable[[], Tracker], before: Sequence[Mapping[str, Any]], say: Callable[[str], None]
    ):
        self._name, self._opening, self._say = name, opening, say
        self._lines: queue.Queue[Mapping[str, Any] | None] = queue.Queue(ROOM + len(before))
        self._on = True
        for line in before:
            self.put(line)
        self._thread = threading.Thread(target=self._run, name=f"tracker-{name}", daemon=True)
        self._thread.start()

    def put(self, line: Mapping[str, float | None]) -> None:
        """Hand over a line with "step". Returns at once."""
        if not self._on:
            return
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._off("it cannot keep up with the run")

    def end(self) -> None:
        """Tell the thread that no more lines come."""
        if self._on:
            with contextlib.suppress(queue.Full):  # it will not be done in time
                self._lines.put_nowait(None)

    def wait(self, seconds: float) -> None:
        """Wait until the tracker has taken everything; after `seconds` it is off."""
        if self._on:
            self._thread.join(seconds)
        if self._thread.is_alive():
            self._off("it has not taken everything in time; the same command sends the rest")

    def _off(self, why: object) -> None:
        if self._on:
            self._on = False
            self._say(f"warning: {self._name} is off: {' '.join(str(why).split())[:300]}; metrics.jsonl goes on")
            abandon(self._name)

    def _run(self) -> None:
        try:
            tracker = self._opening()
            ended = False
            while not ended:
                lines = [self._lines.get()]
                while not self._lines.empty():
                    lines.append(self._lines.get())
                ended = None in lines
                sent = [
                    {"step": line["step"]} | values
                    for line in lines
                    if line is not None and (values := missing(line, tracker.held))
                ]
                if sent:
                    tracker.send(sent)
            tracker.close()
        except BaseException as error:  # SystemExit too: no tracker may end a run
            self._off(f"{type(error).__name__}: {error}")


def missing(line: Mapping[str, Any], held: Callable[[str], int]) -> dict[str, float]:
    """Return the finite numbers of a line, without its step and what the tracker has of this step or a later one."""
    return {
        name: value
        for name, value in line.items()
        if name != "step" and isinstance(value, int | float) and math.isfinite(value) and line.get("step", -1) > held(name)
    }
