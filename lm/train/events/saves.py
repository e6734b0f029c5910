"""Save the state: every config.checkpoint_every steps, at the end, and when a signal stops the run."""

import functools
import signal
from types import FrameType

import jax
from jax.experimental import multihost_utils

from lm.errors import Stopped
from lm.train.alerts import alert
from lm.train.events.divergence import unsound
from lm.train.run import Event, Run
from lm.train.state import sound


class Saves(Event):
    """Saves checkpoints when they are due, and at the end."""

    def start(self, run: Run) -> None:
        self._is_sound, self._signals = jax.jit(sound), Signals()
        if text := run.saved.losses.high(run.begin):
            run.log.say(text)

    def after(self, run: Run, step: int) -> None:
        is_due = run.config.checkpoint_every and step % run.config.checkpoint_every == 0
        signum = self._signals.received(step)
        if is_due or signum or step == run.config.steps:
            run.read()
            # After a skipped step the run may soon go back to the last checkpoint.
            if not run.skipped_in_row or signum or step == run.config.steps:
                self._save(run)
        if signum:
            run.supervision.enter("save")
            run.saved.checkpoints.wait(functools.partial(self._save, run))
            name = signal.Signals(signum).name
            raise Stopped(f"stopped by {name} after step {step}, which was saved; run the same command to resume", signum)

    def end(self, run: Run) -> None:
        run.supervision.enter("save")
        run.saved.checkpoints.wait(functools.partial(self._save, run))

    def close(self, run: Run) -> None:
        self._signals.restore()

    def _save(self, run: Run) -> None:
        """Begin to save. Raises Rewound or Diverged if the state is not sound: it would replace a sound checkpoint."""
        before = run.supervision.enter("save")
        run.log.flush()
        if not self._is_sound(run.state):
            unsound(run)
        if text := run.saved.losses.saving(run.step):
            run.log.say(text)
            alert(run.workdir, "high", run.step, text)
        run.saved.save(run.step, run.state, run.tokens, run.rewinds)
        run.supervision.saved(run.step, before)


class Signals:
    """Notes SIGTERM and SIGINT until the run asks; several hosts all stop after the same step."""

    def __init__(self) -> None:
        self._signum = 0
        # With several hosts JAX's preemption service handles the signal.
        signals = (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else ()
        self._before = {signum: signal.signal(signum, self._note) for signum in signals}

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self._signum:  # a second signal stops at once
            raise KeyboardInterrupt
        self._signum = signum

    def received(self, step: int) -> int:
        if jax.process_count() > 1:
            return signal.SIGTERM if multihost_utils.reached_preemption_sync_point(step) else 0
        return self._signum

    def restore(self) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
