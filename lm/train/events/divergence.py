"""Answer a bad step: report it, go back to a checkpoint and on with other data, or end the run.

    WORKDIR/rewinds.json         the rewinds of the run, oldest first (the same list is in the meta of later checkpoints)
    WORKDIR/skipped_data.jsonl   the abandoned steps of each rewind: step, batch, loss, grad_norm, ids of the rows

A rewind is {"at", "to", "shift", "cause"}: after step `at` the run went back to step `to`, and since then step n reads batch
n + shift. So all batches that were read between the two are left out, as PaLM did by hand (Chowdhery et al. 2022, section 5.1).

A run stays a pure function of its config: a rewind is on disk before the run goes on, and going on is resuming. For step n the
newest rewind with `to` < n counts. A checkpoint whose meta lacks a rewind with `to` before its step belongs to steps that were
abandoned, and is deleted. Only checkpoints at multiples of checkpoint_every are returned to, because a run that was stopped has
one more.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from lm.files import saving
from lm.parallel.hosts import from_first
from lm.runs.checkpoint import Checkpoints
from lm.runs.workdir import kept_json, steps_saved
from lm.train import guard
from lm.train.alerts import alert
from lm.train.feed import Stream
from lm.train.history import json_lines
from lm.train.loop import Diverged, Done, Event, Rewound, Run
from lm.train.update import TrainState

RECORD, SKIPPED = "rewinds.json", "skipped_data.jsonl"


class Divergence(Event):
    """Answers a bad step, and keeps `run.rewinds`."""

    def restore(self, run: Run) -> None:
        run.rewinds = Rewinds(run.config, run.workdir)

    def start(self, run: Run) -> None:
        if run.saves.guard_is_new and run.state.guard:
            run.log.say(
                f"step {run.begin}: the checkpoint has no spike guard of this form, so a new one starts (guard.warmup steps)"
            )

    def done(self, run: Run, done: Done) -> None:
        """Raises: Rewound; Diverged."""
        step, in_row, metrics = done.step, run.skipped_in_row, done.metrics
        loss, norm, spike = metrics["loss"], metrics["grad_norm"], metrics.get("spike", 0)
        is_finite, is_spike = np.isfinite(loss) and np.isfinite(norm), bool(spike > np.float32(run.config.guard.threshold))
        if in_row and is_finite and not is_spike:
            raise Diverged(  # immediately, since another batch would not help
                step,
                f"step {step}: loss and gradient are finite, but the update overflows at learning rate "
                f"{metrics['learning_rate']:g} and was left out; lower optimizer.learning_rate, {_again(run)}",
            )
        if in_row and is_finite:
            run.log.say(
                f"step {step}: loss {loss:.4g}, gradient norm {norm:.4g}: a spike, {spike:.3g} deviations above the "
                "level, update skipped"
            )
        elif in_row:
            run.log.say(f"step {step}: loss {loss} or gradient norm {norm} is not finite, update skipped")
        elif is_spike and metrics["recent"] < guard.RECURRING + 2:  # the first ones only
            run.log.say(
                f"step {step}: loss {loss:.4g}, gradient norm {norm:.4g}: {spike:.3g} deviations above the level. Such "
                "steps come back one by one, so they are data of another kind, and are not skipped any more"
            )
        if in_row >= run.config.max_skipped_in_row:
            _too_many_skipped(run, step, is_spike)
        most, high = run.config.guard.high_steps, int(metrics.get("high_in_row", 0))
        if most and high >= most and not in_row:
            _high_for_long(run, step, high)


def unsound(run: Run) -> None:
    """Rewind a run whose state cannot be saved, as after a flipped bit, or end it. Raises: Rewound; Diverged.

    If it was already rewound for this cause and nothing was saved since, other data do not help, and that rewind is undone. The
    run ends if the last steps failed too.
    """
    cause = "parameters or optimizer moments are not finite, or so large that their squares are not"
    if not run.rewinds.undo(cause) and not run.skipped_in_row:
        run.rewinds.rewind(run.step, run.step, cause, run.log.say)
    raise Diverged(run.step, f"step {run.step}: {cause}; they were not saved. Lower optimizer.learning_rate, {_again(run)}")


def _too_many_skipped(run: Run, step: int, is_spike: bool) -> None:
    in_row = run.skipped_in_row
    cause = f"{in_row} steps in a row were skipped (max_skipped_in_row)"
    run.rewinds.rewind(step, step - in_row + 1, cause, run.log.say)
    if not is_spike:
        raise Diverged(
            step,
            f"{in_row} steps in a row (max_skipped_in_row) had a loss or gradient that is not finite, the last is step "
            f"{step}{_after_rewinds(run)}; lower optimizer.learning_rate or look at the data of these steps, {_again(run)}",
        )
    run.log.say(
        f"step {step}: {cause}{_after_rewinds(run)}; the loss or the gradient norm seems to stay higher, so it is accepted now"
    )


def _high_for_long(run: Run, step: int, high: int) -> None:
    """high: accepted steps in a row with a high loss (lm/train/guard.py)."""
    if ";" in (run.config.data.get("weights") or ""):  # the level of the loss changes with the mixture
        return
    cause = f"the loss was high for {high} accepted steps in a row (guard.high_steps)"
    run.rewinds.rewind(step, step - high + 1, cause, run.log.say)
    if high == run.config.guard.high_steps:
        run.log.say(f"step {step}: {cause}{_after_rewinds(run)}")


def _after_rewinds(run: Run) -> str:
    return f", after {run.rewinds.count} rewinds (guard.rewinds)" if run.rewinds.count else ""


def _again(run: Run) -> str:
    return f"then run the same command: it resumes from step {run.saves.checkpoints.latest() or 0}"


class Rewinds:
    """The rewinds of a run. Every process holds the same list and calls every method."""

    def __init__(self, config: ml_collections.ConfigDict, workdir: Path):
        self._config, self._workdir, self._settings = config, workdir, guard.settings(config)
        self._done: list[dict[str, Any]] = from_first(lambda: kept_json(workdir / RECORD, _fits) or [])

    @property
    def count(self) -> int:
        return len(self._done)

    def newest(self, checkpoints: Checkpoints, healthy: Callable[[list[int]], int | None]) -> int | None:
        """Return the step of the newest checkpoint that is whole and not abandoned, or None. Newer ones are removed.

        healthy: returns the newest of some steps after which the loss was not high.
        """
        self._checkpoints, self._healthy = checkpoints, healthy
        while (step := checkpoints.whole(self._damaged)) is not None:
            known = checkpoints.meta(step).get("rewinds", [])
            self._done = max(self._done, known, key=len)  # rewinds.json may have been lost
            if not any(one["to"] < step for one in self._done[len(known) :]):
                break
            checkpoints.remove(step)
        return step

    def ready(self, state: TrainState, mesh: Mesh) -> TrainState:
        """Return the state with its guard: a new one if it has none, and the steps after which the learning rate is lowered."""
        settings = self._settings
        if settings is None:
            return state._replace(guard=())
        everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        new = state.guard or jax.jit(lambda: guard.init(settings), out_shardings=everywhere)()
        lowered_R = np.full(new.lowered_R.shape, -1, np.int32)
        steps = [one["to"] for one in self._done]
        # A later rewind to before a step has abandoned it.
        lowered = [step for i, step in enumerate(steps) if all(later > step for later in steps[i + 1 :])][-len(lowered_R) :]
        lowered_R[: len(lowered)] = lowered
        return state._replace(guard=new._replace(lowered_R=jax.device_put(lowered_R, everywhere)))

    def meta(self) -> dict[str, Any]:
        """Return what the meta of a checkpoint says about rewinds."""
        return {"rewinds": self._done} if self._done else {}

    def counted(self, step: int) -> dict[str, int]:
        """Return numbers to log with a step: rewinds so far, and batches left out. {} before the first rewind."""
        done = [i for i, one in enumerate(self._done, start=1) if one["to"] < step]
        return {"rewinds": done[-1], "skipped_batches": self.shift(step)} if done else {}

    def shift(self, step: int) -> int:
        """Return how many batches later than its own a step reads."""
        return next((one["shift"] for one in reversed(self._done) if one["to"] < step), 0)

    def shifted(self, stream: Stream) -> Stream:
        """Return the stream without the batches that are left out."""
        self._stream = Shifted(stream, self) if self._done else stream
        return self._stream

    def rewind(self, at: int, first: int, cause: str, say: Callable[[str], None]) -> None:
        """Raise Rewound after it is on disk, unless no rewind is left or there is no checkpoint. Every process calls it.

        Args: at: the last finished step. first: the first bad step; older checkpoints are returned to.
        """
        if self._settings is None or len(self._done) >= self._settings.rewinds:
            return
        self._checkpoints.wait()
        found = from_first(lambda: self._target(first))
        if found is None:
            return
        rewind = {"at": at, "to": found, "shift": at - found + self.shift(at), "cause": cause}
        text = (
            f"step {at}: {cause}: rewind {len(self._done) + 1} of {self._settings.rewinds} (guard.rewinds) to step {found}; "
            f"the batches of steps {found + 1} to {at} are left out and listed in {SKIPPED}"
        )
        from_first(lambda: self._write(rewind))
        self._done.append(rewind)
        say(text)
        alert(self._workdir, "rewind", at, text)
        raise Rewound(text)

    def _damaged(self, text: str) -> None:
        print(text, flush=True)
        alert(self._workdir, "damaged", None, text)

    def undo(self, cause: str) -> bool:
        """Forget the newest rewind if it had this cause and nothing was saved since: the data that it left out were not the
        cause. Return whether it was so."""
        if not self._done or self._done[-1]["cause"] != cause or self._done[-1]["to"] != self._checkpoints.latest():
            return False
        n, path = len(self._done), self._workdir / SKIPPED
        self._done.pop()
        # The record first: lines that a kill leaves are replaced by the next rewind.
        from_first(lambda: saving.write_json(self._workdir / RECORD, self._done))
        from_first(lambda: saving.write_lines(path, [row for row in json_lines(path) if row["rewind"] < n]))
        return True

    def _target(self, first: int) -> int | None:
        saved = steps_saved(self._workdir)
        return target(saved, first, self._config.checkpoint_every, self._done, self._healthy(saved))

    def _write(self, rewind: dict[str, Any]) -> None:
        n, path = len(self._done) + 1, self._workdir / SKIPPED
        logged = {row["step"]: row for row in json_lines(self._workdir / "metrics.jsonl") if "loss" in row and "step" in row}
        lines = [row for row in (json_lines(path) if path.exists() else []) if row["rewind"] < n]
        for step in range(rewind["to"] + 1, rewind["at"] + 1):
            values = {name: logged.get(step, {}).get(name) for name in ("loss", "grad_norm", "spike", "skipped")}
            place = {"rewind": n, "step": step, "batch": step - 1 + self.shift(step)}
            lines.append(place | values | {"ids": self._stream.ids(step)})
        saving.write_lines(path, lines)
        saving.write_json(self._workdir / RECORD, [*self._done, rewind])


def _fits(done: Any) -> bool:
    """Return whether this is a list of rewinds."""
    known = ("at", "to", "shift")
    return isinstance(done, list) and all(isinstance(one, dict) and all(type(one.get(k)) is int for k in known) for one in done)


def target(saved: list[int], first: int, every: int, done: list[dict[str, Any]], healthy: int | None = None) -> int | None:
    """Return the step to go back to, or None if nothing is saved.

    It is the newest checkpoint before step `first`, and none after `healthy` (see Losses); if the newest rewind went
    there, the one before it, because the state there may be bad already. If there is no such checkpoint, the oldest.

    >>> target([20, 40, 60], first=55, every=20, done=[]), target([20, 40, 60], first=55, every=20, done=[{"to": 40}])
    (40, 20)
    """
    regular = [step for step in saved if every and step % every == 0] or saved
    before = [step for step in regular if step < first and (healthy is None or step <= healthy)] or regular[:1]
    if done and len(before) > 1 and before[-1] == done[-1]["to"]:
        before.pop()
    return before[-1] if before else None


class Shifted:
    """A Stream whose step n is step n + shift(n) of another one."""

    def __init__(self, stream: Stream, rewinds: Rewinds):
        self._stream, self._rewinds = stream, rewinds
        self._by = -1  # the shift that the stream was started with; −1: not started
        self.phase = getattr(stream, "phase", "data")

    def start(self, step: int) -> None:
        self._by = self._rewinds.shift(step + 1)
        self._stream.start(step + self._by)

    def next(self, step: int, params: nnx.State, wait: Callable[[], float]) -> tuple[dict[str, jax.Array], Mapping[str, float]]:
        if self._rewinds.shift(step) != self._by:  # a checkpoint older than a rewind was resumed
            self._stream.close()
            self.start(step - 1)
        return self._stream.next(step + self._by, params, wait)

    def ids(self, step: int) -> list[int] | None:
        return self._stream.ids(step + self._rewinds.shift(step))

    def close(self) -> None:
        self._stream.close()
