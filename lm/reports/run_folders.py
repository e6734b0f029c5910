"""Find the runs below some folders, and read what each of them left: its record, report, results and metrics.

Damage never stops the search. A `Run` says what is wrong with it.
"""

import contextlib
import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from lm.errors import UserError
from lm.files.untrusted import MAX_BYTES, read_json, shown
from lm.reports.page import duration
from lm.reports.run_metrics import Metrics, is_number, read_metrics
from lm.runs.lock import LOCK, last_process
from lm.runs.workdir import RECORD, kind_of, read_config, steps_saved

# Folders of a run that hold no runs, but many files.
INTERNAL = {"checkpoints", "data", "tensorboard", "documents", "dropped", "stages", "dataset", "tasks"}
KINDS = {"evaluate": "evaluation", "curate": "curation", "serve": "serving", "import": "imported", "train": "train"}
TRAINED = ("train", "align")  # origins of a config (lm.runs.workdir.kind_of) whose runs count steps
LOG, ALERTS = "metrics.jsonl", "alerts.jsonl"
FRESH = 60.0  # seconds after its last line in which a run of another host, whose lock is not seen here, counts as running
# Seconds, and times the usual time between two lines, after which a run that writes nothing counts as stalled.
STALLED, STALLED_TIMES = 600.0, 20.0


@dataclass
class Run:
    """What one folder holds. Missing or damaged files are empty here.

    name: its path on the page. kind: a method of align.py, a value of KINDS, or "unknown". faults: what is wrong.
    state: finished, running, stalled, interrupted, crashed, diverged, no report, stopped (a server), imported, damaged. place:
    how far it came. files: names in the folder.
    """

    folder: Path
    name: str = ""
    files: Collection[str] = ()
    kind: str = "unknown"
    state: str = "damaged"
    place: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    metrics: Metrics = field(default_factory=Metrics)
    faults: list[str] = field(default_factory=list)

    @property
    def origin(self) -> str:
        return kind_of(self.config)

    @property
    def steps(self) -> int | None:
        """The last step that it logged or reported."""
        known = [self.metrics.last.get("step"), at(self.report, "training.steps")]
        return int(max(step for step in known if is_number(step))) if any(map(is_number, known)) else None

    @property
    def tokens(self) -> float | None:
        known = at(self.report, "training.tokens"), self.metrics.last.get("tokens")
        return next((tokens for tokens in known if is_number(tokens)), None)

    @property
    def seconds(self) -> float | None:
        """Seconds that it took: of its provenance, else the sum of its stages."""
        if is_number(given := at(self.report, "provenance.seconds")):
            return given
        stages = self.report.get("stages")
        parts = [value for value in stages.values() if is_number(value)] if isinstance(stages, Mapping) else []
        return sum(parts) if parts else None

    @property
    def versions(self) -> list[tuple]:
        """(name, time, size) of each file that the page reads."""
        read = [name for name in (RECORD, "report.json", "results.json", LOG, ALERTS) if name in self.files]
        stats = [(name, _stat(self.folder / name)) for name in read]
        return [(name, stat.st_mtime_ns, stat.st_size) for name, stat in stats if stat]

    @property
    def written(self) -> float:
        """Seconds since 1970 when its report was written, by its provenance or its file; else when its log or record was."""
        try:
            return datetime.fromisoformat(at(self.report, "provenance.written")).timestamp()
        except (TypeError, ValueError, OverflowError, OSError):
            paths = [self.folder / name for name in ("report.json", LOG, "results.json", RECORD) if name in self.files]
        return next((time for time in map(_time, paths) if time), _time(self.folder))


def at(tree: Any, path: str) -> Any:
    """Return the value at a dotted path of nested mappings, or None."""
    for key in path.split("."):
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def find(folders: Sequence[Path], confined: bool = False) -> Iterator[tuple[Path, list[str], str]]:
    """Yield (folder, its files, fault) of each folder and of those below it, each once; fault "" if it can be read.

    Links are followed after all real folders, so a run keeps its own path, and a loop ends. confined: a link that leads out of
    all the folders is not followed, and is a fault.
    """
    roots = [Path(os.path.realpath(folder)) for folder in folders]
    waiting, links, visited = deque(folders), deque(), set()
    while waiting or links:
        folder = (waiting or links).popleft()
        real = os.path.realpath(folder)
        if real in visited:
            continue
        visited.add(real)
        if confined and not any(Path(real).is_relative_to(root) for root in roots):
            yield folder, [], "the link leads out of the folder, so it is not followed"
            continue
        try:
            with os.scandir(folder) as listed:
                entries = sorted(listed, key=lambda entry: entry.name)
        except OSError as error:
            yield folder, [], f"the folder cannot be read: {error.strerror}"
            continue
        names = [entry.name for entry in entries]
        yield folder, names, ""
        inner = INTERNAL if RECORD in names else ()
        for entry in entries:
            if entry.name.startswith(".") or entry.name in inner:
                continue
            try:
                if entry.is_dir():
                    (links if entry.is_symlink() else waiting).append(folder / entry.name)
            except OSError as error:
                yield folder / entry.name, [], f"the link cannot be followed: {error.strerror}"


