"""Account for the time of a run, compare its hosts, and end a run that hangs, with the stacks of all its threads.

The loop says which phase begins (`Health.enter`). Phases: start, compile, data, rollout (the batch of reinforcement learning is
work, not waiting), dispatch, wait (for a step), validation, save, other.

A step that has not finished within `watchdog.timeout` seconds ends the process with the exit code HUNG, as does a phase of
another kind (a compilation, a validation, a save) that lasts longer than `watchdog.other`. The stacks of all Python threads go
to stderr and to WORKDIR/hang-PROCESS.txt. In a job of several processes all end, and each writes its own file, because the one
that hangs need not be the one whose time is over first.

The watchdog's thread counts its own short waits, not the clock, so a machine that was suspended as a whole goes on. A thread
that never releases Python's lock stops the watchdog too; in a job of several, the others then end (lm/parallel/heartbeat.py).
"""

import faulthandler
import statistics
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from pathlib import Path

import jax

from lm import cli
from lm.parallel import hosts
from lm.parallel.heartbeat import LOST
from lm.train.alerts import alert
from lm.train.goodput import Goodput
from lm.train.loop import Done, Event, Run
from lm.train.stragglers import Stragglers

HUNG = 76  # exit code
KINDS = {HUNG: "hung", LOST: "lost"}  # of alerts, by exit code
STEP_PHASES = ("data", "rollout", "dispatch", "wait")  # these together are a step
KNOWN, TIMES, MIN, FIRST = 3, 20, 600.0, 3600.0  # of the chosen timeout
TOGETHER = 3  # seconds in which the other processes write their stacks, before the end of this one breaks their connections
REPOSITORY = Path(__file__).resolve().parents[3]


class Health(Event):
    """Goodput, the watchdog and the comparison of hosts: `run.health`, which the loop and other events tell the phases."""

    def start(self, run: Run) -> None:
        keys, run.health = run.config.watchdog, self
        self._workdir, self._is_told = run.workdir, False
        self._steps = self._waited = 0.0  # seconds of phases of steps, and of "wait", after the last step
        self._goodput = Goodput(run.workdir, run.begin, enabled=hosts.is_first())
        self._watchdog = Watchdog(keys.timeout, keys.other, run.workdir / f"hang-{jax.process_index()}.txt")
        compares = jax.process_count() > 1 and keys.compare_every
        self._stragglers = Stragglers(keys.compare_every, keys.slower) if compares else None
        self._watchdog.start()
        hosts.at_end.append(self._failed)
        run.at_end.callback(self._close, run)

    def enter(self, phase: str, busy: bool = False) -> str:
        """Begin a phase. Return the one that ends. busy: the devices computed meanwhile (lm/train/goodput.py)."""
        self._watchdog.enter(phase)
        return self._goodput.enter(phase, busy)

    def done(self, run: Run, done: Done) -> None:
        self._goodput.stepped(done.step)
        seconds = self._goodput.seconds
        steps = sum([seconds.get(phase, 0.0) for phase in (*STEP_PHASES, "data hidden")])
        waited = seconds.get("wait", 0.0)
        whole, blocked = steps - self._steps, waited - self._waited
        self._steps, self._waited = steps, waited
        self._watchdog.stepped(done.step, whole)
        done.line["goodput"] = self._goodput.fraction
        if self._stragglers is not None:
            ratios, lines = self._stragglers.stepped(done.step, whole - blocked, whole)
            done.line |= ratios
            for text in lines:
                run.log.say(text)
                alert(run.workdir, "slow", done.step, text)

    def saved(self, step: int, phase: str) -> None:
        """Note that a save has begun in the background, and go back to a phase."""
        self._goodput.record(step, saved=True)
        self.enter(phase)

    def _failed(self, code: int, line: str) -> None:
        """Write a last record and an alert when the process ends in an error, perhaps from another thread. Once."""
        self._goodput.record(self._goodput.step)
        if not self._is_told:
            self._is_told = True
            alert(self._workdir, KINDS.get(code, "failed"), self._goodput.step, line, wait=True)

    def _close(self, run: Run) -> None:
        self._watchdog.stop()
        hosts.at_end.remove(self._failed)
        self._goodput.close(end=run.step >= run.config.steps)


