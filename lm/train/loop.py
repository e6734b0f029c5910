"""The training loop: read batch n, dispatch step n, then wait for step n−1, which was computed meanwhile.

Steps are counted from 1: line n of the log is the n-th update, computed from batch n−1. All else that happens beside the steps
is an event, one file each in lm/train/events: the log, validation, checkpoints, the answer to a bad step.
"""

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import ml_collections
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from lm.errors import Ended
from lm.parallel.arrays import PyTree
from lm.train.alerts import alert
from lm.train.feed import Stream
from lm.train.step import Batch, Trainer, compiler_options
from lm.train.update import TrainState, averaged

if TYPE_CHECKING:  # events that others use by name
    from lm.train.events.divergence import Rewinds
    from lm.train.events.health import Health
    from lm.train.events.saves import Saves
    from lm.train.events.step_log import Log

STEP = "train"  # name of the loop's annotation of a step in a trace; its step_num is the step


class Rewound(Exception):
    """The run goes on from an older checkpoint. Its text says which and why."""


class Diverged(Ended):
    """The run cannot continue: too many steps in a row with a loss or gradient that is not finite, an update that overflowed,
    or a state to save that is not finite. step: the last one."""

    def __init__(self, step: int, text: str):
        super().__init__(text)
        self.step = step


@dataclass
class Done:
    """A step that the devices have finished.

    metrics: what the trainer's step returned, as floats, and numbers of the stream. ids: of the rows, if they are logged.
    tokens: trained by this step. seconds: since the step before. line: numbers to log; events before StepLog add to it.
    """

    step: int
    metrics: dict[str, float]
    ids: list[int] | None
    tokens: int
    seconds: float
    line: dict[str, float] = field(default_factory=dict)


class Event:
    """Something that a run does beside its steps. Every process calls each method of all events, in the order of their list.

    What an event opens is closed by `run.at_end`, after `end` or after an error, in reverse order.
    """

    def restore(self, run: "Run") -> None:
        """The run begins, or begins again after a rewind. Saves restores its state here."""

    def start(self, run: "Run") -> None:
        """The state is there: `run.begin` steps were done before."""

    def before(self, run: "Run", step: int) -> None:
        """A step comes next; `run.state` is the state before it."""

    def after(self, run: "Run", step: int) -> None:
        """A step was dispatched: `run.state` is the state after it, which the devices may still compute."""

    def done(self, run: "Run", done: Done) -> None:
        """A step is done. The next one is already dispatched, unless something waits for this one.

        It may raise Rewound or Diverged, and so may every method that reads a step or saves.
        """

    def end(self, run: "Run") -> None:
        """All steps are done."""


def train(
    config: ml_collections.ConfigDict,
    trainer: Trainer,
    mesh: Mesh,
    stream: Stream,
    workdir: Path,
    events: Sequence[Event],
    start: Callable[[], nnx.State | None] = lambda: None,
    frozen: PyTree = None,
) -> dict[str, Any]:
    """Train to `config.steps` from the newest complete checkpoint in `workdir`, else from start(), else from random weights.

    Args:
      stream: returns the batch of each step (lm/train/feed.py).
      events: what is done beside the steps, in this order: those of lm.train.events.usual, and perhaps others.
      frozen: the third argument of the trainer's step.
    Returns: see Run.result.
    Raises: Stopped on SIGTERM or SIGINT; Diverged; UserError for a checkpoint that does not fit, or if all are damaged.
    """
    step_fn = jax.jit(trainer.step, donate_argnums=0, compiler_options=compiler_options(mesh.devices.flat[0]))
    logs_ids = config.data.get("log_ids", False)
    while True:
        run = Run(config, trainer, mesh, stream, workdir, events, start, frozen)
        try:
            with run.at_end:
                for event in events:
                    event.restore(run)
                batches = run.rewinds.shifted(stream)  # step n may read a later batch than n−1
                batches.start(run.begin)
                run.at_end.callback(batches.close)
                for event in events:
                    event.start(run)
                began = run.clock = run.last_done = time.perf_counter()
                for step in range(run.begin + 1, config.steps + 1):
                    for event in events:
                        event.before(run, step)
                    with jax.profiler.StepTraceAnnotation(STEP, step_num=step):
                        run.health.enter(getattr(stream, "phase", "data"))
                        batch, numbers = batches.next(step, run.state.params, run.read)
                        run.health.enter("compile" if run.step == run.begin else "dispatch", busy=run.is_busy)
                        run.state, metrics = step_fn(run.state, batch, run.frozen)
                    run.dispatched(batch, metrics | numbers, batches.ids(step) if logs_ids else None)
                    for event in events:
                        event.after(run, step)
                seconds = time.perf_counter() - began
                for event in events:
                    event.end(run)
            return run.result() | {"seconds": seconds}
        except Rewound:
            pass  # it was logged
        except Diverged as diverged:
            alert(workdir, "diverged", diverged.step, str(diverged), wait=True)
            raise
        del run  # the abandoned state, before the next one is restored
        gc.collect()


