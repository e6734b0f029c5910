"""The checkpoints of a training run: which are kept, and whether a checkpoint is one of this run.

The meta of each checkpoint holds the config of the run and "fingerprints", digests of contents: "tokenizer", "data" (the packed
rows) and "input" (the files that they were made of). A run does not resume from a checkpoint with other fingerprints, or with
other values of the IDENTITY keys (lm/runs/workdir.py): it is that of another run, or the data were replaced.
"""

import collections
import json
import math
import statistics
from pathlib import Path
from typing import Any, TypeGuard

import ml_collections
import xxhash

from data.text.fingerprints import INPUT, TOKENIZER
from lm.bucket.places import with_paths
from lm.bucket.steps import HEALTHY
from lm.errors import UserError
from lm.files.saving import write_json
from lm.parallel.hosts import is_first
from lm.runs.checkpoint import Checkpoints
from lm.runs.workdir import check_resumable, steps_saved
from lm.train.guard import HIGH
from lm.train.history import json_lines

# Keys with paths. A path may change when a run moves, so its content is compared instead.
PATHS = ("init_from", "tokenizer", "chat_template", "checkpoint")
RECENT = 16  # steps whose median loss is that of a checkpoint
HIGHER = 0.05  # of the lowest loss: one checkpoint more stays while the loss is higher by this; a line says so only at HIGH
CURES = {
    "tokenizer": "put the run's own tokenizer back",
    "data": "put the data back as they were",
    "input": "put the input back as it was",
}


class Kept:
    """The losses of a run, which decide the checkpoints that stay beside the newest.

    A checkpoint is healthy if its training loss is at most HIGHER above the lowest of the run; it is the median of the last
    RECENT steps, or of checkpoint_every if that is fewer. The newest healthy one stays, so a run that goes bad with finite
    numbers, as with a learning rate of 1e3, never removes its last good checkpoint. In reinforcement learning none is healthy,
    since its loss says nothing.
    """

    def __init__(self, config: ml_collections.ConfigDict, workdir: Path):
        self._workdir, self._every, self._compared = workdir, config.checkpoint_every, config.get("method") != "rl"
        self._valid: dict[int, float] = {}
        self._losses: dict[int, float] = {}  # by step, of checkpoints
        self._recent: collections.deque[float] = collections.deque(maxlen=min(RECENT, self._every or RECENT))

    def read(self, begin: int) -> None:
        """Begin with what metrics.jsonl says of the steps up to `begin`."""
        for known in (self._valid, self._losses, self._recent):
            known.clear()
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
        if _finite(loss):
            self._valid[step] = loss
        elif loss is None and _finite(reward):
            self._valid[step] = -reward

    def trained(self, loss: Any) -> None:
        """Note the training loss of the next step. What is no finite number, as in a damaged log, counts as infinite."""
        self._recent.append(loss if _finite(loss) else math.inf)

    def saving(self, step: int) -> str | None:
        """Note that the state after a step is saved. Return a line to print if the loss has become high since the last save.

        The file HEALTHY tells a mirror of the workdir which checkpoint stays (lm/bucket/mirror.py).
        """
        before = self.high(max(self._losses, default=0))
        self._losses[step] = statistics.median(self._recent) if self._recent else math.inf
        if is_first():
            write_json(self._workdir / HEALTHY, {"step": self.healthy([*steps_saved(self._workdir), step])})
        return self.high(step) if not before else None

    def high(self, step: int) -> str | None:
        """Return a description if the training loss is high at a checkpoint and there is a healthy one, else None."""
        healthy = self.healthy(steps_saved(self._workdir))
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


def _finite(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)


def opened(config: ml_collections.ConfigDict, workdir: Path) -> tuple[Checkpoints, Kept]:
    """Return the checkpoints of a run, and what decides which stay: it is to be told each loss, and every save."""
    kept = Kept(config, workdir)
    keep = {key: config.get(key) for key in ("keep_last", "keep_every", "keep_hours") if config.get(key) is not None}
    chosen = [kept.last_healthy, *([kept.best] if config.get("keep_best") else [])]
    return Checkpoints(workdir, **keep, keep_chosen=chosen), kept


def fingerprints(workdir: Path) -> dict[str, str]:
    """Return digests of the contents of the run's tokenizer and prepared data, as far as they are recorded."""
    found = {}
    tokenizer = workdir / TOKENIZER
    if tokenizer.is_file():
        found["tokenizer"] = tokenizer.read_text().strip()
    folders = sorted(path for path in workdir.glob("data/*") if path.is_dir() and not path.name.startswith("."))
    for name, file, key in (("data", "dataset.json", "digests"), ("input", INPUT, "digest")):
        contents = [content for folder in folders if (content := _json(folder / file).get(key))]
        if contents:
            found[name] = xxhash.xxh3_64_hexdigest(json.dumps(contents, sort_keys=True).encode())
    return found


def check(meta: dict[str, Any], config: ml_collections.ConfigDict, workdir: Path, step: int) -> None:
    """Raise UserError if a checkpoint is one of another run than that of `config` in `workdir`. meta: of the checkpoint.

    What the checkpoint does not record, as one of an older version, is not compared.
    """
    place = workdir / "checkpoints" / str(step)
    here, there = fingerprints(workdir), meta.get("fingerprints") or {}
    for name, cure in CURES.items():
        if name in here and name in there and here[name] != there[name]:
            raise UserError(
                f"{place} was trained with another {name} than that of the workdir (fingerprint {there[name]}, here "
                f"{here[name]}): {cure}, or use another --workdir"
            )
    check_resumable(_without_paths(with_paths(meta["config"])), _without_paths(config.to_dict()), place)


def _without_paths(config: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in config.items() if key not in PATHS}
    for section, key in (("data", "input"), ("distill", "teacher")):
        if isinstance(kept.get(section), dict):
            kept[section] = {name: value for name, value in kept[section].items() if name != key}
    return kept


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
