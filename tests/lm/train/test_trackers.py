"""Trackers that fail or hang cost a line and nothing else; wrong names are told before a run begins."""

import json
import socket
import time

import pytest

from configs.train import tiny
from lm.errors import UserError
from lm.train import trackers
from lm.train.events.step_log import Log, facts
from tests.slow import all_but
from tests.trackers import READERS

LINE = {"loss": 1.0, "tokens_per_second": 1.0}


def log(workdir, steps, *, begin: int = 0, loss: float = 1.0, **settings) -> None:
    """Log the lines of some steps, after a start from the checkpoint of step `begin`."""
    workdir.mkdir(exist_ok=True)
    config = tiny.get_config()
    config.update(settings)
    log = Log(workdir, config, enabled=True, step=begin)
    for step in steps:
        log.train({"step": step, **LINE, "loss": loss}, None)
    log.close()


def logged(workdir, capsys, **settings) -> str:
    """Log five steps. Returns what was printed, and sees that metrics.jsonl is whole."""
    log(workdir, range(1, 6), **settings)
    assert [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").open()] == [1, 2, 3, 4, 5]
    return "".join(capsys.readouterr())


@pytest.mark.parametrize("name", all_but(["wandb"], READERS))
def test_a_resumed_run_goes_on_and_logs_no_step_twice(name, tmp_path, monkeypatch):
    """The tracker is named after two steps, and later the run goes back from step 5 to step 3."""
    for variable in ("WANDB_MODE", "WANDB_API_KEY", "MLFLOW_TRACKING_URI", "TRACKIO_DIR", "TRACKIO_SPACE_ID"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # without an account
    workdir = tmp_path / name
    log(workdir, range(1, 3))
    log(workdir, range(3, 6), begin=2, trackers=name)
    log(workdir, range(4, 8), begin=3, trackers=name, keep_last=3, loss=float("nan"))
    config, rows = READERS[name](workdir)
    assert sorted((step, value) for metric, step, value in rows if metric == "loss") == [(step, 1.0) for step in range(1, 6)]
    assert sorted(step for metric, step, _ in rows if metric == "system_memory_gib") == list(range(1, 8))
    assert str(config["steps"]) == "200" and config["run.machine.jax"] and "run.command" in config
    starts = [json.loads(line)["step"] for line in (workdir / "starts.jsonl").open()]
    assert starts == [0, 2, 3]
    if name == "mlflow":
        assert "keep_last: 3" in resumed_of(workdir).splitlines() and config["keep_last"] == "2"


def resumed_of(workdir) -> str:
    """What MLflow holds of the settings that a resumed run has changed."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{workdir / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("lmcraft").experiment_id])
    return run.data.tags["resumed"]


def test_a_server_that_refuses_costs_one_line(tmp_path, monkeypatch, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free.getsockname()[1]}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    said = logged(tmp_path / "run", capsys, trackers="mlflow")
    assert said.count("warning: mlflow is off: MlflowException") == 1, said


def test_a_server_that_hangs_is_left_in_the_end(tmp_path, monkeypatch, capsys):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(trackers, "PATIENCE", 0.1)
        said = logged(tmp_path / "run", capsys, trackers="mlflow")
        assert said.count("warning: mlflow is off: it has not taken everything") == 1, said


def test_names_are_checked(monkeypatch):
    assert trackers.parse_trackers(" mlflow, wandb,mlflow") == ("mlflow", "wandb") and trackers.parse_trackers("") == ()
    with pytest.raises(UserError, match="trackers=wandb,tensorbord: 'tensorbord' is none of wandb, mlflow, trackio"):
        trackers.parse_trackers("wandb,tensorbord")
    monkeypatch.setitem(trackers.PACKAGES, "wandb", ("no_such_package",))
    with pytest.raises(UserError, match=r"no_such_package is not installed: pip install -r requirements/trackers.txt"):
        trackers.parse_trackers("wandb")


def test_secrets_are_not_sent():
    start = {"code": "abc", "command": "python train.py", "machine": {}, "data": {}}
    sent = facts({"evals": {"judge": "openai:http://me:secret@host/v1?api_key=abc"}}, start)
    assert sent["evals.judge"] == "openai:http://me:***@host/v1?api_key=***"


def test_a_line_waits_for_nothing(tmp_path):
    said, began = [], time.monotonic()

    def never():
        time.sleep(3600)

    slow = trackers.Sink("slow", never, [], said.append)
    for step in range(trackers.ROOM + 2):
        slow.put({"step": step, "loss": 1.0})
    assert time.monotonic() - began < 600 and said == [
        "warning: slow is off: it cannot keep up with the run; metrics.jsonl goes on"
    ]
