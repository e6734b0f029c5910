"""The checkpoints of a run: the state restored at the beginning, saved in between and at the end, and which of them stay."""

import collections
import functools
import math
import signal
import statistics
from pathlib import Path
from types import FrameType
from typing import Any, TypeGuard

import jax
import ml_collections
from flax import nnx
from jax.experimental import multihost_utils

from lm.bucket.places import with_urls
from lm.bucket.steps import HEALTHY
from lm.errors import Stopped
from lm.files.saving import write_json
from lm.parallel.hosts import is_first
from lm.runs import fingerprints
from lm.runs.checkpoint import PENDING, Checkpoints
from lm.runs.workdir import steps_saved
from lm.train.alerts import alert
from lm.train.events.divergence import unsound
from lm.train.feed import AheadStream
from lm.train.guard import HIGH
from lm.train.history import json_lines
from lm.train.loop import Done, Event, Run
from lm.train.step import abstract_state, state_shardings
from lm.train.update import TrainState, sound, stored, unstored

RECENT = 16  # steps whose median loss is that of a checkpoint
HIGHER = 0.05  # of the lowest loss: one checkpoint more stays while the loss is higher by this; a line says so only at HIGH


class Saves(Event):
    """Restores the newest checkpoint; saves when it is due, at the end, and when a signal stops the run. Is `run.saves`.

    Attributes:
      losses: what decides which checkpoints stay.
      base: a reference to the base weights of adapters, where checkpoints do not hold them; else None.
      guard_is_new: whether the restored checkpoint had no spike guard of this form.
    """

    def restore(self, run: Run) -> None:
        """Take the state of the newest whole checkpoint, or begin with run.initial().

        Raises: UserError: the checkpoint is not one of this run, or all are damaged.
        """
        config, run.saves, self.base, self.guard_is_new = run.config, self, None, False
        self.checkpoints, self.losses = opened(config, run.workdir)
        run.at_end.callback(self.checkpoints.close)
        begin = run.rewinds.newest(self.checkpoints, self.losses.healthy)
        self.losses.read(begin or 0)
        if begin is not None:
            state = self._read(run, begin)
        else:
            if config.init_from and config.model.adapter.rank:
                from lm.convert.base import reference

                self.base = reference(config.init_from, run.workdir)
            shardings = state_shardings(run.trainer, run.mesh)
            state = jax.jit(run.trainer.init, out_shardings=shardings, donate_argnums=0)(run.initial())
        run.state, run.begin, run.step = run.rewinds.ready(state, run.mesh), begin or 0, begin or 0
        run.skipped, run.skipped_in_row = int(state.skipped), int(state.skipped_in_row)
        about = {"config": config.to_dict(), "fingerprints": fingerprints.of(run.workdir)}
        self._about = with_urls(about | ({"base": self.base} if self.base else {}))

    def _read(self, run: Run, begin: int) -> TrainState:
        """Return the state of a checkpoint, and set what else its meta holds."""
        meta, abstract = self.checkpoints.meta(begin), abstract_state(run.trainer, run.mesh)
        fingerprints.check(meta, run.config, run.workdir, begin)
        self.base, run.tokens = meta.get("base"), meta["tokens"]
        average = nnx.filter_state(abstract.params, run.trainer.learns) if "raw" in self.checkpoints.stored(begin) else ()
        guard = abstract.guard if self.checkpoints.fits(begin, "guard", abstract.guard) else ()
        fields = self.checkpoints.restore(begin, self._fields(run, abstract._replace(average=average, guard=guard)))
        if isinstance(run.stream, AheadStream):
            run.stream.take(self.checkpoints.pending(begin))
        if self.base:
            from lm.convert.source import open_source

            fields["params"] = open_source(run.workdir, begin).load(abstract.params)
        state = unstored(fields, run.trainer.learns, bool(run.config.ema))
        self.guard_is_new = begin > 0 and not state.guard
        return state

    def start(self, run: Run) -> None:
        self._is_sound, self._signals = jax.jit(functools.partial(sound, offload=run.trainer.offload)), Signals()
        run.at_end.callback(self._signals.restore)
        if text := self.losses.high(run.begin, self.checkpoints.steps()):
            run.log.say(text)

    def done(self, run: Run, done: Done) -> None:
        self.losses.trained(done.metrics["loss"])

    def after(self, run: Run, step: int) -> None:
        is_due = run.config.checkpoint_every and step % run.config.checkpoint_every == 0
        signum = self._signals.received(step)
        if is_due or signum or step == run.config.steps:
            run.read()
            # After a skipped step the run may soon go back to the last checkpoint.
            if not run.skipped_in_row or signum or step == run.config.steps:
                self._save(run)
        if signum:
            self.end(run)
            name = signal.Signals(signum).name
            raise Stopped(f"stopped by {name} after step {step}, which was saved; run the same command to resume", signum)

    def end(self, run: Run) -> None:
        run.health.enter("save")
        self.checkpoints.wait(functools.partial(self._save, run))

    def _save(self, run: Run) -> None:
        """Begin to save. Raises Rewound or Diverged if the state is not sound: it would replace a sound checkpoint."""
        before = run.health.enter("save")
        run.log.flush()
        if not self._is_sound(run.state):
            unsound(run)
        if text := self.losses.saving(run.step, self.checkpoints.steps()):
            run.log.say(text)
            alert(run.workdir, "high", run.step, text)
        meta = self._about | {"tokens": run.tokens} | run.rewinds.meta()
        pending = run.stream.pending() if isinstance(run.stream, AheadStream) else {}
        self.checkpoints.save(run.step, self._fields(run, run.state) | ({PENDING: pending} if pending else {}), meta)
        run.health.saved(run.step, before)

    def _fields(self, run: Run, state: TrainState) -> dict[str, Any]:
        """Return the part of the state that checkpoints hold, by name."""
        fields = stored(state, run.trainer.learns)
        return fields if self.base is None else fields | {"params": nnx.filter_state(fields["params"], run.trainer.learns)}


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


