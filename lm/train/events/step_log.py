"""Log the steps of a run to a progress bar, metrics.jsonl, TensorBoard, and the trackers that the config names.

metrics.jsonl holds one JSON object per line. A training line has step, loss (nats per token), tokens (trained since step 0),
tokens_per_second, tflops (model FLOPs, 1e12 a second), mfu (on devices of known peak), grad_norm (before clipping),
learning_rate, skipped, the metrics of the objective, and system_… (see System). A validation line has step and names that begin
with valid_, such as valid_loss. A number that is not finite is written as null.

A line of starts.jsonl has `written` (UTC), `step` (of the checkpoint that the start resumes from), `code` (git commit or
version), `command` (secrets are ***), `machine` (lm.runs.provenance.machine: processor, memory, versions of packages, devices)
and `data` (lm.runs.fingerprints.data_of).
"""

import contextlib
import json
import logging
import math
import operator
import os
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import ml_collections
import psutil

from lm.files import saving
from lm.files.untrusted import content
from lm.kernels import ops
from lm.model import sizing
from lm.parallel import memory
from lm.parallel.hosts import is_first
from lm.parallel.pipeline import schedule
from lm.progress import progress
from lm.runs import provenance as origin
from lm.runs.fingerprints import data_of
from lm.runs.workdir import flat
from lm.train.chips import mfu_formula, peak_flops
from lm.train.loop import Done, Event, Run
from lm.train.trackers import close_sinks, open_sinks, parse_trackers

# tensorboardX would import these, for a type and for buckets that lm.bucket mirrors: a second and more.
_hidden = [name for name in ("torch", "boto3", "google.cloud.storage") if sys.modules.setdefault(name, None) is None]  # type: ignore[arg-type]
from tensorboardX.event_file_writer import EventsWriter  # noqa: E402
from tensorboardX.proto import event_pb2  # noqa: E402
from tensorboardX.summary import scalar  # noqa: E402

for _name in _hidden:
    del sys.modules[_name]

NOT_LOGGED = ("weight", "skipped_in_row", "high_in_row", "recent")  # what a step tells the loop only
STARTS = "starts.jsonl"
EVERY = 1.0  # seconds between two measurements of the machine
GIB = 2**30


class StepLog(Event):
    """Logs each step, and keeps `run.log`, which other events write to."""

    def start(self, run: Run) -> None:
        config, model = run.config, run.trainer.model
        run.num_params = sum(sizing.parameters(model)["total"].values())
        self._flops, self._peak = sizing.flops_per_token(model, config.sequence_length), peak_flops()
        run.log = Log(run.workdir, config, enabled=is_first(), step=run.begin)
        run.at_end.callback(run.log.close)
        tokens = config.batch_size * config.sequence_length
        run.log.say(f"{run.num_params:,} parameters, {tokens:,} tokens a step, {dict(run.mesh.shape)}")
        if offloaded := [key for key in ("model.offload", "optimizer.offload") if operator.attrgetter(key)(config)]:
            run.log.say(f"{' and '.join(offloaded)}: {memory.explained()}")
        if run.mesh.shape["stage"] > 1:
            run.log.say(f"pipeline: {schedule(model.pipeline, config.batch_size // config.accumulate, run.mesh)}")
        if formula := mfu_formula():
            run.log.say(formula)
        if run.begin < config.steps:
            run.log.compiling()

    def done(self, run: Run, done: Done) -> None:
        rate = done.tokens / done.seconds
        line: dict[str, Any] = {name: value for name, value in done.metrics.items() if name not in NOT_LOGGED}
        line |= {"skipped": run.skipped, "tokens": run.tokens, "tokens_per_second": rate, "tflops": rate * self._flops / 1e12}
        if self._peak:
            line["mfu"] = rate * self._flops / self._peak[0]
        line |= {"spikes": int(line["spikes"])} if "spikes" in line else {}
        if done.step == run.begin + 1:
            run.log.say(f"kernels: {ops.summary()}")
        run.log.train({"step": done.step, **line, **run.rewinds.counted(done.step), **done.line}, done.ids)


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
        self._board = EventsWriter(str(workdir / "tensorboard" / "events"), f".{step}")
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._board.write_event(event_pb2.Event(wall_time=time.time(), step=step + 1, session_log=start))
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
        """Log a training line, and the measurements of the machine."""
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
        self.say(f"step {step}: valid " + ", ".join([f"{name} {value:.4f}" for name, value in values.items()]))

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
                value = scalar(key, value)
                self._board.write_event(event_pb2.Event(wall_time=time.time(), step=line["step"], summary=value))
        for tracker in self._trackers:
            tracker.put(line)


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


def record_start(workdir: Path, step: int) -> dict[str, Any]:
    """Append this start to starts.jsonl, and return its line."""
    start = {
        "written": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "step": step,
        "code": origin.CODE,
        "command": origin.command_line(sys.argv),
        "machine": origin.machine(),
        "data": data_of(workdir),
    }
    with open(workdir / STARTS, "a", encoding="utf-8") as file:
        file.write(json.dumps(start) + "\n")
    return start


def facts(config: Mapping[str, Any], start: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a run by dotted name: the keys of the config, then `run.code`, `run.command` and so on.

    Texts have *** in place of secrets, and lists become text.
    """
    values = flat(saving.plain(config)) | flat({"run": {name: start[name] for name in ("code", "command", "machine", "data")}})
    texts = {name: origin.without_secrets(value) for name, value in values.items() if isinstance(value, str)}
    return values | texts | {name: json.dumps(value) for name, value in values.items() if isinstance(value, list)}


class System:
    """Measures the machine in a fraction of a millisecond: the metrics `system_…` of now, or of at most EVERY seconds ago.

    system_memory_gib              host memory of this process
    system_memory_percent          of the host's memory in use, by all processes
    system_cpu_percent             CPU time of this process; 100 is one core
    system_device_memory_gib       in use on the fullest device of this process, where JAX knows it (not on a CPU)
    system_device_memory_peak_gib  its highest value so far
    """

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._process.cpu_percent()  # the first call only sets the clock
        self._devices = [device for device in jax.local_devices() if _memory(device)]
        self._at, self._last = -EVERY, dict[str, float]()

    def __call__(self) -> dict[str, float]:
        now, found = time.monotonic(), {}
        if now - self._at < EVERY:
            return self._last
        with contextlib.suppress(psutil.Error, OSError):
            found["system_memory_gib"] = self._process.memory_info().rss / GIB
            found["system_memory_percent"] = psutil.virtual_memory().percent
            found["system_cpu_percent"] = self._process.cpu_percent()
        if devices := [stats for device in self._devices if (stats := _memory(device))]:
            found["system_device_memory_gib"] = max(stats["bytes_in_use"] for stats in devices) / GIB
            found["system_device_memory_peak_gib"] = max(stats["peak_bytes_in_use"] for stats in devices) / GIB
        self._at, self._last = now, found
        return found


def _memory(device: jax.Device) -> dict[str, int] | None:
    """Return a device's memory statistics if it has those that are logged."""
    try:
        stats = device.memory_stats()
    except (RuntimeError, NotImplementedError):  # of a backend that has none
        return None
    return stats if stats and {"bytes_in_use", "peak_bytes_in_use"} <= stats.keys() else None
