"""The workdir of a run in a bucket: a folder of this machine, filled when the run starts, whose files are uploaded meanwhile.

The run works in the folder as in any other workdir, with all that a file system can do and a bucket cannot: append, rename,
lock. A thread uploads what is complete: first logs, datasets and other files, then checkpoints (lm/bucket/steps.py). So the
bucket never holds a checkpoint that looks whole and is not, nor one that is ahead of its log. What the run deletes is deleted
in the bucket after that.

Another machine that runs the same command fetches the newest whole checkpoint of each folder, and all other files except
tensorboard/. The machine that wrote last keeps its folder, which may be ahead of the bucket. On several hosts the folder must
be on a file system that all of them share, and process 0 uploads it.
"""

import contextlib
import itertools
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
from typing import Any

import filelock

from lm.bucket.owner import LOCK, Owner
from lm.bucket.places import mirror_of
from lm.bucket.steps import HEALTHY, LAST, newest_whole, number, place_of, places
from lm.bucket.store import Entry, Refused, Store, is_url
from lm.errors import UserError
from lm.files import checksums, saving

WRITER = ".writer"  # the id of the mirror that wrote last
WRITERS = ("train", "align", "evaluate")  # verbs whose workdir may be in a bucket
EVERY = 2.0  # seconds between two looks at the folder; a new checkpoint is uploaded at once
LOGS = 30.0  # seconds between two uploads of files that grow
PATIENCE, PAUSE = 300.0, 2.0  # seconds in which the last upload of a run is tried again; seconds between two tries
MARKERS = ("dataset.json", "counts.json", "report.json")  # written last in their folders, so uploaded last
DATA = re.compile(r"(data/[^/]+)/.+")
UNREADY = re.compile(r"(^|/)\.|\.new(/|$)|\.orbax-checkpoint-tmp|\.damaged|\.sqlite-")
AT_END = (".sqlite",)  # databases are whole when they are closed

Files = dict[str, list[int]]  # {name: [bytes, modified]}


