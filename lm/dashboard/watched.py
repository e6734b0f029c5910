"""One run that is watched: what changed in its folder is read, nothing else is read again."""

import time
from dataclasses import replace
from typing import Any

import numpy as np

from lm.dashboard import alerts
from lm.dashboard.alerts import Alert, Evidence
from lm.dashboard.files import Folder
from lm.dashboard.lines import MOST_KEYS, columns
from lm.dashboard.series import MOST, Series
from lm.dashboard.tail import Tail
from lm.errors import UserError
from lm.files.untrusted import read_json, shown
from lm.reports.run_folders import Run, json_object, kind, state
from lm.reports.run_metrics import Metrics, chart_of, is_number
from lm.reports.runs import MEASURES, Figure, sound_figures
from lm.runs.lock import LOCK, last_process
from lm.runs.workdir import RECORD
from lm.train.goodput import FILE as ACCOUNTS
from lm.train.history import Curve

METRICS, REWINDS, SKIPPED, SAMPLES = "metrics.jsonl", "rewinds.json", "skipped_data.jsonl", "samples.jsonl"
TOLD = "alerts.jsonl"
RECORDS = (RECORD, "report.json", "results.json")
EVIDENCE = (ACCOUNTS, REWINDS, TOLD, SKIPPED, SAMPLES, "starts.jsonl", "checkpoints", ".")
FRESH = 60.0  # seconds after its last line in which a run without a lock that is visible here counts as running
OUTPUT = 1 << 16  # bytes of the end of a run's output