class Cache:
    """Reads a file again only if it changed."""

    def __init__(self):
        self._values: dict[tuple[Path, str], tuple[tuple, Any]] = {}

    def read(self, reader: Callable[[Path], Any], path: Path) -> Any:
        """Return `reader(path)`, perhaps as it was read before: the caller must not change it."""
        if (status := _stat(path)) is None:
            return reader(path)
        stamp, key = (status.st_mtime_ns, status.st_size, status.st_ino), (path, reader.__name__)
        if self._values.get(key, (None,))[0] != stamp:
            self._values[key] = (stamp, reader(path))
        return self._values[key][1]


def read_runs(folders: Sequence[Path], confined: bool = False, cache: Cache | None = None) -> list[Run]:
    """Return the runs in and below some folders, the newest first. Their names are paths from the folder around all of them.

    Args: confined: links that lead out of the folders are not followed. cache: of earlier calls.
    """
    runs, roots = [], [Path(os.path.realpath(folder)) for folder in folders]
    for folder, names, fault in find(folders, confined):
        outside = [name for name in names if confined and not _inside(folder / name, roots)]
        names = [name for name in names if name not in outside]
        faults = [f"{name} leads out of the folder of runs, so it is not read" for name in outside]
        if fault:
            runs.append(Run(folder, faults=[fault]))
        elif {RECORD, "report.json", LOG} & {*names, *outside}:
            try:
                run = _read(folder, names, cache or Cache(), faults, confined)
            except Exception as error:  # whatever a stranger's file holds, the other runs are shown
                run = Run(folder, faults=[f"it cannot be read: {type(error).__name__}: {shown(str(error)[:200])}"])
            runs += [run] if run else []
    root = Path(os.path.commonpath([folder.absolute() for folder in folders]))
    if any(run.folder.absolute() == root for run in runs):
        root = root.parent
    for run in runs:
        run.name = shown(os.path.relpath(run.folder.absolute(), root))
    return sorted(runs, key=lambda run: (-run.written, run.name))


def _inside(path: Path, roots: Sequence[Path]) -> bool:
    """Return whether a path of a folder below `roots` is no link, or one that stays below them."""
    return not path.is_symlink() or any(Path(os.path.realpath(path)).is_relative_to(root) for root in roots)


def _read(folder: Path, names: Collection[str], cache: Cache, faults: Sequence[str], confined: bool) -> Run | None:
    """Return the run in a folder with these files; None if they are not those of a run. faults: known ones of the folder."""
    run = Run(folder, files=names, faults=list(faults))

    def value(name: str) -> dict[str, Any]:
        content, fault = cache.read(json_object, folder / name) if name in names else ({}, "")
        run.faults += [fault] if fault else []
        return content

    run.config, run.report = value(RECORD), value("report.json")
    if run.faults and not run.config and not confined and (folder / RECORD).is_file():
        with contextlib.suppress(UserError, OSError):
            run.config = read_config(folder)  # of the newest checkpoint
    if not run.config and isinstance(run.report.get("config"), dict):
        run.config = run.report["config"]
    ours = run.origin not in ("", "published") or {"title", "finished"} <= run.report.keys()
    if not ours and not run.faults and LOG not in names:
        return None
    run.results = value("results.json") if run.origin == "evaluate" else {}
    running, error = last_process(folder) if LOCK in names else ("", "")
    if LOG in names:
        run.metrics = cache.read(read_metrics, folder / LOG)
        damaged = run.metrics.damaged + (run.metrics.is_cut and not running)  # a run that goes on is writing its last line
        what = "1 line cannot be read" if damaged == 1 else f"{damaged:,} lines cannot be read"
        run.faults += filter(None, [run.metrics.fault, f"{LOG}: {what}" if damaged else ""])
    run.kind = kind(run, names)
    if RECORD not in names:
        run.faults.append(f"{RECORD} is missing")
    run.state, run.place = state(run, running, error)
    return run


def kind(run: Run, names: Sequence[str]) -> str:
    """Return what made a run: a method of align.py, or what its verb makes."""
    if run.origin == "align":
        if "best_of" in names:
            return "best_of"
        method = run.config.get("method")
        own = {"preference": "preference.loss", "rl": "rl.algorithm"}.get(str(method))
        return str((own and at(run.config, own)) or method)
    return KINDS.get(run.origin, "unknown")


