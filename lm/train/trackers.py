"""Send the metrics of a run to Weights & Biases, MLflow or trackio as well.

Each tracker is a few lines on its own package, which is imported only when it is asked for, and gets its lines from a thread of
its own, so that a slow or failing one neither stops nor delays a run.

Servers, accounts and projects come from the packages' own environment variables (WANDB_PROJECT, MLFLOW_TRACKING_URI,
TRACKIO_SPACE_ID and so on). Without them the data lie in the workdir: wandb/, mlflow.db, trackio/. In each package the project
is "lmcraft", and the run has the name of the workdir. A run that is resumed finds its run in the package by `key`.
"""

import atexit
import contextlib
import functools
import importlib.util
import logging
import math
import os
import queue
import re
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from lm.errors import UserError
from lm.files.saving import write_json
from lm.runs.workdir import kept_json
from lm.train.history import json_lines

PACKAGES = {"wandb": ("wandb",), "mlflow": ("mlflow", "sqlalchemy"), "trackio": ("trackio",)}  # modules that each needs
PROJECT = "lmcraft"
FLUSH_SECONDS = 5.0  # how often W&B writes its offline file
GRACE = 2.0  # seconds in which the service of W&B may end by itself
BATCH = 1000  # metrics that MLflow takes at a time
PARAM_CHARACTERS = 6000  # of an MLflow parameter
KEYS = "trackers.json"  # in the workdir: name of a tracker -> key of this run there
ROOM = 100_000  # lines that may wait
PATIENCE = 60.0  # seconds that the end of a run waits for its trackers

Lines = Sequence[Mapping[str, float]]  # each with "step"


class Tracker(NamedTuple):
    """held: metric -> the last step that the package has of it, or −1. send: log some lines. close: end the run."""

    held: Callable[[str], int]
    send: Callable[[Lines], None]
    close: Callable[[], None]


def parse_trackers(text: str) -> tuple[str, ...]:
    """Return the names in "wandb,mlflow", each once. Raises UserError for an unknown name and for a missing package."""
    names = tuple(dict.fromkeys(filter(None, map(str.strip, text.split(",")))))
    for name in names:
        if name not in PACKAGES:
            raise UserError(f"trackers={text}: {name!r} is none of {', '.join(PACKAGES)}; separate several by commas")
        if missing := [module for module in PACKAGES[name] if importlib.util.find_spec(module) is None]:
            cure = "pip install -r requirements/trackers.txt"
            raise UserError(f"trackers={text}: the package {missing[0]} is not installed: {cure}, or leave {name} out")
    return names


def open_wandb(workdir: Path, key: str, facts: Mapping[str, Any]) -> Tracker:
    """W&B; offline if WANDB_MODE says so, or if there is neither WANDB_MODE nor an account.

    A start without a network gets a file of its own with all lines, since W&B has no reader of such files.
    """
    import wandb

    mode = os.environ.get("WANDB_MODE") or ("online" if wandb.login(prompt=False) else "offline")
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        id=key,
        name=os.environ.get("WANDB_NAME", workdir.name),
        dir=os.environ.get("WANDB_DIR", str(workdir)),
        mode=mode,
        resume="allow",
        config=dict(facts),
        allow_val_change=True,
        settings=wandb.Settings(
            silent=True, console="off", x_disable_stats=True, x_transaction_log_flush_interval=FLUSH_SECONDS
        ),
    )
    before = run.starting_step - 1  # what a server has
    return Tracker(lambda name: before, _by_line(run), run.finish)


def abandon(name: str) -> None:
    """See that a tracker that is off does not hold the end of this process: W&B would wait for its service without limit."""
    if name != "wandb":
        return
    ending = threading.Event()
    atexit.register(ending.set)  # runs before the hook of W&B, which asks the service to end and waits for it

    def end() -> None:
        ending.wait()
        time.sleep(GRACE)
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.Error):
                if child.name().startswith("wandb-core"):
                    child.kill()

    threading.Thread(target=end, daemon=True).start()


def open_mlflow(workdir: Path, key: str, facts: Mapping[str, Any]) -> Tracker:
    """MLflow. A parameter cannot change there: the later values of a resumed run are in the tag `resumed`."""
    for name in ("alembic", "mlflow.store.db.utils"):  # they tell of each table that they make
        logging.getLogger(name).setLevel(logging.WARNING)
    from mlflow.entities import Metric, Param, RunStatus
    from mlflow.tracking import MlflowClient

    client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{workdir.absolute() / 'mlflow.db'}")
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    experiment = client.get_experiment_by_name(name)
    number = experiment.experiment_id if experiment else client.create_experiment(name)
    found = client.search_runs([number], f"tags.lmcraft = '{key}'")
    run = found[0] if found else client.create_run(number, tags={"lmcraft": key}, run_name=workdir.name)
    id, kept = run.info.run_id, run.data.params
    new = {name: str(value)[:PARAM_CHARACTERS] for name, value in facts.items()}
    missing = [Param(name, value) for name, value in new.items() if name not in kept]
    for begin in range(0, len(missing), 100):  # the most that MLflow takes at once
        client.log_batch(id, params=missing[begin : begin + 100])
    changed = [f"{name}: {value}" for name, value in new.items() if kept.get(name, value) != value]
    if changed:
        client.set_tag(id, "resumed", "\n".join(changed))
    client.update_run(id, status=RunStatus.to_string(RunStatus.RUNNING))
    held = {name: max(metric.step for metric in client.get_metric_history(id, name)) for name in run.data.metrics}

    def send(lines: Lines) -> None:
        now = int(1000 * time.time())
        metrics = [
            Metric(_mlflow_name(name), value, now, int(line["step"]))
            for line in lines
            for name, value in line.items()
            if name != "step"
        ]
        for begin in range(0, len(metrics), BATCH):
            client.log_batch(id, metrics=metrics[begin : begin + BATCH])

    return Tracker(lambda name: held.get(_mlflow_name(name), -1), send, lambda: client.set_terminated(id))