class Watched:
    """A run: its record, the series of its metrics, and its alerts. id: its number on the page. version: of its last change."""

    def __init__(self, id: int, folder: Folder, name: str):
        self.id, self.folder, self.name, self.version = id, folder, name, 0
        self.run = Run(folder.path, name)
        self.series: dict[str, Series] = {}
        self.alerts: list[Alert] = []
        self.figures: list[Figure] = []
        self.evidence = Evidence()
        self.weights: dict[str, tuple] = {}  # of checkpoints: what changes with each, bytes, time
        self.share = 0.0  # of metrics.jsonl that is read
        self._tail = Tail(folder.path / METRICS)
        self._records: tuple = ()
        self._stamp: tuple = ()
        self._recorded: list[str] = []  # faults of the records
        self._shown: Any = None
        self._unreadable = ""
        self._forget()

    def refresh(self, names: list[str], metrics: bool = True) -> tuple[bool, bool]:
        """Read what is new, of metrics.jsonl at most one slice. Return (whether anything changed, whether there is more).

        names: the files of the folder. metrics: False leaves metrics.jsonl for later. A run whose files cannot be read says so.
        """
        changed = self._read_records(names)
        new, more = self._read_metrics(names) if metrics else (False, False)
        stamp = tuple(map(self.folder.stamp, EVIDENCE))
        if stamp != self._stamp:
            self._stamp, changed = stamp, True
            self._gather(names)
        self.run.kind = kind(self.run, names)
        if changed or new:
            self._measure()
        self._judge(names)
        seen = (self.run.state, self.run.place, self.run.faults, self.alerts, self.share)
        changed, self._shown = changed or new or seen != self._shown, seen
        return changed, more

    @property
    def is_run(self) -> bool:
        """Whether the folder is that of a run, and not one whose config.json or report.json is something else."""
        ours = self.run.origin not in ("", "published") or {"title", "finished"} <= self.run.report.keys()
        return ours or bool(self.run.faults) and self.run.origin != "published" or bool(self.series)

    def copied(self) -> Run:
        """Return the run with the curves of all charts of the page over many runs, for `lm.reports.runs.html`."""
        drawn = {key: _finite(one.curve(MOST)) for key, one in self.series.items() if chart_of(key) is not None}
        drawn = {key: curve for key, curve in drawn.items() if len(curve[0])}
        return replace(self.run, name=self.name, metrics=replace(self.run.metrics, curves=drawn), faults=list(self.run.faults))

    def over_tokens(self) -> Curve:
        """Return (steps, trained tokens so far)."""
        if "tokens" not in self.series:
            return np.empty(0), np.empty(0)
        curve = self.series["tokens"].curve(200)
        return _finite(curve | {"y": curve["high"]})  # at the end of each stretch

    def over_time(self) -> Curve:
        """Return (steps, seconds since the run began): by goodput.jsonl, which counts pauses, else by the speed in the log."""
        known = [one for one in self.evidence.accounts if all(map(is_number, map(one.get, ("attempt", "time", "step"))))]
        if known:
            points: list[tuple[float, float]] = []
            for one in known:
                while points and points[-1][0] >= one["step"]:  # steps that are done again
                    points.pop()
                points.append((one["step"], one["time"] - known[0]["attempt"]))
            every = max(1, len(points) // 200)
            steps, seconds = np.array([*points[:-1:every], points[-1]], np.float64).T
            last = self.run.metrics.last.get("step")
            newest = self.folder.stamp(METRICS)
            if is_number(last) and last > steps[-1] and newest:
                steps = np.append(steps, last)
                seconds = np.append(seconds, max(seconds[-1], newest[0] / 1e9 - known[0]["attempt"]))
            return steps, np.maximum.accumulate(seconds)
        if not {"tokens", "tokens_per_second"} <= self.series.keys():
            return np.empty(0), np.empty(0)
        steps, tokens = self.over_tokens()
        rate_steps, rates = _finite(self.series["tokens_per_second"].curve(200))
        if not len(steps) or not len(rates):
            return np.empty(0), np.empty(0)
        new = np.diff(tokens, prepend=0.0).clip(min=0.0)
        return steps, np.cumsum(new / np.maximum(np.interp(steps, rate_steps, rates), 1e-9))

    def _forget(self) -> None:
        self.series.clear()
        self._damaged, self._bad = 0, (0, 0.0, 0.0)
        self._null, self._last = 0, []

    def _read_records(self, names: list[str]) -> bool:
        stamps = tuple(map(self.folder.stamp, RECORDS))
        if stamps == self._records:
            return False
        self._records, run, self._recorded = stamps, self.run, []
        found = {}
        for name in RECORDS:
            if name in names and not self.folder.inside(name):
                self._recorded.append(f"{name} leads out of the folder of runs, so it is not read")
            elif name in names and (name != "results.json" or run.origin == "evaluate" or found.get("tasks")):
                found[name] = json_object(self.folder.path / name, self._recorded)
            if name == RECORD:
                run.config = found.get(RECORD) or {}
        run.report = found.get("report.json") or {}
        if not run.config and isinstance(run.report.get("config"), dict):
            run.config = run.report["config"]
        run.results = found.get("results.json") or {}
        return True

    def _read_metrics(self, names: list[str]) -> tuple[bool, bool]:
        """Read a slice of metrics.jsonl. Return (whether anything changed, whether there is more)."""
        self._unreadable = ""
        if METRICS not in names:
            was = bool(self.series)
            self._tail.forget()
            self._forget()
            self.share = 1.0
            return was, False
        if not self.folder.inside(METRICS):
            self._unreadable = f"{METRICS} leads out of the folder of runs, so it is not read"
            self.share = 1.0
            return False, False
        try:
            read = self._tail.read()
            size = (self.folder.path / METRICS).stat().st_size
        except OSError as error:
            self._unreadable = f"{METRICS} cannot be read: {error.strerror}"
            self.share = 1.0
            return False, False
        if read.anew:
            self._forget()
        self._damaged += read.too_long
        self.share = min(1.0, self._tail.place / size) if size and read.more else 1.0
        if read.lines:
            found = columns(read.lines, self.series.keys())
            for key, (steps, values) in found.curves.items():
                if key in self.series or len(self.series) < MOST_KEYS:
                    self.series.setdefault(key, Series()).extend(steps, values)
            self._damaged += found.damaged
            if found.trained:
                self._null = found.null + (self._null if found.null == found.trained else 0)
                self._last = [*self._last, *found.last][-2:]
            if found.not_finite:
                count, first, _ = self._bad
                bad = found.not_finite
                self._bad = (count + len(bad), first if count else bad[0], bad[-1])
        return bool(read.lines or read.anew), read.more

    def _gather(self, names: list[str]) -> None:
        """Read the small files that alerts are derived from."""
        folder, faults = self.folder, list[str]()
        rewinds = []
        if REWINDS in names and folder.inside(REWINDS):
            rewinds = json_list(folder, REWINDS, faults)
        hangs = [(name[5:-4], self._time(name)) for name in names if name.startswith("hang-") and name.endswith(".txt")]
        damaged = [(name, self._time(name)) for name in names if ".damaged" in name]
        inner = [name for name in folder.names("checkpoints") if ".damaged" in name]
        damaged += [(f"checkpoint {name.partition('.')[0]}", self._time(f"checkpoints/{name}")) for name in inner]
        output = b""
        for name in (*(name for name in names if name.endswith(".log")), f"../{self.folder.path.name}.log"):
            if folder.stamp(name):
                try:
                    output += folder.end(name, OUTPUT) + b"\n"
                except (OSError, UserError):  # output that cannot be read is no alert
                    continue
        accounts = folder.lines(ACCOUNTS, faults)
        self.evidence = Evidence(
            hangs=hangs,
            damaged=damaged,
            rewinds=rewinds,
            left_out=len(folder.lines(SKIPPED, faults)),
            told=folder.lines(TOLD, faults),
            accounts=accounts,
            output=output.decode("utf-8", "replace"),
            between=between(accounts),
            faults=faults,
        )

    def _measure(self) -> None:
        """Derive what the results and the state of the run are read from."""
        named = [key for key in self.series if key.startswith("valid_") or key in MEASURES]
        curves = {key: _finite(self.series[key].curve(MOST)) for key in named}
        metrics = self.run.metrics = Metrics(
            curves={key: curve for key, curve in curves.items() if len(curve[0])},
            tokens=self.over_tokens(),
            last=self._last[-1] if self._last else {},
            null=self._null,
        )
        rows = [row for row in self._last if is_number(row.get("skipped")) and is_number(row.get("spikes", 0))]
        if rows and not self._null:
            skipped = [row["skipped"] - row.get("spikes", 0) for row in rows]
            metrics.overflow = skipped[-1] > (skipped[0] if len(skipped) > 1 else 0)
        self.evidence.not_finite = self._bad
        self.figures = sound_figures(self.run)

    def _judge(self, names: list[str]) -> None:
        """Derive state and alerts, which also change when nothing is written."""
        run, now, evidence = self.run, time.time(), self.evidence
        faults = [*self._recorded, *filter(None, [self._unreadable])]
        if self._damaged:
            what = "1 line cannot be read" if self._damaged == 1 else f"{self._damaged:,} lines cannot be read"
            faults.append(f"{METRICS}: {what}")
        if RECORD not in names and run.kind != "doremi":  # which has its record in reference/
            faults.append(f"{RECORD} is missing")
        run.faults = [shown(fault)[:500] for fault in faults]
        process = last_process(run.folder) if LOCK in names and self.folder.inside(LOCK) else ("", "")
        run.state, place = state(run, *process)
        if not self.folder.inside("checkpoints"):
            place = place.partition("; saved")[0]
        written = [stamp[0] / 1e9 for stamp in map(self.folder.stamp, (METRICS, ACCOUNTS)) if stamp]
        evidence.newest = max(written, default=0.0) or run.written
        if run.state == "interrupted" and written and now - evidence.newest < max(FRESH, 3 * (evidence.between or 0.0)):
            run.state, place = "running", f"{place.partition(';')[0]}, no lock seen here"
        run.place = shown(place)
        self.alerts = alerts.alerts(run, evidence, now) if self.share == 1 else []
        if self.share < 1:
            run.state, run.place = "reading", f"{self.share:.0%} of {METRICS}"

    def _time(self, name: str) -> float:
        stamp = self.folder.stamp(name)
        return stamp[0] / 1e9 if stamp else 0.0


def json_list(folder: Folder, name: str, faults: list[str]) -> list[dict[str, Any]]:
    """Return the objects of a JSON list in a file; [] and a fault if it is damaged."""
    try:
        value = read_json(folder.path / name)
        if isinstance(value, list):
            return [one for one in value if isinstance(one, dict)]
        faults.append(f"{name} is no JSON list")
    except (OSError, ValueError, UserError) as error:
        faults.append(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}")
    return []


def between(accounts: list[dict[str, Any]]) -> float | None:
    """Return the seconds between two steps of the newest attempt in goodput.jsonl, or None."""
    known = [one for one in accounts if all(map(is_number, map(one.get, ("attempt", "time", "step"))))]
    own = [one for one in known if one["attempt"] == known[-1]["attempt"]]
    steps = own[-1]["step"] - own[0]["step"] if own else 0
    return max(0.0, (own[-1]["time"] - own[0]["time"]) / steps) if steps > 0 else None


def _finite(curve: dict[str, np.ndarray]) -> Curve:
    known = np.isfinite(curve["y"])
    return curve["x"][known], curve["y"][known]
