"""The workdir of a run in a bucket: a folder of this machine, filled when the run starts, whose files are uploaded meanwhile.

The run works in the folder as in any other workdir, with all that a file system can do and a bucket cannot: append, rename,
lock. A thread uploads what is complete: first logs, datasets and other files, then checkpoints (lm/bucket/steps.py). So the
bucket never holds a checkpoint that looks whole and is not, nor one that is ahead of its log. What the run deletes is deleted
in the bucket after that.

Another machine that runs the same command fetches the newest whole checkpoint of each folder, and all other files except
tensorboard/. The machine that wrote last keeps its folder, which may be ahead of the bucket.

On several hosts the folder must be on a file system that all of them share. Each process uploads the files of checkpoints that
it wrote, process 0 everything else.
"""

import contextlib
import functools
import itertools
import json
import os
import re
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import filelock

from lm.bucket.owner import LOCK, Owner
from lm.bucket.places import mirror_of
from lm.bucket.steps import HEALTHY, ITEMS, LAST, makes_whole, newest_whole, number, place_of, places, there_are
from lm.bucket.store import Entry, Refused, Store, is_url
from lm.errors import UserError
from lm.files import saving
from lm.files.checksums import NAME as SUMS

WRITER = ".writer"  # the id of the mirror that wrote last
WRITERS = ("train", "align", "evaluate")  # verbs whose workdir may be in a bucket
EVERY = 2.0  # seconds between two looks at the folder; a new checkpoint is uploaded at once
LOGS = 30.0  # seconds between two uploads of files that grow
PATIENCE = 300.0  # seconds in which the last upload of a run is tried again
MARKERS = ("dataset.json", "counts.json", "report.json")  # written last in their folders, so uploaded last
DATA = re.compile(r"(data/[^/]+)/.+")
UNREADY = re.compile(r"(^|/)\.|\.new(/|$)|\.orbax-checkpoint-tmp|\.damaged|\.sqlite-")
AT_END = (".sqlite",)  # databases are whole when they are closed


