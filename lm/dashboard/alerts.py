"""Derive alerts of a run from the files that it writes.

rewound        rewinds.json: the run went back to a checkpoint
skipped        skipped_data.jsonl, and "skipped" in metrics.jsonl: batches and updates that were left out
not finite     a loss or gradient norm in metrics.jsonl that is not finite
diverged       the run ended because of it
watchdog       hang-PROCESS.txt: a process was ended because a step took too long
damaged        NAME.damaged beside a checkpoint or a file: it was set aside
crashed        .lock: the process of the run failed, or was killed on this host (lm/runs/lock.py)
stalled        nothing is written any more, though the run is not at its end and its process lives or is not known here
stopped        an attempt ended before the end of the run (goodput.jsonl): a kill, a crash, or a lost host
failed         alerts.jsonl (lm/train/alerts.py): the run ended with an error
high loss      alerts.jsonl: the loss of a checkpoint was far above its lowest
lost host      alerts.jsonl, or a line about a lost process in the output, if that is kept in NAME.log beside the run, or in it
slow host      alerts.jsonl, "stragglers/…" in metrics.jsonl is above watchdog.slower, or such a line of the output
alarm          an alarm of the report of an alignment run, such as reward hacking
unreadable     a file that cannot be read
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lm.reports.page import duration
from lm.reports.run_folders import Run, at
from lm.reports.run_metrics import is_number

ERROR, WARNING, NOTE = "error", "warning", "note"
LEAST, TIMES = 600.0, 20.0  # seconds, and times the usual time between lines, after which a run counts as stalled
MOST = 20  # alerts of one kind
LOST = re.compile(r"process \d+ was lost[^\n]{0,300}")
TOLD = {  # a kind of lm/train/alerts.py -> a kind here, and its level; the other kinds are seen in other files
    "failed": ("failed", ERROR),
    "lost": ("lost host", ERROR),
    "slow": ("slow host", WARNING),
    "high": ("high loss", WARNING),
}
SLOW = re.compile(r"step \d+: host \d+ is slow[^\n]{0,300}")


class Alert(NamedTuple):
    """level: error, warning or note. step, time (seconds since 1970): of what it is about, or None."""

    level: str
    kind: str
    text: str
    step: float | None = None
    time: float | None = None


@dataclass
class Evidence:
    """What alerts are derived from, beside the Run.

    hangs: (process, time of its file). damaged: (name, time) of what was set aside. rewinds: of rewinds.json. left_out: lines
    of skipped_data.jsonl. told: of alerts.jsonl. accounts: of goodput.jsonl. not_finite: (count, first step, last step).
    output: the end of the run's output. between: seconds between two steps, or None. newest: when something was written last.
    faults: of these files.
    """

    hangs: Sequence[tuple[str, float]] = ()
    damaged: Sequence[tuple[str, float]] = ()
    rewinds: Sequence[Mapping[str, Any]] = ()
    left_out: int = 0
    told: Sequence[Mapping[str, Any]] = ()
    accounts: Sequence[Mapping[str, Any]] = ()
    not_finite: tuple[int, float, float] = (0, 0.0, 0.0)
    output: str = ""
    between: float | None = None
    newest: float = 0.0
    faults: list[str] = field(default_factory=list)


def patience(evidence: Evidence) -> float:
    """Return after how many seconds without a line a run counts as stalled."""
    return max(LEAST, TIMES * evidence.between) if evidence.between else LEAST


def alerts(run: Run, evidence: Evidence, now: float) -> list[Alert]:
    """Return the alerts of a run, the gravest first and then the newest."""
    found = [*_ending(run, evidence, now), *_of_files(run, evidence), *_of_values(run, evidence), *_attempts(evidence)]
    order = {ERROR: 0, WARNING: 1, NOTE: 2}
    return sorted(found, key=lambda one: (order[one.level], -(one.time or 0.0), -(one.step or 0.0)))


def _ending(run: Run, evidence: Evidence, now: float) -> Iterator[Alert]:
    silent = now - evidence.newest
    if run.state == "diverged":
        yield Alert(
            ERROR, "diverged", f"the run ended without a finite loss or gradient, {run.place}", run.steps, evidence.newest
        )
    elif run.state == "crashed":
        text = f"its process ended before the run did, {run.place}; the same command resumes it"
        yield Alert(ERROR, "crashed", text, run.steps, evidence.newest)
    elif run.state == "running" and silent > patience(evidence):
        text = f"it still runs, but has written nothing for {duration(silent)}, {run.place}"
        yield Alert(WARNING, "stalled", text, run.steps, evidence.newest)
    elif run.state == "interrupted":
        text = f"it writes nothing any more, {run.place or 'without a report'}; the same command resumes it"
        yield Alert(WARNING, "stalled", text, run.steps, evidence.newest)


def _of_files(run: Run, evidence: Evidence) -> Iterator[Alert]:
    for one in evidence.rewinds[-MOST:]:
        text = f"{one.get('cause') or 'divergence'}: the run went back to step {one.get('to')}"
        yield Alert(WARNING, "rewound", text, one["at"] if is_number(one.get("at")) else None)
    if evidence.left_out:
        text = f"the batches of {evidence.left_out:,} abandoned steps are left out, see skipped_data.jsonl"
        yield Alert(WARNING, "skipped", text)
    for process, time in evidence.hangs[:MOST]:
        text = f"process {process} was ended because a step took too long; the stacks are in hang-{process}.txt"
        yield Alert(ERROR, "watchdog", text, None, time)
    for name, time in evidence.damaged[:MOST]:
        yield Alert(ERROR, "damaged", f"{name} was damaged and set aside", None, time)
    for one in [one for one in evidence.told if str(one.get("kind")) in TOLD][-MOST:]:
        kind, level = TOLD[str(one["kind"])]
        step, time = (one.get(key) if is_number(one.get(key)) else None for key in ("step", "time"))
        yield Alert(level, kind, str(one.get("text"))[:1000], step, time)
    for kind, level, pattern in (("lost host", ERROR, LOST), ("slow host", WARNING, SLOW)):
        for text in dict.fromkeys(pattern.findall(evidence.output)[-MOST:]):
            yield Alert(level, kind, text)
    for text in dict.fromkeys([*run.faults, *evidence.faults]):
        yield Alert(WARNING, "unreadable", text)


def _of_values(run: Run, evidence: Evidence) -> Iterator[Alert]:
    count, first, last = evidence.not_finite
    if count:
        where = f"of step {first:,.0f}" if count == 1 else f"of {count:,} steps, from {first:,.0f} to {last:,.0f},"
        yield Alert(WARNING, "not finite", f"the loss or gradient norm {where} is not finite; such updates are left out", last)
    row = run.metrics.last
    skipped, spikes = (row.get(key) if is_number(row.get(key)) else 0 for key in ("skipped", "spikes"))
    if skipped or spikes:
        text = f"{skipped:,.0f} updates were left out so far" + (f", {spikes:,.0f} of them because of spikes" if spikes else "")
        yield Alert(NOTE, "skipped", text, run.steps)
    limit = at(run.config, "watchdog.slower")
    for what in ("host", "devices"):
        ratio = row.get(f"stragglers/{what}")
        if is_number(ratio) and ratio > (limit if is_number(limit) else 1.5):
            who = "a host's own work" if what == "host" else "a host's devices"
            text = f"{who} took {ratio:.1f} times as long as the median of the others"
            yield Alert(WARNING, "slow host", text, run.steps)
    for one in run.report.get("alarms") if isinstance(run.report.get("alarms"), list) else ():
        if isinstance(one, Mapping):
            step = one.get("step")
            yield Alert(WARNING, "alarm", f"{one.get('kind')}: {one.get('text')}", step if is_number(step) else None)


def _attempts(evidence: Evidence) -> Iterator[Alert]:
    """Yield the attempts that ended before the end of the run and were followed by another one."""
    groups: dict[float, list[Mapping[str, Any]]] = {}
    for one in evidence.accounts:
        if all(is_number(one.get(key)) for key in ("attempt", "time", "step")):
            groups.setdefault(one["attempt"], []).append(one)
    attempts = list(groups.values())
    for number, (own, after) in enumerate(zip(attempts, attempts[1:]), start=1):
        last, first = own[-1], after[0]
        if not last.get("end"):
            again = last["step"] - first["step"]
            text = f"attempt {number} ended early (stopped, killed, crashed, or a lost host); the next one began"
            text += f" {duration(max(0.0, first['attempt'] - last['time']))} later from step {first['step']:,.0f}"
            text += f", so {again:,.0f} steps were done again" if again > 0 else ""
            yield Alert(NOTE, "stopped", text, last["step"], last["time"])
