"""What watches a training loop from beside it: goodput, the watchdog, and the comparison of hosts.

The loop says which phase begins (`enter`) and that a step has finished (`stepped`). Phases: start, compile, data, rollout (the
batch of reinforcement learning is work, not waiting), dispatch, wait (for a step), validation, save, other.
"""

from pathlib import Path

import jax
import ml_collections

from lm.parallel import hosts
from lm.train.alerts import KINDS, alert
from lm.train.goodput import Goodput
from lm.train.stragglers import Stragglers
from lm.train.watchdog import STEP_PHASES, Watchdog


class Supervision:
    """Begins when the loop begins, with the phase "start". begin: the step that the run resumes from."""

    def __init__(self, config: ml_collections.ConfigDict, workdir: Path, begin: int):
        keys = config.watchdog
        self._workdir, self._told = workdir, False
        self.goodput = Goodput(workdir, begin, enabled=hosts.is_first())
        self._watchdog = Watchdog(keys.timeout, keys.other, workdir / f"hang-{jax.process_index()}.txt")
        self._stragglers = Stragglers(keys.compare_every, keys.slower, jax.process_count())
        self._steps, self._waited = 0.0, 0.0  # seconds of phases of steps, and of "wait", after the last step
        self._watchdog.start()
        hosts.at_end.append(self._ended)

    def enter(self, phase: str) -> str:
        """Begin a phase. Return the one that ends."""
        self._watchdog.enter(phase)
        return self.goodput.enter(phase)

    def got_batch(self, is_first: bool, is_busy: bool) -> None:
        """End the wait for a batch. is_first: its step is compiled now. is_busy: the devices compute the step before."""
        before = self.goodput.seconds.get("data", 0.0)
        self.enter("compile" if is_first else "dispatch")
        if is_busy:
            self.goodput.hide(self.goodput.seconds.get("data", 0.0) - before)

    def stepped(self, step: int) -> tuple[dict[str, float], list[str]]:
        """Note that a step has finished. Return numbers to log and lines to print. Collective."""
        self.goodput.stepped(step)
        seconds = self.goodput.seconds
        steps = sum(seconds.get(phase, 0.0) for phase in (*STEP_PHASES, "data hidden"))
        waited = seconds.get("wait", 0.0)
        whole, blocked = steps - self._steps, waited - self._waited
        self._steps, self._waited = steps, waited
        self._watchdog.stepped(step, whole)
        numbers, lines = self._stragglers.stepped(step, whole - blocked, whole)
        for text in lines:
            alert(self._workdir, "slow", step, text)
        return {"goodput": self.goodput.fraction, **numbers}, lines

    def saved(self, step: int, phase: str) -> None:
        """Note that a save has begun in the background, and go back to a phase."""
        self.goodput.record(step, saved=True)
        self.enter(phase)

    def _ended(self, code: int, line: str) -> None:
        """Write a last record and an alert when the process ends in an error, perhaps from another thread. Once."""
        self.goodput.record(self.goodput.step)
        if not self._told:
            self._told = True
            alert(self._workdir, KINDS.get(code, "failed"), self.goodput.step, line, wait=True)

    def close(self, end: bool) -> None:
        self._watchdog.stop()
        hosts.at_end.remove(self._ended)
        self.goodput.close(end)
