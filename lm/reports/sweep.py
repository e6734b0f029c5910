"""The page of a sweep: the best trial, and a table of all. Optuna draws charts of its study.db."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from lm.files import saving
from lm.reports.page import render, short
from lm.runs.provenance import CODE, command_line


def write(path: Path, trials: Sequence, best, metric: str, command: Sequence[str]) -> None:
    """Write the page of a sweep.

    trials: Optuna's FrozenTrials, the best first. best: one of them, or None. command: arguments of a run with its values.
    """
    report = {"title": f"Sweep: {path.parent.name}", "provenance": {"command": command_line(sys.argv), "code": CODE}}
    verdict = "No trial has finished yet." if trials else "No trial has begun yet."
    if best:
        report["next"] = [{"what": "Run the best values again, or longer", "command": shlex.join(command)}]
        values = ", ".join(f"{key}={short(x) if isinstance(x, int | float) else x}" for key, x in best.params.items())
        verdict = f"The best trial is number {best.number}, with {metric} {best.value:.4g} at {values}."
    page = render("sweep.html.j2", report, verdict=verdict, trials=trials, best=best, metric=metric)
    saving.write(path, page)
