"""The workdir of a run in a bucket: a folder of this machine, filled when the run starts, whose files are uploaded meanwhile.

The run works in the folder as in any other workdir, with all that a file system can do and a bucket cannot: append, rename,
lock. A thread uploads what is complete: first logs, datasets and other files, then the files of each checkpoint, its checksums
last. So the bucket never holds a checkpoint that looks whole and is not, nor one that is ahead of its log. What the run deletes
is deleted in the bucket after that.

Another machine that runs the same command fetches the newest whole checkpoint of each folder, and all other files except
tensorboard/. The machine that wrote last keeps its folder, which may be ahead of the bucket.

On several hosts the folder must be on a file system that all of them share. Each process uploads the files of checkpoints that
it wrote, process 0 everything else.
"""

import contextlib
import json
import os
import re
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import filelock

from lm import saving
from lm.bucket.owner import LOCK, Owner
from lm.bucket.places import mirror_of
from lm.bucket.steps import is_last, is_whole, newest_whole, step_of, steps_in, there_are
from lm.bucket.store import Entry, Refused, Store
from lm.checksums import NAME as SUMS
from lm.errors import UserError

WRITER = ".writer"  # the id of the mirror that wrote last
EVERY = 2.0  # seconds between two looks at the folder; a new checkpoint is uploaded at once
LOGS = 30.0  # seconds between two uploads of files that grow
PATIENCE = 300.0  # seconds in which the last upload of a run is tried again
MARKERS = ("dataset.json", "counts.json", "report.json")  # written last in their folders, so uploaded last
DATA = re.compile(r"(data/[^/]+)/.+")
UNREADY = re.compile(r"(^|/)\.|\.new(/|$)|\.orbax-checkpoint-tmp|\.damaged|\.sqlite-")
AT_END = (".sqlite",)  # databases are whole when they are closed


