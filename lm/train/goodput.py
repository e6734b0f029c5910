"""Account for the wall time of a run over all its attempts: how much of it made progress, and where the rest went.

    WORKDIR/goodput.jsonl    a record a line: {"attempt": when it began, "time", "step", "seconds": {phase: of the attempt}}

Times are seconds since 1970, of the clock when the attempt began; within an attempt the clock is not asked again, since it may
be set. Lines are only appended, so a kill leaves at most a torn last line, which is skipped. A record is
written at each save, when an attempt ends, and else whenever a hundredth of the attempt's time (at least SECONDS) has passed:
what an attempt did after its last record counts as down time.

goodput = seconds of steps that were kept / wall time from the first start to the last record. The categories are those of
`ml-goodput-measurement` (docs/decisions.md).
"""

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from lm.train.history import json_lines

FILE = "goodput.jsonl"
SECONDS = 5.0
USEFUL = ("data hidden", "rollout", "dispatch", "wait")  # phases of steps
CATEGORIES = {  # of the report: their phases
    "useful steps": (),
    "lost steps, done again after a failure": (),
    "compilation": ("compile",),
    "waiting for data": ("data",),
    "validation": ("validation",),
    "saving": ("save",),
    "start-up": ("start",),
    "other": ("other",),
    "down between attempts": (),
}
COMPILED = "/jax/core/compile/backend_compile_duration"

_begun: list[float] = []  # when the attempts of this process began


class Goodput:
    """Sums up the seconds of the phases of one attempt. With enabled=False, on all processes but the first, writes nothing."""

    def __init__(self, workdir: Path, begin: int, enabled: bool = True):
        self._path, self.step, self._enabled = workdir / FILE, begin, enabled
        before = [record for record in json_lines(self._path) if _is_whole(record)] if self._path.exists() else []
        # Another loop in this process began when the one before it had ended. The time that the system says a process began is
        # exact to a second only.
        self._attempt = _begun[-1] if _begun else psutil.Process().create_time()
        self._attempt = max([self._attempt, *(record["time"] for record in before[-1:])])
        self.seconds = {"start": max(0.0, time.time() - self._attempt)}
        self._phase, self._since, self._compiled = "start", time.perf_counter(), 0.0
        self._began = self._since - self.seconds["start"]
        earlier = summary([*before, {"attempt": self._attempt, "time": self._attempt, "step": begin, "seconds": {}}])
        self._useful, self._wall = earlier["seconds"].get("useful steps", 0.0), earlier["wall"]  # of the attempts before
        self._written, self.fraction = 0.0, 0.0  # seconds of the attempt, and the goodput of the run, at the last record
        import jax  # here, because reports read the accounts without it

        jax.monitoring.register_event_duration_secs_listener(self._note)
        self.record(begin)

    def enter(self, phase: str, busy: bool = False) -> str:
        """Begin a phase. Return the one that ends. Time that XLA compiled in counts as "compile" in every phase.

        busy: the devices were computing all the while, so that waiting for "data" cost nothing.
        """
        now = time.perf_counter()
        spent, before = now - self._since, self._phase
        compiled, self._compiled = min(self._compiled, spent) if before != "compile" else 0.0, 0.0
        name = "data hidden" if busy and before == "data" else before
        self.seconds[name] = self.seconds.get(name, 0.0) + spent - compiled
        if compiled:
            self.seconds["compile"] = self.seconds.get("compile", 0.0) + compiled
        self._phase, self._since = phase, now
        return before

    def stepped(self, step: int) -> None:
        """Note that a step has finished, and write a record if one is due."""
        self.step = step
        lasted = time.perf_counter() - self._began
        if lasted - self._written > max(SECONDS, 0.01 * lasted):
            self.record(step)

    def record(self, step: int, **more: Any) -> None:
        """Write a record after `step`. more: added to it, such as saved=True."""
        self.enter(self._phase)
        if not self._enabled:
            return
        self._written = time.perf_counter() - self._began
        seconds = {name: round(value, 3) for name, value in self.seconds.items()}
        useful, wall = sum([seconds.get(phase, 0.0) for phase in USEFUL]), max(self._written, sum(seconds.values()), 1e-9)
        self.fraction = (self._useful + useful) / (self._wall + wall)
        about = {"attempt": self._attempt, "time": self._attempt + self._written, "step": step, **more}
        line = json.dumps(about | {"seconds": seconds})
        with open(self._path, "a+b") as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else f"\n{line}"  # a kill tore the line before
            file.write(f"{line}\n".encode())

    def close(self, end: bool) -> None:
        """Write the last record. end: whether the run has reached its end, so that the time after it is not down time."""
        self.record(self.step, **({"end": True} if end else {}))
        import jax

        jax.monitoring.unregister_event_duration_listener(self._note)
        _begun.append(time.time())

    def _note(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event == COMPILED:
            self._compiled += duration_secs


def summary(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return {"goodput": fraction, "wall": seconds, "attempts": count, "seconds": {category: seconds}} of a run's records.

    The seconds add up to the wall time. Of an attempt that went on beyond the step from which the next one resumed, the steps
    beyond are lost.
    """
    attempts: dict[float, list[Mapping[str, Any]]] = {}
    for record in filter(_is_whole, records):
        attempts.setdefault(record["attempt"], []).append(record)
    found = dict.fromkeys(CATEGORIES, 0.0)
    following = list(attempts.values())[1:]
    for own, after in zip(attempts.values(), [*following, None]):
        last = own[-1]
        for category, phases in CATEGORIES.items():
            found[category] += sum(last["seconds"].get(phase, 0.0) for phase in phases)
        useful = _useful(last)
        if after is not None:
            kept = [record for record in own if record["step"] <= after[0]["step"]]
            saved = [record for record in kept if record.get("saved") and record["step"] == after[0]["step"]]
            kept = saved or kept  # what came after the save, such as a hang, was no step
            lost = useful - (_useful(kept[-1]) if kept else 0.0)
            useful -= lost
            found["lost steps, done again after a failure"] += lost
            if not last.get("end"):
                found["down between attempts"] += max(0.0, after[0]["attempt"] - last["time"])
        found["useful steps"] += useful
        # What lies between two phases.
        found["other"] += max(0.0, last["time"] - last["attempt"] - sum(last["seconds"].values()))
    wall = sum(found.values())
    return {
        "goodput": found["useful steps"] / wall if wall else 0.0,
        "wall": wall,
        "attempts": len(attempts),
        "seconds": {category: seconds for category, seconds in found.items() if seconds > 0},
    }


def of(workdir: Path) -> dict[str, Any] | None:
    """Return the `summary` of a workdir, or None if it has no records."""
    path = workdir / FILE
    return summary(json_lines(path)) if path.exists() else None


def _is_whole(record: Mapping[str, Any]) -> bool:
    """Return whether a line has what a record needs; a damaged file may hold others."""
    seconds = record.get("seconds")
    if not isinstance(seconds, dict):
        return False
    numbers = (*(record.get(name) for name in ("attempt", "time", "step")), *seconds.values())
    return all(isinstance(number, int | float) and math.isfinite(number) for number in numbers)


def _useful(record: Mapping[str, Any]) -> float:
    return sum(record["seconds"].get(phase, 0.0) for phase in USEFUL)
