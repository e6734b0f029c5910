"""Run one trial: the verb itself as a process in a workdir of its own, watched by its metrics.jsonl."""

import ctypes
import json
import math
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import optuna
from optuna.trial import TrialState

from lm.cli.config_files import HOME
from lm.runs.lock import last_process
from lm.train.history import load_metrics

RESTARTS = 2  # of a trial whose process was killed from outside
DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux


class Running:
    """A trial whose process runs, or waits until the process of a killed sweep has left the workdir."""

    def __init__(self, trial: optuna.Trial, folder: Path, command: Sequence[str], verb: str, metric: str, steps: int):
        self.trial, self.folder, self.metric, self.steps = trial, folder, metric, steps
        self._command, self._verb = [sys.executable, str(HOME / f"{verb}.py"), *command, f"--workdir={folder}"], verb
        self._process: subprocess.Popen | None = None
        self._log: IO | None = None
        self._starts, self._pruned = 0, False
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def log(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.log")

    def poll(self) -> tuple[TrialState, float | None, str] | None:
        """Report new values and prune. Return (state, value, why) when the trial has ended, else None."""
        if self._process is None:
            if not last_process(self.folder)[0]:
                self._start()
            return None
        code = self._process.poll()
        self._report()
        if code is None:
            return None
        self._log.close()
        self._process = None
        return self._ended(code)

    def stop(self) -> None:
        """Ask the process to save and end."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def wait(self) -> None:
        if self._process is not None:
            self._process.wait()

    def _start(self) -> None:
        self._starts += 1
        self._log = open(self.log, "ab")
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C goes to the sweep, which ends its trials
            preexec_fn=_die_with_parent(),
        )

    def _report(self) -> None:
        known = self.trial.storage.get_trial(self.trial._trial_id).intermediate_values
        fresh = [(step, value) for step, value in values(self.folder, self.metric) if step > 0 and step not in known]
        for step, value in fresh:
            self.trial.report(value, step)
        if fresh and fresh[-1][0] < self.steps and not self._pruned and self.trial.should_prune():
            self._pruned = True
            self.stop()

    def _ended(self, code: int) -> tuple[TrialState, float | None, str] | None:
        if code == 0:
            known = values(self.folder, self.metric)
            if not known:
                return TrialState.FAIL, None, f"{self.folder / 'metrics.jsonl'} has no finite {self.metric}"
            return TrialState.COMPLETE, known[-1][1], ""
        if self._pruned:
            return TrialState.PRUNED, None, ""
        if code < 0 or code > 128:
            if self._starts <= RESTARTS:
                self._start()
                return None
            return TrialState.FAIL, None, f"its process was ended {self._starts} times, the last time with code {code}"
        why = last_line(self.log)
        diverged = code == 1 and why.startswith(f"{self._verb}.py: ")  # not a traceback
        return TrialState.PRUNED if diverged else TrialState.FAIL, None, why


def values(folder: Path, metric: str) -> list[tuple[int, float]]:
    """Return (step, value) of a validation metric, ascending by step."""
    try:
        lines = load_metrics(folder / "metrics.jsonl")[1]
    except FileNotFoundError:
        return []
    return [
        (line["step"], float(value))
        for line in lines
        if isinstance(value := line.get(metric), int | float) and math.isfinite(value)
    ]


def last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def argument(name: str, value: Any) -> str:
    """Return --config.NAME=VALUE for a value of a trial."""
    return f"--config.{name}={value if isinstance(value, str) else json.dumps(value)}"


def _die_with_parent() -> Callable[[], object] | None:
    """Return what a new process calls so that it saves and ends if the sweep is killed; None where only Linux can."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)  # before the fork
    return lambda: libc.prctl(DEATH_SIGNAL, signal.SIGTERM)
