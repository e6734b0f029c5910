"""The trackers, each a few lines on its own package, which is imported here and only when it is asked for.

Servers, accounts and projects come from the packages' own environment variables (WANDB_PROJECT, MLFLOW_TRACKING_URI,
TRACKIO_SPACE_ID and so on). Without them the data lie in the workdir: wandb/, mlflow.db, trackio/. In each package the project
is "lmcraft", and the run has the name of the workdir. A run that is resumed finds its run in the package by `key`.
"""

import atexit
import contextlib
import importlib.util
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from lm.errors import UserError

PACKAGES = {"wandb": ("wandb",), "mlflow": ("mlflow", "sqlalchemy"), "trackio": ("trackio",)}  # modules that each needs
PROJECT = "lmcraft"
FLUSH_SECONDS = 5.0  # how often W&B writes its offline file
GRACE = 2.0  # seconds in which the service of W&B may end by itself
BATCH = 1000  # metrics that MLflow takes at a time
PARAM_CHARACTERS = 6000  # of an MLflow parameter

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