def state(run: Run, running: str, error: str) -> tuple[str, str]:
    """Return (state, how far it came). running, error: of lm.runs.lock.last_process."""
    steps, of = run.steps, run.config.get("steps") if run.origin in TRAINED and run.kind != "safety" else None
    place = f"step {steps or 0:,} of {of:,}" if is_number(of) else ""
    silent = time.time() - _time(run.folder / LOG) if LOG in run.files else 0.0
    if running:
        place = ", ".join(filter(None, [place, running]))
        if silent > max(STALLED, STALLED_TIMES * (run.metrics.between or 0.0)):
            minutes = duration(silent // 60 * 60).removesuffix(" 00 s")  # the page must not change every second
            return "stalled", f"{place}, nothing was written for {minutes}"
        return "running", place
    if run.origin in ("import", "serve"):
        return {"import": "imported", "serve": "stopped"}[run.origin], ""
    if run.kind == "unknown":
        return "damaged", place
    if run.report.get("finished") is True and (not is_number(of) or (steps or 0) >= of):
        return "finished", ""
    if run.metrics.diverged(run.config.get("max_skipped_in_row")):
        return "diverged", place
    if LOCK in run.files and not error and LOG in run.files and silent < FRESH:
        return "running", ", ".join(filter(None, [place, "no lock seen here"]))
    saved = steps_saved(run.folder) if is_number(of) and (steps or 0) < of and "checkpoints" in run.files else []
    place += f"; saved at step {saved[-1]:,}" if saved else ""
    if error:
        return "crashed", "; ".join(filter(None, [place, shown(error)]))
    if is_number(of) and (steps or 0) < of:
        return "interrupted", place
    if run.results or is_number(of):
        return "no report", place
    return "interrupted", ""


def related(runs: Sequence[Run]) -> tuple[dict[int, int], dict[int, int]]:
    """Return ({run: the run whose model it starts from or measures}, {run: the run whose output it reads}), as indices.

    A path that does not exist here, because a folder was moved or copied, is found by its last parts, if one run alone fits.
    """
    places = {os.path.realpath(run.folder): i for i, run in enumerate(runs)}
    starts, inputs = {}, {}
    for i, run in enumerate(runs):
        for links, path in ((starts, start(run)), (inputs, run.config.get("input") or at(run.config, "data.input"))):
            other = _place(path, run.folder, places) if isinstance(path, str) and path else None
            # A run of train.py makes no data: a path that fits one is the name of something else, such as a dataset.
            if other not in (None, i) and (links is starts or runs[other].origin != "train"):
                links[i] = other
    return starts, inputs


def start(run: Run) -> Any:
    """Return the path of the model that a run starts from, measures or serves."""
    return run.config.get("checkpoint" if run.origin in ("evaluate", "serve") else "init_from")


def tree(starts: Mapping[int, int], outside: Mapping[int, str]) -> list[tuple[int | str, int]]:
    """Return (run or path, depth) of all runs that start from another one, or that another one starts from, below their start.

    starts: of `related`. outside: {run: the path that it starts from} of the other runs that have one.
    """
    below: dict[int | str, list[int]] = {}
    for i, origin in (*starts.items(), *outside.items()):
        below.setdefault(origin, []).append(i)
    order, listed = [], set()
    # Runs whose starts form a circle, as damaged records may say, come last.
    for root in itertools.chain((node for node in below if node not in starts and node not in outside), starts):
        waiting: list[tuple[int | str, int]] = [(root, 0)]
        while waiting:
            node, depth = waiting.pop()
            if node not in listed:
                listed.add(node)
                order.append((node, depth))
                waiting += [(child, depth + 1) for child in below.get(node, ())]
    return order


def _place(path: str, folder: Path, places: Mapping[str, int]) -> int | None:
    """Return the run that a path of a config names or lies in. The path may be relative to any folder around the run."""
    for base in (*folder.absolute().parents, Path.cwd()):
        try:
            if (base / path).exists():
                real = Path(os.path.realpath(base / path))
                return next((places[str(p)] for p in (real, *real.parents) if str(p) in places), None)
        except (OSError, ValueError):
            return None
    parts = Path(path).parts
    alike = {i: len(os.path.commonprefix([Path(place).parts[::-1], parts[::-1]])) for place, i in places.items()}
    best = max(alike.values(), default=0)
    if best < 2 or list(alike.values()).count(best) > 1:
        return None
    return next(i for i, common in alike.items() if common == best)


def json_object(path: Path) -> tuple[dict[str, Any], str]:
    """Return (the JSON object in a file, ""); ({}, what is wrong) if it is damaged, and ({}, "") if it is missing."""
    try:
        value = read_json(path, MAX_BYTES)
        return (value, "") if isinstance(value, dict) else ({}, f"{path.name} is no JSON object")
    except FileNotFoundError:
        return {}, ""
    except (OSError, UserError) as error:
        return {}, f"{path.name} cannot be read: {getattr(error, 'strerror', None) or 'no regular file, or too large'}"
    except ValueError as error:
        is_empty = path.is_file() and not path.stat().st_size
        return {}, f"{path.name} cannot be read as JSON: {'it is empty' if is_empty else error}"


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _time(path: Path) -> float:
    stat = _stat(path)
    return stat.st_mtime if stat else 0.0
