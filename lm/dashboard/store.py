"""All runs that are watched. A thread reads what they append while somebody looks at the page."""

import os
import threading
import time
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from lm.dashboard.files import Folder
from lm.dashboard.watched import Watched
from lm.files.untrusted import shown
from lm.reports.run_folders import find
from lm.runs.workdir import RECORD

SEARCH = 10.0  # seconds between two searches for new runs, at least
SHARE = 0.05  # of the time that searching may take
LOOKING = 30.0  # seconds after a request in which somebody counts as looking
MOST_RUNS = 2000
PAUSE = 0.001  # seconds between two slices, in which a request may have the lock
ONES = {RECORD, "report.json", "metrics.jsonl"}  # a folder with one of these is a run


class Store:
    """The runs in and below some folders. patterns: shell patterns of their names; none: all. seconds: between two looks.

    `lock` guards all that it holds. version: counts changes, so that a page asks only for what is newer.
    """

    def __init__(self, folders: Sequence[Path], patterns: Sequence[str] = (), seconds: float = 2.0):
        self.folders, self.patterns, self.seconds = list(folders), tuple(patterns), seconds
        self.runs: dict[int, Watched] = {}
        self.faults: list[str] = []
        self.version, self.behind = 1, True
        self.lock = threading.Lock()
        self._roots = [Path(os.path.realpath(folder)) for folder in folders]
        self._ids: dict[Path, int] = {}
        self._names: dict[int, tuple[tuple, list[str]]] = {}
        self._next = 1
        self._searched, self._cost, self._asked = -1e9, 0.0, 0.0
        self._wake, self._closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._follow, name="dashboard", daemon=True)

    def start(self) -> None:
        """Begin to follow the runs in the background."""
        self.asked()
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def asked(self) -> None:
        """Note that somebody looks at the page, so the runs are followed for a while."""
        self._asked = time.monotonic()
        self._wake.set()

    def look(self) -> None:
        """Search for runs if it is time, and read what is new of each run, slice by slice."""
        now = time.monotonic()
        if now - self._searched > max(SEARCH, self._cost / SHARE):
            for one in self._search():  # their records first, so that the list is soon whole
                self._read(one, metrics=False)
            self._searched = time.monotonic()
            self._cost = self._searched - now
        for one in sorted(self.runs.values(), key=lambda run: -run.run.written):  # the newest are whole first
            while self._read(one) and not self._closed.wait(PAUSE):
                self._progress(behind=True)
        self._progress(behind=False)

    def _read(self, one: Watched, metrics: bool = True) -> bool:
        with self.lock:
            names = self._listed(one)
            try:
                changed, more = one.refresh(names, metrics)
            except Exception as error:  # whatever a stranger's file holds, the other runs are shown
                changed, more, one.run.state = one.run.state != "damaged", False, "damaged"
                one.run.faults = [f"it cannot be read: {shown(type(error).__name__)}: {shown(error)[:200]}"]
            if changed:
                self.version += 1
                one.version = self.version
        return more

    def _progress(self, behind: bool) -> None:
        with self.lock:
            if self.behind != behind:
                self.behind, self.version = behind, self.version + 1

    def _listed(self, one: Watched) -> list[str]:
        """Return the names in the folder of a run; they are listed again only if the folder changed."""
        stamp = one.folder.stamp(".")
        stamped, names = self._names.get(one.id, (None, []))
        if stamped != stamp:
            names = one.folder.names()
            self._names[one.id] = (stamp, names)
        return names

    def _search(self) -> list[Watched]:
        """Find new runs, and forget those that are gone. Return the new ones."""
        around = Path(os.path.commonpath([folder.absolute() for folder in self.folders]))
        places, faults = [], []
        for folder, names, fault in find(self.folders, confined=True):
            if fault:
                faults.append(f"{shown(os.path.relpath(folder.absolute(), around))}: {shown(fault)}")
            elif ONES & set(names):
                places.append(folder)
        if any(place.absolute() == around for place in places):
            around = around.parent
        named = {place: shown(os.path.relpath(place.absolute(), around)) for place in places}
        if self.patterns:
            named = {place: name for place, name in named.items() if any(fnmatchcase(name, one) for one in self.patterns)}
        if len(named) > MOST_RUNS:
            faults.append(f"{len(named):,} runs are there, and {MOST_RUNS:,} of them are shown; --runs chooses others")
            named = dict(list(named.items())[:MOST_RUNS])
        with self.lock:
            gone = [place for place in self._ids if place not in named]
            for place in gone:
                id = self._ids.pop(place)
                self._names.pop(id, None)
                del self.runs[id]
            new = []
            for place, name in named.items():
                if place not in self._ids:
                    self._ids[place] = self._next
                    new.append(Watched(self._next, Folder(place, self._roots), name))
                    self.runs[self._next] = new[-1]
                    self._next += 1
            if gone or faults != self.faults:
                self.faults, self.version = faults[:100], self.version + 1
        return new

    def _follow(self) -> None:
        while not self._closed.is_set():
            self.look()
            if time.monotonic() - self._asked > LOOKING:
                self._wake.clear()
                if time.monotonic() - self._asked > LOOKING:
                    self._wake.wait()
            else:
                self._closed.wait(self.seconds)
