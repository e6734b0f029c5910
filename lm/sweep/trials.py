"""Run one trial: the verb itself as a process in a workdir of its own, watched by its metrics.jsonl."""

import ctypes
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

import optuna
from optuna.trial import TrialState

from lm.cli.config_files import HOME
from lm.runs.lock import last_process
from lm.train.history import column, load_metrics

RESTARTS = 2  # of a trial whose process was killed from outside
DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux

Result = tuple[TrialState, float | None, str]  # state, value, and why it failed


def run(
    trial: optuna.Trial, folder: Path, command: Sequence[str], metric: str, steps: int | None
) -> Generator[subprocess.Popen | None, None, Result]:
    """Run a trial in `folder`, report its metric, and stop it if it is hopeless.

    command: the verb and its arguments, without --workdir. steps: of the whole run, if known.
    Yields: its process, or None while the process of a killed sweep is still in the folder. When closed, it stops the process
      and waits until it has saved.
    Returns: a Result.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = folder.with_name(f"{folder.name}.log")
    while last_process(folder)[0]:
        yield None
    for _ in range(1 + RESTARTS):
        code, pruned = yield from _process(trial, folder, command, metric, steps)
        if pruned or 0 <= code <= 128:
            break
    _is_hopeless(trial, measured := values(folder, metric), steps)  # reports the last ones
    if code == 0:
        if not measured:
            return TrialState.FAIL, None, f"{folder / 'metrics.jsonl'} has no finite {metric}"
        return TrialState.COMPLETE, measured[-1][1], ""
    if pruned:
        return TrialState.PRUNED, None, ""
    if code < 0 or code > 128:
        return TrialState.FAIL, None, f"its process was ended from outside {1 + RESTARTS} times, the last time with code {code}"
    why = last_line(log)
    diverged = code == 1 and why.startswith(f"{command[0]}: ")  # not a traceback
    return TrialState.PRUNED if diverged else TrialState.FAIL, None, why


def _process(
    trial: optuna.Trial, folder: Path, command: Sequence[str], metric: str, steps: int | None
) -> Generator[subprocess.Popen, None, tuple[int, bool]]:
    """Run the process of a trial, which resumes what is in `folder`. Return its exit code, and whether it was pruned."""
    verb, *arguments = command
    with open(folder.with_name(f"{folder.name}.log"), "ab") as output:
        process = subprocess.Popen(
            [sys.executable, str(HOME / verb), *arguments, f"--workdir={folder}"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C goes to the sweep, which ends its trials
            preexec_fn=_die_with_parent(),
        )
    pruned = False
    try:
        while process.poll() is None:
            if not pruned and _is_hopeless(trial, values(folder, metric), steps):
                pruned = True
                process.terminate()
            yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    return process.returncode, pruned


def _is_hopeless(trial: optuna.Trial, measured: Sequence[tuple[int, float]], steps: int | None) -> bool:
    """Report new values. Return whether the pruner stops the trial, which is not at its end."""
    known = trial.storage.get_trial(trial._trial_id).intermediate_values
    fresh = [(step, value) for step, value in measured if step > 0 and step not in known]
    for step, value in fresh:
        trial.report(value, step)
    return bool(fresh) and (steps is None or fresh[-1][0] < steps) and trial.should_prune()


def values(folder: Path, metric: str) -> list[tuple[int, float]]:
    """Return (step, value) of a validation metric, ascending by step."""
    try:
        steps, numbers = column(load_metrics(folder / "metrics.jsonl")[1], metric)
    except FileNotFoundError:
        return []
    return list(zip(steps.astype(int).tolist(), numbers.tolist()))


def last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _die_with_parent() -> Callable[[], object] | None:
    """Return what a new process calls so that it saves and ends if the sweep is killed; None where only Linux can."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)  # before the fork
    return lambda: libc.prctl(DEATH_SIGNAL, signal.SIGTERM)