class Mirror:
    """The mirror of a workdir's URL.

    keep_last, keep_every: as of lm.runs.checkpoint.Checkpoints, for checkpoints in the bucket that this folder does not hold.
    lost: called with a line, from a thread, if the run must end because another job has taken its lock.
    Raises: UserError: another job writes the workdir, or the bucket cannot be read or written.
    """

    def __init__(self, url: str, lost: Callable[[str], None], *, keep_last: int = 2, keep_every: int = 0):
        self.url, self.folder = url.rstrip("/"), mirror_of(url)
        self._end, self._keep = lost, (keep_last, keep_every)
        self._record = self.folder.with_name(f"{self.folder.name}@record")
        self._process, self._processes = 0, 1
        self._sent: dict[str, list[int]] = {}  # size and time of each file when it was uploaded or fetched
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        self._owner: Owner | None = None
        self._local = filelock.FileLock(self.folder.with_name(f"{self.folder.name}@lock"), timeout=0)
        self._is_lost = False

    @functools.cached_property
    def _store(self) -> Store:
        return Store(self.url)

    @property
    def is_open(self) -> bool:
        return self._thread is not None

    def open(self) -> str:
        """Lock the workdir, fill the folder, and start to upload. Return the id of the folder, for `join`."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._local.acquire()
        except filelock.Timeout:
            raise UserError(f"{self.url} is in use by another run on this machine: end it, or use another --workdir") from None
        try:
            record = self._read_record()
            self._id = record.get("id") or uuid.uuid4().hex
            self._owner = Owner(self._store, self._id, self._lost)
            self._fill(record)
            self._store.write(WRITER, self._id.encode())
        except BaseException:
            with contextlib.suppress(UserError):
                if self._owner:
                    self._owner.release()
            self._local.release()
            raise
        self._start()
        return self._id

    def join(self, id: str, process: int, processes: int) -> None:
        """On a process other than 0: start to upload this process's share. id: what `open` returned on process 0.

        Raises: UserError if this process does not see the folder of process 0.
        """
        if self._read_record().get("id") != id:
            raise UserError(
                f"{self.url}: process {process} does not see the folder {self.folder} of process 0: set XDG_CACHE_HOME to a "
                "folder that all hosts share"
            )
        self._process, self._processes = process, processes
        listing = self._store.list()
        self._sent = {name: now for name, now in self._files(True).items() if _same_size(listing.get(name), now)}
        self._start()

    def shares(self, processes: int) -> None:
        """On process 0: leave the share of each other process to it."""
        self._processes = processes

    def finish(self) -> str | None:
        """Upload the rest and unlock the workdir. Return a line if something is not in the bucket."""
        self._ending.set()
        if self._is_lost:
            return None
        if self._thread:
            self._thread.join()
        problem, pause, end = None, 1.0, time.monotonic() + PATIENCE
        while True:
            try:
                left = self._upload(self._files(True), at_end=True)
                problem = f"{len(left)} files are not there, such as {left[0]}" if left else None
                if not left:
                    break
            except Refused as error:
                problem = str(error)
                break
            except (UserError, OSError) as error:
                problem = str(error)
            if time.monotonic() + pause > end:
                break
            if pause == 1.0:
                print(f"{self.url}: {problem}; trying for up to {PATIENCE / 60:.0f} minutes", file=sys.stderr, flush=True)
            time.sleep(pause)
            pause = min(2 * pause, 10.0)
        with contextlib.suppress(UserError):
            if self._owner:
                if not self._files(True):  # the run was refused before it wrote anything
                    self._store.remove([WRITER])
                self._owner.release()
        self._local.release()
        if problem:
            return (
                f"{self.url} does not hold all of the run: {problem}; its files are in the cache of this machine, and the same "
                "command uploads them"
            )
        return None

    def _lost(self, line: str) -> None:
        self._is_lost = True
        self._ending.set()
        self._end(line)

    # Filling.

    def _fill(self, record: dict) -> None:
        listing, writer = self._listing(), self._store.read(WRITER)
        if listing and not writer and "config.json" not in listing:
            raise UserError(f"--workdir={self.url} is not empty, and holds no run: name a new folder in the bucket")
        half = [name for name in listing if (place := place_of(name)) and f"{place}/{LAST}" not in listing] if writer else []
        self._store.remove(half)
        listing = {name: entry for name, entry in listing.items() if name not in half}
        if writer == self._id.encode() and set(record["objects"]) <= listing.keys() and self._is_complete(record["sent"]):
            self._sent = {name: then for name, then in record["sent"].items() if name in listing}
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        newest = set(newest_whole(self._store, listing).values())
        wanted = [name for name in listing if _is_wanted(name, listing, newest)]
        if wanted:
            size = sum(listing[name].size for name in wanted)
            print(f"{self.url}: fetching {len(wanted)} files, {size / 1e6:,.1f} MB, to {str(self.folder)!r}", flush=True)
        self._store.fetch({name: self.folder / name for name in wanted})
        self._sent = {name: now for name, now in self._files(True).items() if name in wanted}
        self._write_record(listing)

    def _is_complete(self, sent: Iterable[str]) -> bool:
        """Return whether the folder has all files that were sent, but for checkpoints that the run has deleted as a whole."""
        files = self._files(True)
        gone = [name for name in sent if name not in files]
        return self.folder.is_dir() and all((place := place_of(name)) and not (self.folder / place).exists() for name in gone)

    # Uploading.

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._watch, name="uploads to the bucket", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        pause, since, told = EVERY, time.monotonic() - LOGS, False
        while not self._ending.wait(pause):
            try:
                files = self._files(False)
                new_step = any(makes_whole(name) and self._sent.get(name) != now for name, now in files.items())
                if new_step or time.monotonic() - since > LOGS:
                    self._upload(files)
                    since = time.monotonic()
                pause = EVERY
                if told:
                    print(f"{self.url}: uploads go on", file=sys.stderr, flush=True)
                    told = False
            except (UserError, OSError) as error:  # the run goes on, and `finish` tells if it stays so
                pause = min(2 * pause, 300.0)
                if not told:
                    print(f"{error}; the run goes on, and uploads are tried again", file=sys.stderr, flush=True)
                    told = True

    def _upload(self, files: dict[str, list[int]], *, at_end: bool = False) -> list[str]:
        """Upload what has changed, then remove what is gone. Return the files that are not in the bucket yet.

        files: the current result of `_files`.
        """
        changed = [name for name, now in files.items() if self._sent.get(name) != now and self._is_mine(name)]
        last = [name for name in changed if makes_whole(name)]
        for _, group in itertools.groupby(sorted(set(changed).difference(last), key=_order), _order):
            names = list(group)
            self._store.put(names, self.folder)
            self._sent |= {name: files[name] for name in names}
        if self._process or not (changed or at_end or self._sent.keys() - files.keys()):
            return []
        listing = self._listing()
        for place in sorted(set(map(place_of, last)), key=number, reverse=True):
            self._make_whole(place, listing, files)
        left = [name for name, now in files.items() if not _same_size(listing.get(name), now)]
        for name in left:  # what was sent has not arrived as it was
            self._sent.pop(name, None)
        if not any(map(place_of, left)):  # old checkpoints stay until the new ones are whole
            self._remove(listing, files)
        self._write_record(listing)
        return left

    def _make_whole(self, place: str, listing: dict[str, Entry], files: dict[str, list[int]]) -> None:
        """Upload the last objects of a step if all others are there, of all processes; otherwise another time."""
        sums = [f"{place}/{item}/{SUMS}" for item in ITEMS]
        with contextlib.suppress(FileNotFoundError):  # the run has deleted it
            if all(there_are(listing, name, (self.folder / name).read_bytes()) for name in sums):
                for names in (sums, [f"{place}/{LAST}"]):
                    self._store.put(names, self.folder)
                    self._sent |= {name: files[name] for name in names if name in files}
                    listing |= {name: Entry(files[name][0], "") for name in names if name in files}

    def _remove(self, listing: dict[str, Entry], files: dict[str, list[int]]) -> None:
        """Remove from the bucket what the run has deleted here, and old checkpoints that are only there."""
        if not (self.folder / "config.json").is_file():  # someone has emptied the folder
            return
        deleted = {name for name in self._sent if name not in files and not name.endswith(AT_END)}
        here = set(map(place_of, files))
        old = set(map(place_of, deleted)) - here - {None}
        (keep_last, keep_every), healthy = self._keep, None
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):  # none yet, or damaged
            healthy = json.loads((self.folder / HEALTHY).read_text())["step"]
        for steps in places(listing).values():
            for place in steps[keep_last:]:
                stays = number(place) == healthy or (keep_every and number(place) % keep_every == 0)
                if not stays and place not in here and f"{place}/state/{SUMS}" in listing:
                    old.add(place)
        gone = [name for name in listing if name in deleted or place_of(name) in old]
        self._sent = {name: then for name, then in self._sent.items() if name not in deleted}
        for name in gone:
            del listing[name]
        self._write_record(listing)
        self._store.remove(sorted(gone, key=lambda name: (not name.endswith(LAST), name)))

    def _files(self, at_end: bool) -> dict[str, list[int]]:
        """Return {name: [bytes, modified]} of the files that are complete."""
        found = {}
        for place, folders, names in os.walk(self.folder):
            inside = os.path.relpath(place, self.folder)
            folders[:] = [name for name in folders if not UNREADY.search(name)]
            for name in names:
                path = Path(place, name)
                if UNREADY.search(name) or path.is_symlink() or (name.endswith(AT_END) and not at_end):
                    continue
                with contextlib.suppress(FileNotFoundError):
                    about = path.stat()
                    found[name if inside == "." else f"{inside}/{name}"] = [about.st_size, about.st_mtime_ns]
        return found

    def _is_mine(self, name: str) -> bool:
        match = re.search(r"/ocdbt\.process_(\d+)/", name)
        writer = int(match[1]) if match and int(match[1]) < self._processes else 0
        return writer == self._process

    def _listing(self) -> dict[str, Entry]:
        return {name: entry for name, entry in self._store.list().items() if name not in (LOCK, WRITER)}

    def _read_record(self) -> dict:
        try:
            return json.loads(self._record.read_text())
        except (OSError, ValueError):
            return {}

    def _write_record(self, listing: dict[str, Entry]) -> None:
        saving.write(self._record, json.dumps({"id": self._id, "objects": sorted(listing), "sent": self._sent}))


def _is_wanted(name: str, listing: dict[str, Entry], newest: set[str]) -> bool:
    """Return whether an object is fetched: not old checkpoints, TensorBoard's events and datasets that are not whole."""
    if place := place_of(name):
        return place in newest
    if data := DATA.fullmatch(name):
        return any(f"{data[1]}/{marker}" in listing for marker in MARKERS)
    return not name.startswith("tensorboard/")