class Mirror:
    """The mirror of a workdir's URL.

    keep_last, keep_every: as of lm.runs.checkpoint.Checkpoints, for checkpoints in the bucket that this folder does not hold.
    lost: called with a line, from a thread, if the run must end because another job has taken its lock.
    """

    def __init__(self, url: str, lost: Callable[[str], None], *, keep_last: int = 2, keep_every: int = 0):
        self.url, self.folder = url.rstrip("/"), mirror_of(url)
        self._end, self._keep = lost, (keep_last, keep_every)
        self._record = self.folder.with_name(f"{self.folder.name}@record")  # {"id", "sent"}
        self._local = filelock.FileLock(self.folder.with_name(f"{self.folder.name}@lock"), timeout=0)
        self._sent: Files = {}  # as they were when they were uploaded or fetched
        self._ending, self._is_lost = threading.Event(), False
        self._owner: Owner | None = None

    def id(self) -> str | None:
        """Return the id that the last job has written beside the folder."""
        return self._read_record().get("id")

    def open(self) -> str:
        """Lock the workdir, fill the folder, and start to upload. Return the id of the folder.

        Raises: UserError: another job writes the workdir, or the bucket cannot be read or written.
        """
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._local.acquire()
        except filelock.Timeout:
            raise UserError(f"{self.url} is in use by another run on this machine: end it, or use another --workdir") from None
        try:
            self._store, self._id = Store(self.url), self.id() or uuid.uuid4().hex
            self._owner = Owner(self._store, self._id, self._lost)
            self._fill()
            self._store.write(WRITER, self._id.encode())
        except BaseException:
            self._release()
            raise
        self._thread = threading.Thread(target=self._watch, name="uploads to the bucket", daemon=True)
        self._thread.start()
        return self._id

    def finish(self) -> str | None:
        """Upload the rest and unlock the workdir. Return a line if something is not in the bucket. Not open: do nothing."""
        self._ending.set()
        if self._owner is None or self._is_lost:
            return None
        self._thread.join()
        end, problem = time.monotonic() + PATIENCE, None
        while True:
            try:
                self._upload(self._files(True), at_end=True)
                problem = None
                break
            except (UserError, OSError) as error:
                if problem is None:
                    print(f"{error}; trying for up to {PATIENCE / 60:.0f} minutes", file=sys.stderr, flush=True)
                problem = str(error)
                if isinstance(error, Refused) or time.monotonic() > end:
                    break
            time.sleep(PAUSE)
        if not self._files(True):  # the run was refused before it wrote anything
            with contextlib.suppress(UserError):
                self._store.remove([WRITER])
        self._release()
        return problem and (
            f"{self.url} does not hold all of the run: {problem}; its files are in the cache of this machine, and the same "
            "command uploads them"
        )

    def _release(self) -> None:
        with contextlib.suppress(UserError):
            if self._owner:
                self._owner.release()
        self._owner = None
        self._local.release()

    def _lost(self, line: str) -> None:
        self._is_lost = True
        self._ending.set()
        self._end(line)

    def _fill(self) -> None:
        listing, writer = self._listing(), self._store.read(WRITER)
        if listing and not writer and "config.json" not in listing:
            raise UserError(f"--workdir={self.url} is not empty, and holds no run: name a new folder in the bucket")
        sent = self._read_record().get("sent", {})
        if writer == self._id.encode() and self.folder.is_dir() and sent.keys() <= listing.keys():
            files = self._files(True)
            lost = [name for name in sent if name not in files]  # beside checkpoints that the run has deleted
            if all((place := place_of(name)) and not (self.folder / place).exists() for name in lost):
                self._sent = sent
                return
        if writer:  # remove what an upload that was cut off has left of a checkpoint
            half = [name for name in listing if (place := place_of(name)) and f"{place}/{LAST}" not in listing]
            self._store.remove(half)
            listing = {name: entry for name, entry in listing.items() if name not in half}
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        newest = set(newest_whole(self._store, listing).values())
        wanted = [name for name in listing if _is_wanted(name, listing, newest)]
        if wanted:
            size = sum(listing[name].size for name in wanted)
            print(f"{self.url}: fetching {len(wanted)} files, {size / 1e6:,.1f} MB, to {str(self.folder)!r}", flush=True)
            self._store.fetch({name: self.folder / name for name in wanted})
        self._sent = {name: now for name, now in self._files(True).items() if name in wanted}
        self._write_record()

    def _watch(self) -> None:
        pause, since, has_failed = EVERY, time.monotonic() - LOGS, False
        while not self._ending.wait(pause):
            try:
                files = self._files(False)
                new_step = any(name.endswith(LAST) and self._sent.get(name) != now for name, now in files.items())
                if new_step or time.monotonic() - since > LOGS:
                    self._upload(files)
                    since = time.monotonic()
                if has_failed:
                    print(f"{self.url}: uploads go on", file=sys.stderr, flush=True)
                pause, has_failed = EVERY, False
            except (UserError, OSError) as error:  # the run goes on, and `finish` tells if it stays so
                pause = min(2 * pause, 300.0)
                if not has_failed:
                    print(f"{error}; the run goes on, and uploads are tried again", file=sys.stderr, flush=True)
                has_failed = True

    def _upload(self, files: Files, *, at_end: bool = False) -> None:
        """Upload what has changed, then remove what is gone. files: the current result of `_files`.

        Raises: UserError, also if a file has another size in the bucket.
        """
        changed = [name for name, now in files.items() if self._sent.get(name) != now]
        if not (changed or at_end or self._sent.keys() - files.keys()):
            return
        for _, group in itertools.groupby(sorted(changed, key=_order), _order):
            names = list(group)
            self._store.put(names, self.folder)
            self._sent |= {name: files[name] for name in names}
        listing = self._listing()
        left = [name for name, now in files.items() if name not in listing or listing[name].size != now[0]]
        if not any(map(place_of, left)):  # old checkpoints stay until the new ones are whole
            self._remove(listing, files)
        for name in left:
            self._sent.pop(name, None)
        self._write_record()
        if left and at_end:
            raise UserError(f"{self.url}: {len(left)} files are not there, such as {left[0]}")

    def _remove(self, listing: dict[str, Entry], files: Files) -> None:
        """Remove from the bucket what the run has deleted here, and old checkpoints that are only there."""
        if not (self.folder / "config.json").is_file():  # someone has emptied the folder
            return
        deleted = {name for name in self._sent if name not in files and not name.endswith(AT_END)}
        here = set(map(place_of, files))
        old = set(map(place_of, deleted)) - here - {None}
        (keep_last, keep_every), healthy = self._keep, None
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):  # none yet, or damaged
            healthy = json.loads((self.folder / HEALTHY).read_text())["step"]
        for place in (place for steps in places(listing).values() for place in steps[keep_last:]):
            stays = place in here or number(place) == healthy or (keep_every and number(place) % keep_every == 0)
            if not stays and f"{place}/state/{checksums.NAME}" in listing:
                old.add(place)
        for name in deleted:
            del self._sent[name]
        self._write_record()
        gone = [name for name in listing if name in deleted or place_of(name) in old]
        self._store.remove(sorted(gone, key=lambda name: (not name.endswith(LAST), name)))

    def _files(self, at_end: bool) -> Files:
        """Return the files that are complete."""
        files = {}
        for place, folders, names in os.walk(self.folder):
            folders[:] = [name for name in folders if not UNREADY.search(name)]
            for path in (Path(place, name) for name in names if not UNREADY.search(name)):
                if not path.is_symlink() and (at_end or not path.name.endswith(AT_END)):
                    with contextlib.suppress(FileNotFoundError):
                        about = path.stat()
                        files[path.relative_to(self.folder).as_posix()] = [about.st_size, about.st_mtime_ns]
        return files

    def _listing(self) -> dict[str, Entry]:
        return {name: entry for name, entry in self._store.list().items() if name not in (LOCK, WRITER)}

    def _read_record(self) -> dict:
        try:
            return json.loads(self._record.read_text())
        except (OSError, ValueError):
            return {}

    def _write_record(self) -> None:
        saving.write(self._record, json.dumps({"id": self._id, "sent": self._sent}))