class Mirror:
    """The mirror of a workdir's URL.

    keep_last, keep_every: as of lm.checkpoint.Checkpoints, for checkpoints in the bucket that this folder does not hold.
    lost: called with a line, from a thread, if the run must end because another job has taken its lock.
    Raises: UserError: another job writes the workdir, or the bucket cannot be read or written.
    """

    def __init__(self, url: str, lost: Callable[[str], None], *, keep_last: int = 2, keep_every: int = 0):
        self.url, self.folder = url.rstrip("/"), mirror_of(url)
        self._store, self._end, self._keep = Store(self.url), lost, (keep_last, keep_every)
        self._record = self.folder.with_name(f"{self.folder.name}.json")
        self._process, self._processes = 0, 1
        self._sent: dict[str, list[int]] = {}  # size and time of each file when it was uploaded or fetched
        self._elsewhere: set[str] = set()  # objects of the bucket that were not fetched, and stay there
        self._told = ""
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        self._owner: Owner | None = None
        self._is_lost = False

    def open(self) -> str:
        """Lock the workdir, fill the folder, and start to upload. Return the id of the folder, for `join`."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self._local = filelock.FileLock(self.folder.with_name(f"{self.folder.name}.lock"), timeout=0)
        try:
            self._local.acquire()
        except filelock.Timeout:
            raise UserError(
                f"{self.url} is in use by another run on this machine: wait for it, or use another --workdir"
            ) from None
        record = self._read_record()
        self._id = record.get("id") or uuid.uuid4().hex
        self._owner = Owner(self._store, self._id, self._lost)
        try:
            self._fill(record)
            self._store.write(WRITER, self._id.encode())
        except BaseException:
            with contextlib.suppress(UserError):
                self._owner.release()
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
            except UserError as error:
                problem = str(error)
            if time.monotonic() + pause > end:
                break
            time.sleep(pause)
            pause = min(2 * pause, 60.0)
        with contextlib.suppress(UserError):
            if self._owner:
                self._owner.release()
        if problem:
            return (
                f"{self.url} does not hold all of the run: {problem}; the files are in {str(self.folder)!r}, and the same command "
                "on this machine uploads them"
            )
        return None

    def _lost(self, line: str) -> None:
        self._is_lost = True
        self._ending.set()
        self._end(line)

    # Filling.

    def _fill(self, record: dict) -> None:
        listing = self._listing()
        known = record.get("objects") or []
        if self.folder.is_dir() and self._store.read(WRITER) == self._id.encode() and set(known) <= listing.keys():
            self._sent = record.get("sent") or {}
            self._elsewhere = set(record.get("elsewhere") or ()) & listing.keys()
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        newest = newest_whole(self._store, listing)
        half = [
            name
            for name in listing
            if (step := step_of(name)) and step[1] != newest.get(step[0]) and not self._whole(listing, step)
        ]
        half += [name for name in listing if (data := DATA.fullmatch(name)) and not _is_dataset(listing, data[1])]
        self._store.remove(sorted(half, key=is_last, reverse=True))
        kept = [name for name in listing if name not in half]
        wanted = [name for name in kept if not name.startswith("tensorboard/") and _wants(name, newest)]
        self._elsewhere = set(kept) - set(wanted)
        if wanted:
            size = sum(listing[name].size for name in wanted)
            print(f"{self.url}: fetching {len(wanted)} files, {size / 1e6:,.1f} MB, to {str(self.folder)!r}", flush=True)
        self._store.fetch(wanted, self.folder)
        self._sent = {name: now for name, now in self._files(True).items() if name in wanted}
        self._write_record({name: listing[name] for name in kept})

    def _whole(self, listing: dict[str, Entry], step: tuple[str, int]) -> bool:
        if step not in self._checked:
            self._checked[step] = is_whole(self._store, listing, f"{step[0]}/{step[1]}")
        return self._checked[step]

    # Uploading.

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._watch, name="uploads to the bucket", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        pause, since = EVERY, time.monotonic() - LOGS
        while not self._ending.wait(pause):
            try:
                files = self._files(False)
                new_step = any(is_last(name) and self._sent.get(name) != now for name, now in files.items())
                if new_step or time.monotonic() - since > LOGS:
                    self._upload(files)
                    since = time.monotonic()
                pause = EVERY
                if self._told:
                    self._told = print(f"{self.url}: uploads go on", file=sys.stderr, flush=True) or ""
            except UserError as error:  # the run goes on, and `finish` tells if it stays so
                pause = min(2 * pause, 300.0)
                if not self._told:
                    self._told = f"{error}; the run goes on, and uploads are tried again"
                    print(self._told, file=sys.stderr, flush=True)

    def _upload(self, files: dict[str, list[int]], *, at_end: bool = False) -> list[str]:
        """Upload what has changed, then remove what is gone. Return the files that are not in the bucket yet.

        files: the current result of `_files`.
        """
        changed = [name for name, now in files.items() if self._sent.get(name) != now and self._is_mine(name)]
        gone = [name for name in self._sent if name not in files and not name.endswith(AT_END)]
        if not changed and not gone and not at_end:
            return []
        last = [name for name in changed if is_last(name)]
        first = sorted((name for name in changed if name not in last), key=_order)
        for group in _grouped(first):
            self._store.put(group, self.folder)
            self._sent |= {name: files[name] for name in group}
        if self._process:
            return []
        listing = self._listing() if last or gone or changed or at_end else {}
        for name in sorted(last, key=_order):  # a step becomes whole, once all processes have uploaded their files
            folder = name.rpartition("/")[0]
            with contextlib.suppress(FileNotFoundError):
                if there_are(listing, folder, (self.folder / name).read_bytes()):
                    self._store.put([name], self.folder)
                    self._sent[name] = files[name]
                    listing[name] = Entry(files[name][0], "")
        left = [name for name, now in files.items() if not _same_size(listing.get(name), now)]
        if not left or not any(map(step_of, left)):
            self._remove(listing, files)
        self._write_record(listing)
        return left

    def _remove(self, listing: dict[str, Entry], files: dict[str, list[int]]) -> None:
        """Remove from the bucket what the run has deleted, and old checkpoints that are only there."""
        if not (self.folder / "config.json").is_file():  # someone has emptied the folder
            return
        keep_last, keep_every = self._keep
        stay = {
            (folder, step)
            for folder, steps in steps_in(listing).items()
            for n, step in enumerate(reversed(steps))
            if n < keep_last or (keep_every and step % keep_every == 0)
        }
        self._elsewhere -= {name for name in self._elsewhere if (step := step_of(name)) and step not in stay}
        gone = [name for name in listing if name not in files and name not in self._elsewhere and not name.endswith(AT_END)]
        for name in gone:
            self._sent.pop(name, None)
            listing.pop(name)
        self._write_record(listing)
        self._store.remove(sorted(gone, key=is_last, reverse=True))

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
        self._checked: dict[tuple[str, int], bool] = {}
        return {name: entry for name, entry in self._store.list().items() if name not in (LOCK, WRITER)}

    def _read_record(self) -> dict:
        try:
            return json.loads(self._record.read_text())
        except (OSError, ValueError):
            return {}

    def _write_record(self, listing: dict[str, Entry]) -> None:
        about = {"id": self._id, "objects": sorted(listing), "sent": self._sent, "elsewhere": sorted(self._elsewhere)}
        saving.write(self._record, json.dumps(about))


def _wants(name: str, newest: dict[str, int]) -> bool:
    step = step_of(name)
    return step is None or newest.get(step[0]) == step[1]


def _is_dataset(listing: dict[str, Entry], folder: str) -> bool:
    return any(f"{folder}/{marker}" in listing for marker in MARKERS)


def _same_size(entry: Entry | None, now: list[int]) -> bool:
    return entry is not None and entry.size == now[0]


def _order(name: str) -> tuple:
    """Sort logs and other files first, then checkpoints, the newest first, because the run deletes old ones."""
    step = step_of(name)
    return (1, step[0], -step[1]) if step else (0, name.rpartition("/")[2] in MARKERS, "")


def _grouped(names: list[str]) -> list[list[str]]:
    """Return runs of names of one `_order`, in which it does not matter what is uploaded first."""
    groups: list[list[str]] = []
    for name in names:
        if groups and _order(groups[-1][0]) == _order(name):
            groups[-1].append(name)
        else:
            groups.append([name])
    return groups


# The one workdir of this process.

_planned: tuple[str, Callable[[str], None], dict[str, int]] | None = None
_open: Mirror | None = None


def plan(url: str, lost: Callable[[str], None], **keep: int) -> Path:
    """Note the workdir that `open_planned` opens. Return its folder."""
    global _planned
    _planned = (url, lost, keep)
    return mirror_of(url)


def open_planned() -> str | None:
    """Open the mirror of the workdir, if it is in a bucket, in a job of one process or on process 0. Return its id."""
    global _open
    if _planned is None:
        return None
    url, lost, keep = _planned
    mirror = Mirror(url, lost, **keep)
    id = mirror.open()
    _open = mirror
    return id


def share(id: str | None, process: int, processes: int) -> None:
    """Give each process of a job its share of the uploads. id: what `open_planned` returned on process 0."""
    global _open
    if id is None:
        return
    if process == 0:
        _open.shares(processes)
        return
    url, lost, _ = _planned
    mirror = Mirror(url, lost)
    mirror.join(id, process, processes)
    _open = mirror


def finish() -> str | None:
    """Finish the mirror if one is open. Return a line if the bucket does not hold all of it."""
    global _open
    mirror, _open = _open, None
    return mirror.finish() if mirror else None
