"""Results of stages on disk: what stands is taken, what is missing is made, whole or not at all.

Of several processes all make a result together; the first one writes it, and all get what is in the file then.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lm import workdir
from lm.damage import set_aside
from lm.parallel import hosts
from lm.saving import write_json, write_lines


def kept_json(path: Path, make: Callable[[], Any]) -> Any:
    """What stands in the file; else what `make` gives, which then stands there."""
    value = hosts.from_first(lambda: workdir.kept_json(path))
    if value is None:
        value = make()
        if hosts.is_first():
            write_json(path, value)
        value = hosts.from_first(lambda: json.loads(path.read_text(encoding="utf-8")))
    return value


def kept_lines(path: Path, make: Callable[[], list[dict]]) -> list[dict]:
    """The same of JSON lines."""
    lines = hosts.from_first(lambda: _standing(path))
    if lines is None:
        lines = make()
        if hosts.is_first():
            write_lines(path, lines)
        lines = hosts.from_first(lambda: read_lines(path))
    return lines


def _standing(path: Path) -> list[dict] | None:
    try:
        return read_lines(path) if path.exists() else None
    except ValueError:
        print(f"{path} is damaged: it is now {set_aside(path).name}, and is made anew", flush=True)
        return None


def kept_seconds(path: Path, more: float) -> float:
    """Seconds of all the processes of a run, of which this one adds `more`."""
    total = more + (workdir.kept_json(path) or 0.0)
    write_json(path, total)
    return total


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
