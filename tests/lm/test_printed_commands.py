"""Printed commands run as they are, wherever the user is and however the interpreter was called."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lm.errors import ROOT, runnable
from lm.reports.next_steps import show


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """An environment in a folder .venv of the current folder, which is not on the PATH."""
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("python", "python3"):
        (programs / name).symlink_to(sys.executable)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(programs / "python"))
    monkeypatch.setenv("PATH", os.defpath)
    return programs


def test_the_interpreter_is_the_one_that_runs(environment, monkeypatch):
    script = os.path.relpath(ROOT / "align.py")
    script = min(script, str(ROOT / "align.py"), key=len)
    command = "python align.py --workdir='my run'"
    assert runnable(command) == f".venv/bin/python {script} '--workdir=my run'"
    other = environment.parents[1] / "other"  # another environment that is active
    other.mkdir()
    (other / "python").symlink_to(environment / "python")
    monkeypatch.setenv("PATH", str(other))
    assert runnable(command).startswith(".venv/bin/python ")
    monkeypatch.setenv("PATH", f"{environment}:{other}")
    assert runnable(command).startswith("python ")
    (environment / "python").unlink()
    monkeypatch.setattr(sys, "executable", str(environment / "python3"))
    assert runnable(command).startswith("python3 ")


def test_a_module_of_a_clone_elsewhere_is_found(environment, monkeypatch):
    assert runnable("python -m lm.chat --checkpoint=x").startswith("PYTHONPATH=")
    monkeypatch.chdir(ROOT)
    assert runnable("python -m lm.chat --checkpoint=x").endswith(".venv/bin/python -m lm.chat --checkpoint=x")
    assert "PYTHONPATH" not in runnable("python -m lm.chat") and runnable("ollama create x") == "ollama create x"


def test_the_lines_at_the_end_of_a_run_start_what_they_name(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", os.defpath)  # no environment is active
    monkeypatch.delenv("PYTHONPATH", raising=False)
    commands = ("python -m lm.errors", "python align.py --help")
    report = {"verdict": "Good.", "next": [{"what": "Go on", "command": command} for command in commands]}
    Path("report.json").write_text(json.dumps(report))
    show(tmp_path)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("    ")]
    assert len(lines) == 2
    for line in lines:
        done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, (line, done.stderr)
