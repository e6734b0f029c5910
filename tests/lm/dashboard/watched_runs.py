"""Runs for the tests of the dashboard, and looks at them: files that the real writers write where that is cheap."""

import json
import os
import time
from pathlib import Path

from lm.dashboard.store import Store
from lm.dashboard.watched import Watched
from lm.files import saving
from lm.files.damage import set_aside
from lm.train.goodput import Goodput
from tests.lm.reports.made_runs import a_run, aligned, evaluated, lines, trained


def store(*folders: Path, patterns=()) -> Store:
    """Return a store that has looked once. It follows nothing by itself."""
    found = Store(folders, patterns)
    found.look()
    return found


def again(found: Store) -> None:
    """Look again, also for new runs."""
    found._searched = -1e9
    found.look()


def named(found: Store, name: str) -> Watched:
    return next(one for one in found.runs.values() if one.name == name)


def append(folder: Path, *rows: dict) -> None:
    with open(folder / "metrics.jsonl", "a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def eventful(folder: Path) -> Path:
    """Write an interrupted run to which everything happened: two attempts, a rewind, skipped data, a hang, damage."""
    rows = lines(12)
    for row in rows[4:6]:
        row["loss"] = None
    for row in rows[-3:]:
        row |= {"skipped": 2, "stragglers/host": 2.5} if "loss" in row else {}
    a_run(folder, rows=rows, watchdog={"slower": 1.5})
    account = Goodput(folder, 0)
    account.enter("dispatch")
    account.stepped(8)
    account.close(end=False)
    again = Goodput(folder, 6)
    again.enter("dispatch")
    again.stepped(12)
    again.close(end=False)
    saving.write_json(folder / "rewinds.json", [{"at": 6, "to": 4, "shift": 2, "cause": "a spike of the loss"}])
    saving.write_lines(folder / "skipped_data.jsonl", [{"rewind": 1, "step": step, "batch": step} for step in (5, 6)])
    (folder / "hang-1.txt").write_text("2026-11-28 03:40:12\nThread 0x1 (most recent call first):\n")
    for step in (5, 10):
        (folder / "checkpoints" / str(step) / "state").mkdir(parents=True)
        (folder / "checkpoints" / str(step) / "state" / "data").write_bytes(b"\0" * 1000 * step)
    set_aside(folder / "checkpoints" / "10")
    (folder / "out.log").write_text(
        "step 3: host 2 is slow: it needs 3.0 times as long\nlm: process 1 was lost: its host is down\n"
    )
    old(folder)
    return folder


def old(folder: Path, seconds: float = 7200.0) -> None:
    """Let the files of a run look as if they were written long ago."""
    for path in folder.rglob("*"):
        if path.is_file():
            os.utime(path, (time.time() - seconds,) * 2)


def many(root: Path, count: int, steps: int = 300) -> None:
    """Write `count` runs of all kinds in folders of folders; their losses differ."""
    for n in range(count - 4):
        a_run(root / ("widths" if n % 2 else "rates") / f"run-{n:02}", rows=lines(steps, 2 + n / 50), steps=steps, seed=n)
    trained(root / "base")
    aligned(root / "polite", root / "base", alarms=[{"step": 9, "kind": "length", "text": "completions grew"}])
    samples = [{"step": step, "prompt": "Say hi.", "completion": f"hi {step}", "reward": step / 20} for step in (10, 20)]
    saving.write_lines(root / "polite" / "samples.jsonl", samples)
    evaluated(root / "measured", root / "base", 61)
    eventful(root / "sweep" / "trials" / "3")
