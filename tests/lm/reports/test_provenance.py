"""Where a report comes from: its command without secrets, its commit, its changed keys."""

import os
import runpy
import shlex
import subprocess
from datetime import UTC, datetime, timedelta

import pytest

from lm.reports import provenance
from lm.runs.provenance import code_version

ARGV = ["train.py", "--config=configs/train/tiny.py", "--workdir=runs/my run", "--config.data.input=a/*.txt"]


def tiny():
    return runpy.run_path("configs/train/tiny.py")["get_config"]()


def test_a_report_says_where_it_comes_from(monkeypatch):
    config = tiny()
    config.optimizer.b2 = 0.9
    monkeypatch.setattr(provenance, "CODE", "abc1234")
    found = provenance.signed(config.to_dict(), {"data": 1.5, "training": 60.0}, ARGV, devices=False)["provenance"]
    changed, written = found.pop("changed"), found.pop("written")
    assert written.endswith("Z") and abs(datetime.now(UTC) - datetime.fromisoformat(written)) < timedelta(minutes=1)
    assert found == {
        "code": "abc1234",
        "command": "python train.py --config=configs/train/tiny.py '--workdir=runs/my run' '--config.data.input=a/*.txt'",
        "config_file": "configs/train/tiny.py",
        "seconds": 61.5,
    }
    assert shlex.split(found["command"]) == ["python", *ARGV]
    assert {"steps", "model.num_layers", "optimizer.b2"} <= set(changed)
    assert not {"seed", "optimizer.b1", "data.input", "data.weights", "model.num_experts"} & set(changed)


def test_without_a_default_no_keys_are_known_to_be_changed(monkeypatch, tmp_path):
    assert provenance.changed_keys({"anything": 1}) is None
    monkeypatch.setattr(provenance, "ROOT", tmp_path)  # as in an installed package
    assert provenance.changed_keys(tiny().to_dict()) is None
    (tmp_path / "configs" / "train").mkdir(parents=True)
    (tmp_path / "configs" / "train" / "default.py").write_text("def get_config(")
    assert provenance.changed_keys(tiny().to_dict()) is None


@pytest.mark.parametrize(
    "argument, shown",
    [
        ("--config.api_key=abc", "--config.api_key=***"),
        ("--hf-token=abc", "--hf-token=***"),
        ("--config.auth.password_of_db=abc", "--config.auth.password_of_db=***"),
        ("--config.judge=openai:http://me:abc@host/v1", "--config.judge=openai:http://me:***@host/v1"),
        ("--config.options=url=x,api_key=abc", "--config.options=url=x,api_key=***"),
        ("--config.options=redteam: {api_key: abc, draws: 2}", "--config.options=redteam: {api_key: ***, draws: 2}"),
        ("s3://bucket/file?token=abc&part=1", "s3://bucket/file?token=***&part=1"),
    ],
)
def test_secrets_are_not_recorded(argument, shown):
    assert shlex.split(provenance.command_line(["serve.py", argument])) == ["python", "serve.py", shown]


def test_a_secret_after_its_flag_is_not_recorded():
    argv = ["serve.py", "--api_key", "abc", "--port", "80"]
    assert shlex.split(provenance.command_line(argv)) == ["python", "serve.py", "--api_key", "***", "--port", "80"]


@pytest.mark.parametrize(
    "argument",
    [
        "--config.tokenizer=DIR",
        "--config.rollout.max_new_tokens=128",
        "--config.data.text_key=content",
        "--config.auth.key_file=keys.txt",
        "--config.safety.key_variable=OPENAI_API_KEY",
        "--config.data.weights=0: web=8,books=1; 0.8: web=3",
    ],
)
def test_what_is_no_secret_stays_as_it_was_typed(argument):
    assert shlex.split(provenance.command_line(["train.py", argument])) == ["python", "train.py", argument]


def test_a_module_is_named_as_python_takes_it():
    argv = ["/clone/lm/merge.py", "--workdir=runs/x"]
    assert provenance.command_line(argv, "lm.merge") == "python -m lm.merge --workdir=runs/x"


def git(folder, *arguments):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    author = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", folder, *author, *arguments]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip()


def test_the_code_is_a_commit_and_says_if_files_were_changed(tmp_path):
    git(tmp_path, "init", "--quiet")
    (tmp_path / "a.py").write_text("x = 1\n")
    git(tmp_path, "add", "a.py")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    git(tmp_path, "tag", "v1", "-m", "a tag")
    commit = git(tmp_path, "rev-parse", "--short", "HEAD")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "log").write_text("not tracked")
    assert code_version(tmp_path) == commit
    (tmp_path / "a.py").write_text("x = 2\n")
    assert code_version(tmp_path) == f"{commit} + changes"
    (tmp_path / "package").mkdir()
    assert commit not in str(code_version(tmp_path / "package"))  # a package in a project is not the project


@pytest.mark.parametrize("case", ["no clone", "a broken clone", "no git"])
def test_without_a_commit_there_is_the_version_or_nothing(case, monkeypatch, tmp_path):
    if case != "no clone":
        (tmp_path / ".git").mkdir()
    if case == "no git":
        monkeypatch.setenv("PATH", str(tmp_path))
    found = code_version(tmp_path)
    assert found is None or found.startswith("lmcraft ")


def test_steps_of_processes_that_stopped_count():
    lines = [{"tokens": 1000 * step, "tokens_per_second": 100.0} for step in range(1, 7)]  # 60 s
    assert provenance.with_stopped({"training": 61.0, "data": 1.0}, lines) == {"training": 61.0, "data": 1.0}
    resumed = provenance.with_stopped({"training": 20.0, "data": 1.0}, lines)
    assert sum(resumed.values()) == pytest.approx(61.0) and resumed["training"] == 20.0
    assert provenance.with_stopped({"training": 1.0}, [{"tokens": None}, {"valid_loss": 1.0}, {"tokens": 5}]) == {
        "training": 1.0
    }
