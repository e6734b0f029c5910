"""What went wrong in a run and needs people: alerts that the run wrote itself, and those that its log and its report show.

failed, diverged, hung, lost, slow, high, rewind, damaged    alerts.jsonl (lm/train/alerts.py)
not finite                                                   metrics.jsonl: a loss or gradient norm that is not finite
skipped                                                      metrics.jsonl: updates that were left out
alarm                                                        report.json of an alignment run, such as reward hacking
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lm.errors import UserError
from lm.files.untrusted import content, shown
from lm.reports.run_folders import ALERTS, Run
from lm.reports.run_metrics import is_number

ERROR, WARNING, NOTE = "error", "warning", "note"
ERRORS = ("failed", "diverged", "hung", "lost", "damaged")  # kinds; the others are warnings
BAD_STATES = ("crashed", "diverged", "stalled", "damaged")
MAX_BYTES = 1 << 20  # of alerts.jsonl
MAX_ALERTS = 20  # of one source
MAX_TEXT = 300  # characters
LITTLE = 1024  # MiB of a disk that count as full


class Alert(NamedTuple):
    """level: error, warning or note. step: the one that it is about, or None."""

    level: str
    kind: str
    text: str
    step: float | None = None


def alerts(run: Run) -> list[Alert]:
    """Return the alerts of a run, the gravest first and then the newest."""
    order = (ERROR, WARNING, NOTE)
    newest_first = [*_written(run), *_derived(run)][::-1]
    return sorted(newest_first, key=lambda alert: order.index(alert.level))


def needs_people(run: Run, found: Sequence[Alert]) -> bool:
    """Return whether a run ended in trouble, or goes on with trouble. Alerts of a run that finished are history."""
    return run.state in BAD_STATES or (run.state == "running" and any(alert.level != NOTE for alert in found))


def full_disks(folders: Sequence[Path]) -> list[str]:
    """Return a sentence for each folder whose disk has less than a GiB left."""
    free = {shown(folder): shutil.disk_usage(folder).free >> 20 for folder in folders if folder.is_dir()}
    return [f"The disk of {name} is nearly full: {left:,} MiB are left." for name, left in free.items() if left < LITTLE]


def _written(run: Run) -> Iterator[Alert]:
    """Yield the alerts of alerts.jsonl. Damaged lines are skipped."""
    if ALERTS not in run.files:
        return
    try:
        lines = content(run.folder / ALERTS, MAX_BYTES).splitlines()[-MAX_ALERTS:]
    except (OSError, UserError):
        yield Alert(WARNING, "unreadable", f"{ALERTS} cannot be read")
        return
    for line in lines:
        try:
            row = json.loads(line)
            kind = str(row["kind"])
            yield Alert(ERROR if kind in ERRORS else WARNING, shown(kind)[:40], _text(row["text"]), _step(row))
        except (ValueError, TypeError, KeyError, RecursionError):
            continue


def _derived(run: Run) -> Iterator[Alert]:
    """Yield the alerts that the run's log and report show."""
    if bad := run.metrics.not_finite:
        steps = "one step" if bad == 1 else f"{bad:,} steps"
        text = f"the loss or gradient norm of {steps} is not finite; such updates are left out"
        yield Alert(WARNING, "not finite", text, run.steps)
    last, alarms = run.metrics.last, run.report.get("alarms")
    if is_number(skipped := last.get("skipped")) and skipped > 0:
        spikes = last.get("spikes")
        because = f", {spikes:,.0f} of them because of spikes" if is_number(spikes) and spikes > 0 else ""
        yield Alert(NOTE, "skipped", f"{skipped:,.0f} updates were left out so far{because}", run.steps)
    for alarm in alarms[:MAX_ALERTS] if isinstance(alarms, list) else ():
        if isinstance(alarm, Mapping):
            yield Alert(WARNING, "alarm", _text(f"{alarm.get('kind')}: {alarm.get('text')}"), _step(alarm))


def _text(value: Any) -> str:
    text = shown(value)
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]} …"


def _step(row: Mapping[str, Any]) -> float | None:
    return row.get("step") if is_number(row.get("step")) else None