def _is_wanted(name: str, listing: dict[str, Entry], newest: set[str]) -> bool:
    """Return whether an object is fetched: not old checkpoints, TensorBoard's events and datasets that are not whole."""
    if place := place_of(name):
        return place in newest
    if data := DATA.fullmatch(name):
        return any(f"{data[1]}/{marker}" in listing for marker in MARKERS)
    return not name.startswith("tensorboard/")


def _order(name: str) -> tuple:
    """Sort logs and other files first, then checkpoints, the newest first, because the run deletes old ones."""
    place, last = place_of(name), name.rpartition("/")[2]
    rank = (checksums.NAME, LAST).index(last) + 1 if last in (checksums.NAME, LAST) else 0
    return (1, -number(place), place, rank) if place else (0, last in MARKERS)


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


def check_shared(id: str | None, process: int) -> None:
    """Raise UserError if this process does not see the mirror that process 0 has opened. id: what `open_planned` returned."""
    if id is not None and _mirror.id() != id:
        raise UserError(
            f"{_mirror.url}: process {process} does not see the folder {_mirror.folder} of process 0: set XDG_CACHE_HOME to a "
            "folder that all hosts share"
        )


def finish() -> str | None:
    """Finish the mirror if one is open. Return a line if the bucket does not hold all of it."""
    global _mirror
    mirror, _mirror = _mirror, None
    return mirror.finish() if mirror else None