def end(message: str) -> None:
    """End the process, because a step takes too long."""
    cli.fail(message, HUNG)


class Watchdog:
    """Watches a training loop from `start` to `stop`: it is told each change of phase and each finished step.

    timeout: seconds without a finished step; 0: TIMES times the median of the last steps, and at least MIN; FIRST before
    KNOWN steps are known. other: seconds that a phase of another kind may last; 0: no limit. dump: the file for the stacks.
    end: called with the message.
    """

    def __init__(self, timeout: float, other: float, dump: Path, end: Callable[[str], None] = end):
        self._timeout, self._other, self._dump, self._end = timeout, other, dump, end
        self._phase, self._step, self._waited = "start", 0, 0.0
        self._times: deque[float] = deque(maxlen=100)
        self._tick = min([1.0, *(limit / 20 for limit in (timeout, other) if limit)])
        self._main, self._dumped = threading.get_ident(), False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        hosts.at_end.append(self._at_end)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._at_end in hosts.at_end:
            hosts.at_end.remove(self._at_end)

    def enter(self, phase: str) -> None:
        """Note the phase that begins. A phase of another kind than a step begins a new time, and so does the step after it."""
        if (phase in STEP_PHASES) != (self._phase in STEP_PHASES) or phase not in STEP_PHASES:
            self._waited = 0.0
        self._phase = phase

    def stepped(self, step: int, seconds: float) -> None:
        """Note that a step has finished. seconds: that it took, without phases of another kind."""
        self._step, self._waited = step, 0.0
        self._times.append(seconds)

    def limit(self) -> tuple[float, str]:
        """Return the seconds that the current phase may last, and the key that sets them."""
        if self._phase not in STEP_PHASES:
            return self._other or float("inf"), "watchdog.other"
        if self._timeout:
            return self._timeout, "watchdog.timeout"
        known = TIMES * statistics.median(self._times) if len(self._times) >= KNOWN else FIRST
        return max(MIN, known), "watchdog.timeout, chosen"

    def _watch(self) -> None:
        while not self._stop.wait(self._tick):
            self._waited += self._tick
            limit, key = self.limit()
            if self._waited <= limit:
                continue
            is_step, where = self._phase in STEP_PHASES, place(self._main)
            stacks(self._dump)
            what = f"no step has finished after step {self._step}" if is_step else f"{self._phase} has not finished"
            self._end(
                f"{what} within {limit:g} s ({key}); the main thread is at {where}, and the stacks of all threads are in "
                f"{self._dump}; run the same command to resume"
            )
            return

    def _at_end(self, code: int, line: str) -> None:
        if threading.current_thread() is self._thread:
            if hosts.several():
                time.sleep(TOGETHER)
        elif code == HUNG and not self._dumped:
            self._dumped = True
            stacks(self._dump)


def stacks(path: Path) -> None:
    """Write the stacks of all threads to stderr and to a file."""
    with open(path, "w") as file:
        file.write(time.strftime("%Y-%m-%d %H:%M:%S\n"))
        file.flush()
        for to in filter(None, (file, sys.__stderr__)):
            faulthandler.dump_traceback(to, all_threads=True)


def place(thread: int) -> str:
    """Return "file:line (function)" of the innermost line of this repository that a thread is at, else of any."""
    stack = traceback.extract_stack(sys._current_frames()[thread])
    own = [frame for frame in stack if Path(frame.filename).is_relative_to(REPOSITORY) and ".venv" not in frame.filename]
    frame = (own or stack)[-1]
    file = Path(frame.filename)
    return f"{file.relative_to(REPOSITORY) if own else file.name}:{frame.lineno} ({frame.name})"