def _mlflow_name(name: str) -> str:
    return re.sub(r"[^\w\-. :/]", "_", name)


def open_trackio(workdir: Path, key: str, facts: Mapping[str, Any]) -> Tracker:
    """trackio. Its own measurements of the machine are off, because ours are among the metrics."""
    own = not any(os.environ.get(name) for name in ("TRACKIO_DIR", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"))
    folder = workdir.absolute() / "trackio"
    if own:
        os.environ["TRACKIO_DIR"] = str(folder)  # it reads this only when it is imported
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    if own:
        del os.environ["TRACKIO_DIR"]
        for name, module in sys.modules.copy().items():  # a process may train in several workdirs, one after another
            if name.partition(".")[0] == "trackio" and "TRACKIO_DIR" in vars(module):
                vars(module)["TRACKIO_DIR"] = folder
    project, name = os.environ.get("TRACKIO_PROJECT", PROJECT), f"{workdir.name}-{key}"
    run = trackio.init(project, name, resume="allow", config=dict(facts), embed=False, auto_log_gpu=False, auto_log_cpu=False)
    held: dict[str, int] = {}
    for row in SQLiteStorage.get_logs(project, name):
        held |= {metric: max(held.get(metric, -1), int(row["step"])) for metric in row}
    return Tracker(lambda name: held.get(name, -1), _by_line(run), run.finish)


def _by_line(run: Any) -> Callable[[Lines], None]:
    """Return what sends lines to a run of W&B or trackio."""

    def send(lines: Lines) -> None:
        for line in lines:
            run.log({name: value for name, value in line.items() if name != "step"}, step=int(line["step"]))

    return send


OPENERS = {"wandb": open_wandb, "mlflow": open_mlflow, "trackio": open_trackio}


def open_sinks(names: Sequence[str], workdir: Path, facts: Mapping[str, Any], say: Callable[[str], None]) -> list["Sink"]:
    """Return a sink for each tracker. Each first sends the lines of metrics.jsonl that its tracker does not have.

    facts: parameters of the run. say: prints the line of a tracker that fails.
    """
    if not names:
        return []
    path = workdir / KEYS
    keys = kept_json(path, lambda value: isinstance(value, dict)) or {}
    keys = {name: keys.get(name) or uuid.uuid4().hex[:8] for name in (*keys, *names)}
    write_json(path, keys)
    before = json_lines(workdir / "metrics.jsonl") if (workdir / "metrics.jsonl").exists() else []
    return [Sink(name, functools.partial(OPENERS[name], workdir, keys[name], facts), before, say) for name in names]


def close_sinks(sinks: Sequence["Sink"], patience: float | None = None) -> None:
    """Close all sinks; wait at most `patience` seconds, by default PATIENCE, for all of them together."""
    end = time.monotonic() + (PATIENCE if patience is None else patience)
    for sink in sinks:
        sink.end()
    for sink in sinks:
        sink.wait(max(0.0, end - time.monotonic()))


class Sink:
    """A thread that opens a tracker and sends it lines, only the steps of each metric that it does not have.

    If the tracker raises or cannot keep up, one line is said, and the sink is off.
    """

    def __init__(
        self, name: str, opening: Callable[[], Tracker], before: Sequence[Mapping[str, Any]], say: Callable[[str], None]
    ):
        self._name, self._opening, self._say = name, opening, say
        self._lines: queue.Queue[Mapping[str, Any] | None] = queue.Queue(ROOM + len(before))
        self._on = True
        for line in before:
            self.put(line)
        self._thread = threading.Thread(target=self._run, name=f"tracker-{name}", daemon=True)
        self._thread.start()

    def put(self, line: Mapping[str, float | None]) -> None:
        """Hand over a line with "step". Returns at once."""
        if not self._on:
            return
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._off("it cannot keep up with the run")

    def end(self) -> None:
        """Tell the thread that no more lines come."""
        if self._on:
            with contextlib.suppress(queue.Full):  # it will not be done in time
                self._lines.put_nowait(None)

    def wait(self, seconds: float) -> None:
        """Wait until the tracker has taken everything; after `seconds` it is off."""
        if self._on:
            self._thread.join(seconds)
        if self._thread.is_alive():
            self._off("it has not taken everything in time; the same command sends the rest")

    def _off(self, why: object) -> None:
        if self._on:
            self._on = False
            self._say(f"warning: {self._name} is off: {' '.join(str(why).split())[:300]}; metrics.jsonl goes on")
            abandon(self._name)

    def _run(self) -> None:
        try:
            tracker = self._opening()
            ended = False
            while not ended:
                lines = [self._lines.get()]
                while not self._lines.empty():
                    lines.append(self._lines.get())
                ended = None in lines
                sent = [
                    {"step": line["step"]} | values
                    for line in lines
                    if line is not None and (values := missing(line, tracker.held))
                ]
                if sent:
                    tracker.send(sent)
            tracker.close()
        except BaseException as error:  # SystemExit too: no tracker may end a run
            self._off(f"{type(error).__name__}: {error}")


def missing(line: Mapping[str, Any], held: Callable[[str], int]) -> dict[str, float]:
    """Return the finite numbers of a line, without its step and what the tracker has of this step or a later one."""
    return {
        name: value
        for name, value in line.items()
        if name != "step" and isinstance(value, int | float) and math.isfinite(value) and line.get("step", -1) > held(name)
    }