@dataclass
class Run:
    """The state of a run, its counts, and what its events share.

    Attributes:
      stream: the source of batches.
      initial: returns the first parameters, or None for random ones. at_end: closes what was opened.
      step: the last one that was dispatched. state, batch, device_metrics: after it, of it, its numbers on the devices. While a
        step is read (`done`), the state may be that of the next one.
      pending: the dispatched step until it is read: (step, its numbers on the devices, ids of its rows).
      begin: the steps that were done before.
      tokens, skipped, skipped_in_row: up to the last step that is done. tokens_per_second: of each of these steps.
      last_done: when it was done (time.perf_counter). clock: when the time of the next step begins.
      valid: the validation at the end, or None.
      health, log, rewinds, saves: set by the events Health, StepLog, Divergence and Saves.
    """

    config: ml_collections.ConfigDict
    trainer: Trainer
    mesh: Mesh
    stream: Stream
    workdir: Path
    events: Sequence[Event]
    initial: Callable[[], nnx.State | None]
    frozen: PyTree
    at_end: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    step: int = 0
    begin: int = 0
    tokens: int = 0
    skipped: int = 0
    skipped_in_row: int = 0
    num_params: int = 0
    last_done: float = 0.0
    clock: float = 0.0
    batch: Batch | None = None
    device_metrics: Mapping[str, jax.Array] = field(default_factory=dict)
    pending: tuple[int, Mapping[str, jax.Array], list[int] | None] | None = None
    tokens_per_second: list[float] = field(default_factory=list)
    valid: dict[str, float] | None = None
    state: TrainState = field(init=False)
    health: "Health" = field(init=False)
    log: "Log" = field(init=False)
    rewinds: "Rewinds" = field(init=False)
    saves: "Saves" = field(init=False)

    @property
    def is_busy(self) -> bool:
        """Whether the devices still compute the dispatched step."""
        return self.pending is not None and not self.pending[1]["loss"].is_ready()  # type: ignore[attr-defined]

    def dispatched(self, batch: Batch, metrics: Mapping[str, jax.Array], ids: list[int] | None) -> None:
        """Note a step that the devices compute now, and read the one before."""
        self.read()
        self.step, self.batch, self.device_metrics = self.step + 1, batch, metrics
        self.pending = self.step, metrics, ids

    def read(self) -> float:
        """Wait for the dispatched step, if it was not read yet, and tell the events. Return the time when the last was done.

        The time is that of time.perf_counter. Raises: Diverged; Rewound.
        """
        if self.pending is None:
            return self.last_done
        before = self.health.enter("wait")
        (step, device_metrics, ids), self.pending = self.pending, None
        metrics = {name: float(value) for name, value in device_metrics.items()}
        now = self.last_done = time.perf_counter()
        done = Done(step, metrics, ids, int(metrics["tokens"]), now - self.clock)
        self.tokens, self.clock = self.tokens + done.tokens, now
        self.skipped, self.skipped_in_row = int(metrics["skipped"]), int(metrics["skipped_in_row"])
        self.tokens_per_second.append(done.tokens / done.seconds)
        for event in self.events:
            event.done(self, done)
        self.health.enter(before)
        return now

    @contextlib.contextmanager
    def pause(self, phase: str) -> Iterator[None]:
        """Wait for the dispatched step. The block is no part of a step; its time is that of `phase` (lm/train/goodput.py)."""
        self.health.enter(phase)
        self.read()
        yield
        self.clock = time.perf_counter()

    def result(self) -> dict[str, Any]:
        """Return the parameters and the run's numbers.

        params: the averages with config.ema. rewinds: of events/divergence.py. valid: the final validation or None.
        tokens_per_second: the median, or None.
        """
        return {
            "params": averaged(self.state),
            "step": self.step,
            "tokens": self.tokens,
            "skipped": self.skipped,
            "rewinds": self.rewinds.meta().get("rewinds", []),
            "valid": self.valid,
            "num_params": self.num_params,
            "tokens_per_second": float(np.median(self.tokens_per_second[1:])) if len(self.tokens_per_second) > 1 else None,
        }
