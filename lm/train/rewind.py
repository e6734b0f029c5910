"""Rewind a run that diverges: go back to a checkpoint, and on with other data.

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
from lm.train.keeping import Kept
from lm.train.state import TrainState

RECORD, SKIPPED = "rewinds.json", "skipped_data.jsonl"


class Rewound(Exception):
    """The run goes on from a checkpoint. Its text says which and why."""


class Rewinds:
    """The rewinds of a run. Every process holds the same list and calls every method."""

    def __init__(self, config: ml_collections.ConfigDict, workdir: Path):
        self._config, self._workdir, self._settings = config, workdir, guard.settings(config)
        self._done: list[dict[str, Any]] = from_first(lambda: kept_json(workdir / RECORD, _fits) or [])

    @property
    def count(self) -> int:
        return len(self._done)

    def newest(self, checkpoints: Checkpoints, kept: Kept) -> int | None:
        """Return the step of the newest checkpoint that is whole and not abandoned, or None. Newer ones are removed."""
        self._checkpoints, self._kept = checkpoints, kept
        while (step := checkpoints.whole(self._damaged)) is not None:
            known = checkpoints.meta(step).get("rewinds", [])
            self._done = max(self._done, known, key=len)  # rewinds.json may have been lost
            if not any(one["to"] < step for one in self._done[len(known) :]):
                break
            checkpoints.remove(step)
        kept.read(step or 0)
        return step

    def ready(self, state: TrainState, mesh: Mesh) -> TrainState:
        """Return the state with its guard: a new one if it has none, and the steps after which the learning rate is lowered."""
        settings = self._settings
        if settings is None:
            return state._replace(guard=())
        lowered = [one["to"] for one in self._active()][-len(guard.init(settings).lowered_R) :]
        everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        new = state.guard or jax.jit(lambda: guard.init(settings), out_shardings=everywhere)()
        lowered_R = np.full(new.lowered_R.shape, -1, np.int32)
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

    def shifted(self, stream: Stream) -> "Shifted":
        """Return the stream without the batches that are left out."""
        self._stream = Shifted(stream, self)
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

    def in_vain(self, cause: str) -> bool:
        """Return whether the newest rewind had this cause, and nothing was saved since."""
        return bool(self._done) and self._done[-1]["cause"] == cause and self._done[-1]["to"] == self._checkpoints.latest()

    def undo(self) -> None:
        """Forget the newest rewind, after which nothing was saved: the data that it left out were not the cause."""
        n, path = len(self._done), self._workdir / SKIPPED
        self._done.pop()
        # The record first: lines that a kill leaves are replaced by the next rewind.
        from_first(lambda: saving.write_json(self._workdir / RECORD, self._done))
        from_first(lambda: saving.write_lines(path, [row for row in json_lines(path) if row["rewind"] < n]))

    def _target(self, first: int) -> int | None:
        saved = steps_saved(self._workdir)
        return target(saved, first, self._config.checkpoint_every, self._done, self._kept.healthy(saved))

    def _active(self) -> list[dict[str, Any]]:
        """Return the rewinds whose steps were not abandoned by a later rewind."""
        return [one for i, one in enumerate(self._done) if all(later["to"] > one["to"] for later in self._done[i + 1 :])]

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

    It is the newest checkpoint before step `first`, and none after `healthy` (lm/train/keeping.py); if the newest rewind went
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
