"""Cache results of stages on disk: reuse existing files, compute missing ones and write them atomically.

All processes compute a result together. The first one writes the file, and all return its content.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lm.files.saving import set_aside, write_json, write_lines
from lm.parallel import hosts
from lm.runs import workdir


def kept_json(path: Path, make: Callable[[], Any]) -> Any:
    """Return the content of a JSON file; if it is missing, write the result of `make` first."""
    value = hosts.from_first(lambda: workdir.kept_json(path))
    if value is None:
        value = make()
        if hosts.is_first():
            write_json(path, value)
        value = hosts.from_first(lambda: json.loads(path.read_text(encoding="utf-8")))
    return value


def kept_lines(path: Path, make: Callable[[], list[dict]]) -> list[dict]:
    """Do the same for a JSONL file."""
    lines = hosts.from_first(lambda: _existing_lines(path))
    if lines is None:
        lines = make()
        if hosts.is_first():
            write_lines(path, lines)
        lines = hosts.from_first(lambda: read_lines(path))
    return lines


def _existing_lines(path: Path) -> list[dict] | None:
    try:
        return read_lines(path) if path.exists() else None
    except ValueError:
        print(f"{path} is damaged: it is now {set_aside(path).name}, and is made anew", flush=True)
        return None


def kept_seconds(path: Path, more: float) -> float:
    """Add `more` to the seconds in the file, which sums over all starts of a run, and return the total."""
    total = more + (workdir.kept_json(path) or 0.0)
    write_json(path, total)
    return total


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def publish(model: Path, workdir: Path) -> None:
    """Replace the checkpoints of `workdir` by the newest one of the run `model`, with hard links where possible."""
    steps = [int(folder.name) for folder in (model / "checkpoints").iterdir() if folder.name.isdecimal()]
    new, place = workdir / ".checkpoints.new", workdir / "checkpoints"
    shutil.rmtree(new, ignore_errors=True)
    shutil.copytree(model / "checkpoints" / str(max(steps)), new / str(max(steps)), copy_function=_link)
    if place.exists():
        os.rename(place, old := workdir / ".checkpoints.old")
        os.rename(new, place)
        shutil.rmtree(old)
    else:
        os.rename(new, place)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
