"""Where a report comes from: when, and by which code, command and config file it was made; and its accounts of time."""

import runpy
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lm.files.saving import plain
from lm.reports.page import flatten
from lm.runs.own_code import own_code
from lm.runs.provenance import CODE, command_line, config_file, machine
from lm.runs.workdir import kind_of
from lm.train import goodput

ROOT = Path(__file__).resolve().parents[2]
STOPPED = "steps before the last start"


def signed(
    config: Mapping[str, Any], stages: Mapping[str, float], argv: Sequence[str] | None = None, *, devices: bool = True
) -> dict[str, Any]:
    """Return "machine" (see `machine`) and "provenance" for the report of a run that ends in this process.

    provenance: {"written": date and time in UTC, as ISO 8601, "code": see `code_version` of lm/runs/provenance.py, "command":
    see `command_line`, "config_file": the value of --config, "changed": see `changed_keys`, "seconds": sum of the stages, which
    are the seconds of each stage}. argv: None: that of this process.
    """
    argv = sys.argv if argv is None else argv
    provenance = {
        "written": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "code": CODE,
        "command": command_line(argv),
        "config_file": config_file(argv),
        "changed": changed_keys(config),
        "seconds": sum(stages.values()),
    }
    return {"machine": machine(devices), "provenance": provenance}


def accounts(workdir: Path) -> dict[str, Any]:
    """Return what a workdir holds of "goodput" (lm/train/goodput.py), of "code": the user's own by key, and of "profile":
    {"steps": the traces by their steps, "command": that opens them}."""
    steps = sorted(path.name.removeprefix("steps-") for path in workdir.glob("profile/plugins/profile/steps-*"))
    command = shlex.join(["xprof", f"--logdir={workdir / 'profile'}"])
    parts = {
        "profile": steps and {"steps": steps, "command": command},
        "goodput": goodput.of(workdir),
        "code": own_code(workdir),
    }
    return {name: part for name, part in parts.items() if part}


def with_stopped(stages: Mapping[str, float], lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the stages, with the seconds of steps of earlier processes of the run, which stopped before they could report.

    The seconds of all steps come from the tokens and tokens_per_second of metrics.jsonl's training lines, ascending by step.
    """
    seconds, before = 0.0, 0
    for line in lines:
        tokens, rate = line.get("tokens"), line.get("tokens_per_second")
        if isinstance(tokens, int | float) and isinstance(rate, int | float) and rate > 0:
            seconds, before = seconds + max(0, tokens - before) / rate, tokens
    stopped = seconds - stages.get("training", 0.0)
    return dict(stages) | ({STOPPED: stopped} if stopped > 1 else {})


def changed_keys(config: Mapping[str, Any]) -> list[str] | None:
    """Return the dotted keys of a run's config whose values differ from configs/VERB/default.py.

    None if that file is not there, as in an installed package.
    """
    name = "safety" if config.get("method") == "safety" else "default"  # the other methods have no keys of their own
    file = ROOT / "configs" / kind_of(config) / f"{name}.py"
    if not file.is_file():
        return None
    try:
        usual = runpy.run_path(str(file))["get_config"]()
    except Exception:  # whoever edits the file while a run lasts must not break its report
        return None
    usual, own = flatten(plain(usual.to_dict())), flatten(plain(config))
    return [key for key, value in own.items() if key not in usual or usual[key] != value]