def _same_size(entry: Entry | None, now: list[int]) -> bool:
    return entry is not None and entry.size == now[0]


def _order(name: str) -> tuple:
    """Sort logs and other files first, then checkpoints, the newest first, because the run deletes old ones."""
    place = place_of(name)
    return (1, -number(place), place) if place else (0, name.rpartition("/")[2] in MARKERS, "")


_mirror: Mirror | None = None  # of this process's workdir


def workdir_of(path: str, config: Any, verb: str, lost: Callable[[str], None]) -> Path:
    """Return the folder of a workdir: the path itself, or the mirror of a URL, which `open_planned` opens.

    lost: called with a line if another job has taken the workdir over.
    Raises: UserError if this verb cannot write into a bucket.
    """
    global _mirror
    if not is_url(path):
        return Path(path)
    if verb not in WRITERS:
        raise UserError(f"--workdir={path}: only {', '.join(WRITERS)} write into a bucket; name a local folder")
    keep = {name: config[name] for name in ("keep_last", "keep_every") if name in config}
    if config.get("keep_hours") or config.get("keep_best"):
        keep["keep_every"] = 1  # only the run knows which it keeps, so the mirror removes nothing that it did not fetch
    _mirror = Mirror(path, lost, **keep)
    return _mirror.folder


def open_planned() -> str | None:
    """Open the mirror of the workdir, if it is in a bucket, in a job of one process or on process 0. Return its id."""
    return _mirror.open() if _mirror else None


def share(id: str | None, process: int, processes: int) -> None:
    """Give each process of a job its share of the uploads. id: what `open_planned` returned on process 0."""
    if id is not None and process == 0:
        _mirror.shares(processes)
    elif id is not None:
        _mirror.join(id, process, processes)


def finish() -> str | None:
    """Finish the mirror if one is open. Return a line if the bucket does not hold all of it."""
    global _mirror
    mirror, _mirror = _mirror, None
    return mirror.finish() if mirror and mirror.is_open else None