class Losses:
    """The losses of a run, which decide the checkpoints that stay beside the newest.

    A checkpoint is healthy if its training loss is at most HIGHER above the lowest of the run; it is the median of the last
    RECENT steps, or of checkpoint_every if that is fewer. The newest healthy one stays, so a run that goes bad with finite
    numbers, as with a learning rate of 1e3, never removes its last good checkpoint. In reinforcement learning none is healthy,
    since its loss says nothing.
    """

    def __init__(self, config: ml_collections.ConfigDict, workdir: Path):
        self._workdir, self._every, self._compared = workdir, config.checkpoint_every, config.get("method") != "rl"
        self._is_first = is_first()
        self._valid: dict[int, float] = {}
        self._losses: dict[int, float] = {}  # by step, of checkpoints
        self._recent: collections.deque[float] = collections.deque(maxlen=min(RECENT, self._every or RECENT))

    def read(self, begin: int) -> None:
        """Begin with what metrics.jsonl says of the steps up to `begin`."""
        log, saved = self._workdir / "metrics.jsonl", set(steps_saved(self._workdir))
        for line in json_lines(log) if log.exists() else ():
            step = line.get("step")
            if not isinstance(step, int) or step > begin:
                continue
            if "loss" in line:
                self.trained(line["loss"])
                if step in saved or (self._every and step % self._every == 0):
                    self._losses[step] = statistics.median(self._recent)
            self.validated(step, {name.removeprefix("valid_"): value for name, value in line.items() if "valid_" in name})

    def validated(self, step: int, values: dict[str, Any]) -> None:
        """Note the loss of a validation; without a loss, as in reinforcement learning, the reward with its sign changed."""
        loss, reward = values.get("loss"), values.get("reward")
        if _is_finite(loss):
            self._valid[step] = loss
        elif loss is None and _is_finite(reward):
            self._valid[step] = -reward

    def trained(self, loss: Any) -> None:
        """Note the training loss of the next step. What is no finite number, as in a damaged log, counts as infinite."""
        self._recent.append(loss if _is_finite(loss) else math.inf)

    def saving(self, step: int, steps: list[int]) -> str | None:
        """Note that the state after a step is saved. Return a line to print if the loss has become high since the last save.

        steps: saved before, ascending. The file HEALTHY tells a mirror of the workdir which checkpoint stays
        (lm/bucket/mirror.py).
        """
        was_high = self.high(max(self._losses, default=0), steps)
        self._losses[step] = statistics.median(self._recent) if self._recent else math.inf
        if self._is_first:
            write_json(self._workdir / HEALTHY, {"step": self.healthy([*steps, step])})
        return self.high(step, steps) if not was_high else None

    def high(self, step: int, steps: list[int]) -> str | None:
        """Return a description if the training loss is high at a checkpoint and one of `steps` is healthy, else None."""
        healthy = self.healthy(steps)
        if healthy is None or healthy >= step or step not in self._losses or self._losses[step] <= self._limit(HIGH):
            return None
        lowest = min(self._losses, key=self._losses.__getitem__)
        return (
            f"step {step}: the training loss is {self._losses[step]:.4g}, and was {self._losses[lowest]:.4g} at step {lowest}. "
            f"Checkpoint {healthy} stays until the loss is as low again; to go back to it, delete the newer ones in "
            f"{self._workdir / 'checkpoints'}"
        )

    def best(self, steps: list[int]) -> int | None:
        """Return the one with the best validation, or None if none was validated."""
        rated = [step for step in steps if step in self._valid]
        return min(rated, key=self._valid.__getitem__, default=None)

    def healthy(self, steps: list[int]) -> int | None:
        """Return the newest healthy one, or None. Multiples of checkpoint_every go first: a stopped run has one more."""
        good = [step for step in steps if self._losses.get(step, math.inf) <= self._limit(HIGHER)]
        regular = [step for step in good if self._every and step % self._every == 0]
        return max(regular or good, default=None)

    def last_healthy(self, steps: list[int]) -> int | None:
        """Return what must be kept beside the newest: the newest healthy one, or None if the newest is healthy itself."""
        return self.healthy(steps) if self.healthy(steps[-1:]) is None else None

    def _limit(self, above: float) -> float:
        """Return the loss that is a fraction above the lowest; −inf if losses say nothing."""
        lowest = min(self._losses.values(), default=math.inf)
        return lowest + above * abs(lowest) if self._compared and math.isfinite(lowest) else -math.inf


def _is_finite(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)


def opened(config: ml_collections.ConfigDict, workdir: Path) -> tuple[Checkpoints, Losses]:
    """Return the checkpoints of a run, and what decides which stay: it is to be told each loss, and every save."""
    losses = Losses(config, workdir)
    keep = {key: config.get(key) for key in ("keep_last", "keep_every", "keep_hours") if config.get(key) is not None}
    chosen = [losses.last_healthy, *([losses.best] if config.get("keep_best") else [])]
    return Checkpoints(workdir, **keep, keep_chosen=chosen), losses
