"""Cache results of stages on disk: reuse existing files, compute missing ones and write them atomically.

All processes compute a result together. The first one writes the file, and all return its content.
"""

import functools
import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from lm.errors import UserError
from lm.files.saving import set_aside, write_json, write_lines
from lm.parallel import hosts
from lm.runs import workdir


def kept_json(path: Path, make: Callable[[], Any]) -> Any:
    """Return the content of a JSON file; if it is missing, write the result of `make` first."""
    return _kept(path, make, workdir.kept_json, write_json)


def kept_lines(path: Path, make: Callable[[], list[dict]], ensure_ascii: bool = False) -> list[dict]:
    """Do the same for a JSONL file."""
    return _kept(path, make, _existing_lines, functools.partial(write_lines, ensure_ascii=ensure_ascii))


def _kept(path: Path, make: Callable[[], Any], read: Callable[[Path], Any], write: Callable[[Path, Any], None]) -> Any:
    value = hosts.from_first(lambda: read(path))
    if value is None:
        value = make()
        if hosts.is_first():
            write(path, value)
        value = hosts.from_first(lambda: read(path))
    return value


def _existing_lines(path: Path) -> list[dict] | None:
    try:
        return read_lines(path) if path.exists() else None
    except ValueError:
        print(f"{path} is damaged: it is now {set_aside(path).name}, and is made anew", flush=True)
        return None


def claim(folder: Path, what: str, settings: Mapping[str, Any], former: Collection[str] = ()) -> None:
    """Write the settings that all stages in a folder depend on to its settings.json.

    what: is in the folder, for the error. former: keys of older versions, which say nothing.
    Raises: UserError if the file has other ones.
    """
    path = folder / "settings.json"
    if not path.is_file():
        write_json(path, settings)
    before = workdir.read_object(path, f"delete {folder} to begin again, or use another --workdir")
    for key in sorted({*before, *settings} - {*former}):
        if before.get(key) != settings.get(key):
            raise UserError(
                f"{folder} holds {what} with {key}={before.get(key)}, and this run says {settings.get(key)}: set it back, or "
                "use another --workdir"
            )


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
