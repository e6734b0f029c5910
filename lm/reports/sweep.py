"""The page of a sweep: the best trial, the importance of each key, and all trials. Optuna draws charts of its study.db."""

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm.files import saving
from lm.reports.page import render, short
from lm.runs.provenance import CODE, command_line

STATES = ("complete", "pruned", "running", "fail")


def write(path: Path, sweep: Mapping[str, Any]) -> None:
    """Write the page of a sweep.

    Args:
      sweep: title, metric, maximize (bool), trials [{number, state, value, step, params, seconds, why, folder, best}],
        importance {key: share}, command (arguments of a run with the best values, or None).
    """
    saving.write(path, html(sweep))


def html(sweep: Mapping[str, Any]) -> str:
    trials = sweep["trials"]
    best = next((trial for trial in trials if trial["best"]), None)
    report = {"title": sweep["title"], "provenance": {"command": command_line(sys.argv), "code": CODE}}
    if sweep["command"]:
        report["next"] = [{"what": "Run the best values again, or longer", "command": shlex.join(sweep["command"])}]
    return render(
        "sweep.html.j2",
        report,
        verdict=_verdict(best, sweep["metric"]),
        counts={state: sum(trial["state"] == state for trial in trials) for state in STATES},
        best=best,
        keys=list(dict.fromkeys(name for trial in trials for name in trial["params"])),
        trials=sorted(trials, key=lambda trial: _rank(trial, sweep["maximize"])),
        metric=sweep["metric"],
        importance=sweep["importance"],
    )


def _rank(trial: Mapping[str, Any], maximize: bool) -> tuple:
    value = trial["value"]
    badness = 0.0 if value is None else -value if maximize else value
    return STATES.index(trial["state"]), value is None, badness, trial["number"]


def _verdict(best: Mapping[str, Any] | None, metric: str) -> str:
    if best is None:
        return "No trial has finished yet."
    values = ", ".join(f"{name}={short(v) if isinstance(v, int | float) else v}" for name, v in best["params"].items())
    return f"The best trial is number {best['number']}, with {metric} {best['value']:.4g} at {values}."
