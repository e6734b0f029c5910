"""A training run as its events see it, and what an event is.

The loop (lm/train/loop.py) computes steps. All else that a run does beside them is an event: one file each in lm/train/events.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jax
import ml_collections
from flax import nnx
from jax.sharding import Mesh

from lm.parallel.arrays import PyTree
from lm.parallel.context import sequences_whole
from lm.train.metrics import Log
from lm.train.rewind import Rewinds
from lm.train.saved import Saved
from lm.train.state import TrainState, averaged
from lm.train.step import Batch, Trainer
from lm.train.supervision import Supervision


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
    """Something that a run does beside its steps. Every process calls each method of all events, in the order of their list."""

    def start(self, run: "Run") -> None:
        """The state is there: `run.begin` steps were done before."""

    def before(self, run: "Run", step: int) -> None:
        """A step comes next; `run.state` is the state before it."""

    def after(self, run: "Run", step: int) -> None:
        """A step was dispatched: `run.state` is the state after it, which the devices may still compute."""

    def done(self, run: "Run", done: Done) -> None:
        """A step is done. The next one is already dispatched, unless something waits for this one."""

    def end(self, run: "Run") -> None:
        """All steps are done."""

    def close(self, run: "Run") -> None:
        """The run ends here, after `end` or after an error. Called if `start` was."""


class Run:
    """The state of a run, its counts, and what its events share.

    Attributes:
      step: the last one that was dispatched. state, batch, device_metrics: after it, of it, its numbers on the devices.
      begin: the steps that were done before.
      tokens, skipped, skipped_in_row: up to the last step that is done. tokens_per_second: of each of these steps.
      valid: the validation at the end, or None.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        trainer: Trainer,
        mesh: Mesh,
        workdir: Path,
        frozen: PyTree,
        events: Sequence[Event],
        rewinds: Rewinds,
    ):
        self.config, self.trainer, self.mesh, self.workdir, self.frozen = config, trainer, mesh, workdir, frozen
        self.rewinds, self.saved = rewinds, Saved(config, workdir)
        self.state: TrainState
        self.log: Log
        self.supervision: Supervision
        self.step = self.begin = self.tokens = self.skipped = self.skipped_in_row = self.num_params = 0
        self.batch: Batch | None = None
        self.device_metrics: Mapping[str, jax.Array] = {}
        self.valid: dict[str, float] | None = None
        self.tokens_per_second: list[float] = []
        self._events, self._started = events, list[Event]()
        self._pending: tuple[int, Mapping[str, jax.Array], list[int] | None] | None = (
            None  # the dispatched step, until it is read
        )
        self._last_done = self._clock = 0.0

    def tell(self, moment: str, *about: object) -> None:
        """Call the method `moment` of each event."""
        for event in self._events:
            getattr(event, moment)(self, *about)

    def restore(self, start: Callable[[], nnx.State | None]) -> None:
        """Take the state of the newest whole checkpoint, or begin with start()."""
        self.state, self.begin, self.tokens = self.saved.restore(self.trainer, self.mesh, self.rewinds, start)
        self.step, self.skipped, self.skipped_in_row = self.begin, int(self.state.skipped), int(self.state.skipped_in_row)

    def start(self) -> None:
        for event in self._events:
            event.start(self)
            self._started.append(event)
        self._last_done = self._clock = time.perf_counter()

    def close(self) -> None:
        """Close each event that was started, whatever happens to the others."""
        with contextlib.ExitStack() as stack:
            for event in reversed(self._started):
                stack.callback(event.close, self)

    def got_batch(self) -> None:
        """Note that the next batch is there. Waiting for it cost nothing if the devices were computing all the while."""
        is_busy = self._pending is not None and not self._pending[1]["loss"].is_ready()  # type: ignore[attr-defined]
        self.supervision.got_batch(is_first=self.step == self.begin, is_busy=is_busy)

    def dispatched(self, state: TrainState, batch: Batch, metrics: Mapping[str, jax.Array], ids: list[int] | None) -> None:
        """Note a step that the devices compute now."""
        self.read()
        self.step, self.state, self.batch, self.device_metrics = self.step + 1, state, batch, metrics
        self._pending = self.step, metrics, ids

    def read(self) -> float:
        """Wait for the dispatched step, if it was not read yet, and tell the events. Return the time when the last was done.

        The time is that of time.perf_counter. Raises: Diverged; Rewound.
        """
        if self._pending is None:
            return self._last_done
        before = self.supervision.enter("wait")
        (step, device_metrics, ids), self._pending = self._pending, None
        metrics = {name: float(value) for name, value in device_metrics.items()}
        now = self._last_done = time.perf_counter()
        done = Done(step, metrics, ids, int(metrics["tokens"]), now - self._clock)
        self.tokens, self._clock = self.tokens + done.tokens, now
        self.saved.losses.trained(metrics["loss"])
        self.skipped, self.skipped_in_row = int(metrics["skipped"]), int(metrics["skipped_in_row"])
        self.tokens_per_second.append(done.tokens / done.seconds)
        self.tell("done", done)
        self.supervision.enter(before)
        return now

    @contextlib.contextmanager
    def pause(self, phase: str) -> Iterator[None]:
        """Wait for the dispatched step. The block is no part of a step; its time is that of `phase` (lm/train/goodput.py)."""
        self.supervision.enter(phase)
        self.read()
        yield
        self._clock = time.perf_counter()

    @contextlib.contextmanager
    def whole_params(self) -> Iterator[nnx.State]:
        """Yield the parameters to evaluate, on a mesh that splits no sequences."""
        with sequences_whole(averaged(self.state)) as params:
            yield params

    def again(self) -> str:
        return f"then run the same command: it resumes from step {self.saved.checkpoints.latest() or 0}"
