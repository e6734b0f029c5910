"""Log the metrics of a run to a progress bar, metrics.jsonl, TensorBoard, and the trackers that the config names.

metrics.jsonl holds one JSON object per line. A training line has step, loss (nats per token), tokens (trained since step 0),
tokens_per_second, tflops (model FLOPs, 1e12 a second), mfu (on devices of known peak), grad_norm (before clipping),
learning_rate, skipped, the metrics of the objective, and system_… (lm/train/system.py). A validation line has step and names
that begin with valid_, such as valid_loss. A number that is not finite is written as null.
"""

import json
import logging
import math
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import ml_collections

from lm.files import saving
from lm.files.untrusted import content
from lm.progress import progress
from lm.train.starts import facts, record_start
from lm.train.system import System
from lm.train.trackers.packages import parse_trackers
from lm.train.trackers.sink import close_sinks, open_sinks

_hides_torch = sys.modules.setdefault("torch", None) is None  # type: ignore[arg-type]  # tensorboardX would import it for a type: a second and more
from tensorboardX.event_file_writer import EventsWriter  # noqa: E402
from tensorboardX.proto.event_pb2 import Event, SessionLog  # noqa: E402
from tensorboardX.summary import scalar  # noqa: E402

if _hides_torch:
    del sys.modules["torch"]


def rewind(path: Path, step: int) -> set[int]:
    """Drop the lines that a run resumed from `step` logs again: later steps, validation at `step`, and a partial last line.

    Of equal lines one is kept. Return the steps of the lines that are not those of a validation.
    """
    if not path.exists():
        return set()
    kept, steps = dict[str, None](), set()
    for line in content(path, most=None).decode(errors="replace").splitlines():
        try:
            values = json.loads(line)
            own = values["step"]
            valid = any(name.startswith("valid_") for name in values)
            if own <= step - valid:
                kept[line] = None
                steps |= set() if valid else {own}
        except (ValueError, KeyError, TypeError):
            continue
    with saving.replacing(path) as file:
        file.writelines(line + "\n" for line in kept)
    return steps


def prefix(folder: Path) -> str:
    """Return how the name of a new file of events begins. tensorboardX adds the time to it.

    TensorBoard reads the files in the order of their names, and a start hides later steps of the files before it. So the name
    must follow those in `folder`, also if the clock was set back.
    """
    found = (re.match(r"events\.out\.tfevents\.(\d+)", path.name) for path in folder.iterdir())
    newest = max((int(match[1]) for match in found if match), default=0)
    return "events" if newest < int(time.time()) else f"events.out.tfevents.{newest + 1}"


class Log:
    """Writes to all sinks, and records the start of the run. With enabled=False, on all processes but the first, it does
    nothing."""

    def __init__(self, workdir: Path, config: ml_collections.ConfigDict, *, enabled: bool, step: int):
        self.enabled, log_ids = enabled, config.data.get("log_ids", False)
        if not enabled:
            return
        lost = sorted(set(range(1, step + 1)) - rewind(workdir / "metrics.jsonl", step))
        rewind(workdir / "ids.jsonl", step)
        self._metrics = open(workdir / "metrics.jsonl", "a")
        self._ids = open(workdir / "ids.jsonl", "a") if log_ids else None
        # Not SummaryWriter: a full disk kills its thread, and the loop would then wait forever.
        (workdir / "tensorboard").mkdir(exist_ok=True)
        logging.getLogger("tensorboardX.x2num").setLevel(logging.ERROR)  # it warns of each NaN, as the loop already does
        self._board = EventsWriter(str(workdir / "tensorboard" / prefix(workdir / "tensorboard")), f".{step}")
        self._board.write_event(Event(wall_time=time.time(), step=step + 1, session_log=SessionLog(status=SessionLog.START)))
        self._bar = progress(
            "train",
            config.steps,
            done=step,
            smoothing=0.1,
            bar_format="{desc} {n_fmt}/{total_fmt} |{bar}| {postfix} [{elapsed}<{remaining}]",
        )
        if lost:
            self.say(
                f"warning: {workdir / 'metrics.jsonl'} has no line of {len(lost):,} of the {step:,} steps before, the first is "
                f"step {lost[0]:,}: it was damaged or replaced; the model is not affected"
            )
        self._system = System()
        about = facts(config.to_dict(), record_start(workdir, step))
        self._trackers = open_sinks(parse_trackers(config.get("trackers", "")), workdir, about, self.say)

    def train(self, line: dict[str, Any], ids: list[int] | None) -> None:
        if not self.enabled:
            return
        self._write(line | self._system())
        if self._ids is not None:
            self._ids.write(json.dumps({"step": line["step"], "ids": ids}) + "\n")
            self._ids.flush()
        rate = f"{line['tokens_per_second']:,.0f} tokens/s" + (f", MFU {line['mfu']:.1%}" if "mfu" in line else "")
        self._bar.set_postfix_str(f"loss {line['loss']:.4f}, {rate}", refresh=False)
        self._bar.update(line["step"] - self._bar.n)

    def valid(self, step: int, values: dict[str, Any]) -> None:
        """Log validation numbers by name, without the counts "tokens" and "bytes"."""
        if not self.enabled:
            return
        values = {name: value for name, value in values.items() if name not in ("tokens", "bytes")}
        self._write({"step": step, **{f"valid_{name}": value for name, value in values.items()}})
        self.say(f"step {step}: valid " + ", ".join(f"{name} {value:.4f}" for name, value in values.items()))

    def say(self, text: str) -> None:
        if self.enabled:
            self._bar.write(text)

    def compiling(self) -> None:
        if self.enabled:
            self._bar.compiling()

    def flush(self) -> None:
        """Sync the lines to disk, because a checkpoint must never be ahead of its log."""
        if not self.enabled:
            return
        for file in filter(None, (self._metrics, self._ids)):
            file.flush()
            os.fsync(file.fileno())
        self._board.flush()

    def close(self) -> None:
        if not self.enabled:
            return
        close_sinks(self._trackers)
        self._bar.close()
        self._metrics.close()
        if self._ids is not None:
            self._ids.close()
        self._board.close()

    def _write(self, line: dict[str, Any]) -> None:
        # JSON has no NaN; a skipped step's loss is written as null.
        self._metrics.write(json.dumps({k: v if math.isfinite(v) else None for k, v in line.items()}) + "\n")
        self._metrics.flush()
        for key, value in line.items():
            if key != "step":
                self._board.write_event(Event(wall_time=time.time(), step=line["step"], summary=scalar(key, value)))
        for tracker in self._trackers:
            tracker.put(line)
