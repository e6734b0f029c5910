"""The store: a folder of sealed files (lm/personal/key.py), and a sealed manifest that names those that count.

    HOME/key.json        the key, encrypted (lm/personal/key.py)
    HOME/manifest        the ids of all items by segment, the blobs, and settings
    HOME/HEX.sealed      a segment: some items; or a blob: vectors, an adapter, the state of a training
    HOME/.lock           empty; locked while a process reads or writes

A change writes its new files, syncs them, and then replaces the manifest, whose name is the only one that is used twice: before
that instant the old state is whole, after it the new one. Files that the manifest does not name are removed by the next change.
A change is on the disk when its method returns. Processes take turns, each for one call.
"""

import contextlib
import fcntl
import json
import os
import re
import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from data.text.near_copies import batched
from lm.errors import UserError
from lm.files import saving
from lm.personal import key as keys
from lm.personal.items import Item, from_line, to_line
from lm.personal.key import Unreadable, seal, unseal

MANIFEST, LOCK = "manifest", ".lock"
SEGMENT, SMALL = 4 << 20, 1 << 20  # bytes of a full segment; below SMALL it may be joined with others
MANY = 24  # small segments that are joined
OURS = re.compile(r"[0-9a-f]{32}\.sealed|\.?([0-9a-f]{32}\.sealed|manifest|key\.json)(\.\d+)?\.new")
LEFT_OVER = re.compile(r"manifest|\.lock|.*\.new")  # of a store whose making was killed: it has a manifest and no segments
VECTORS = "vectors "  # a blob of this name and a segment's file belongs to that segment
Manifest = dict[str, Any]


class Gone(Exception):
    """A result was made from an item that has been forgotten since."""


class Store:
    """An open store. home: its folder. Each method is one transaction; other processes may change the store between two."""

    def __init__(self, home: Path, key: bytes):
        self.home, self._key = home, key
        with _locked(self.home):
            self._manifest()  # raises UserError if the store cannot be read

    @property
    def settings(self) -> dict[str, Any]:
        return self._now()["settings"]

    @property
    def secret(self) -> bytes:
        """Return 32 random bytes that were made with the store, from which the noise of trainings is derived."""
        return bytes.fromhex(self._now()["secret"])

    def ids(self) -> list[str]:
        """Return the ids of all items, in the order in which they were added."""
        return [name for segment in self._now()["segments"] for name in segment["items"]]

    def items(self) -> list[Item]:
        """Return all items, in the order in which they were added."""
        with _locked(self.home):
            return [item for segment in self._manifest()["segments"] for item in self._segment(segment)]

    def segments(self) -> list[tuple[str, list[Item]]]:
        """Return the segments, each with its file and its items, in the order of `items`."""
        with _locked(self.home):
            return [(segment["file"], self._segment(segment)) for segment in self._manifest()["segments"]]

    def add(self, items: Iterable[Item]) -> list[Item]:
        """Store items, all or none. Return those that were not there."""
        with self._changing() as manifest:
            known = _ids(manifest)
            new = []
            for item in items:
                if item.id not in known:
                    known.add(item.id)
                    new.append(item)
            small = [segment for segment in manifest["segments"] if segment["bytes"] < SMALL]
            joined = small if new and len(small) >= MANY else []
            kept = [segment for segment in manifest["segments"] if segment not in joined]
            old = [item for segment in joined for item in self._segment(segment)]
            parts = batched([*old, *new], lambda item: len(item.shown), SEGMENT)
            manifest["segments"] = kept + [self._written(part) for part in parts]
            return new

    def forget(self, ids: Collection[str]) -> bool:
        """Remove items from their segments, and with them every blob that was made from one of them, such as vectors.

        Returns: whether an adapter or the state of a training went with them.
        Raises: UserError if an id is not there; then nothing is removed.
        """
        gone = set(ids)
        with self._changing() as manifest:
            if missing := sorted(gone - _ids(manifest)):
                raise UserError(f"no item {missing[0]}: list shows the ids")
            segments = []
            for segment in manifest["segments"]:
                if gone.isdisjoint(segment["items"]):
                    segments.append(segment)
                elif left := [item for item in self._segment(segment) if item.id not in gone]:
                    segments.append(self._written(left))
            stale = [name for name, blob in manifest["blobs"].items() if not gone.isdisjoint(blob["items"])]
            manifest["segments"] = segments
            manifest["blobs"] = {name: blob for name, blob in manifest["blobs"].items() if name not in stale}
            return any(name in stale for name in ("adapter", "training"))

    def blob(self, name: str) -> tuple[bytes, dict[str, Any]] | None:
        """Return the bytes of a blob and what was said of it, or None."""
        with _locked(self.home):
            found = self._manifest()["blobs"].get(name)
            return found and (self._read(found["file"], f"blob {name}"), found["about"])

    def about(self, name: str) -> dict[str, Any] | None:
        found = self._now()["blobs"].get(name)
        return found and found["about"]

    def put(self, name: str, content: bytes, items: Collection[str], about: Mapping[str, Any], without: str = "") -> None:
        """Store a blob in place of the one of that name. items: from which it was made. without: a blob to remove.

        Raises: Gone if one of the items has been forgotten.
        """
        with self._changing() as manifest:
            files = [segment["file"] for segment in manifest["segments"]]
            if not set(items) <= _ids(manifest) or (name.startswith(VECTORS) and name.removeprefix(VECTORS) not in files):
                raise Gone(name)
            made = {"file": self._file(content, f"blob {name}"), "items": sorted(items), "about": dict(about)}
            manifest["blobs"] = {key: blob for key, blob in manifest["blobs"].items() if key != without} | {name: made}

    def set(self, **settings: Any) -> None:
        with self._changing() as manifest:
            manifest["settings"].update(settings)

    def count(self, name: str, about: Any) -> None:
        """Append to a list of settings."""
        with self._changing() as manifest:
            manifest["settings"].setdefault(name, []).append(about)

    def bytes(self) -> int:
        return sum(file.stat().st_size for file in self.home.iterdir() if file.is_file())

    def _now(self) -> Manifest:
        with _locked(self.home):
            return self._manifest()

    @contextlib.contextmanager
    def _changing(self) -> Iterator[Manifest]:
        """Yield the manifest for a block that may write files, and make its changes last unless the block raises an error."""
        with _locked(self.home):
            manifest = self._manifest()
            before = json.dumps(manifest)
            yield manifest
            there = {f"{VECTORS}{segment['file']}" for segment in manifest["segments"]}
            blobs = manifest["blobs"].items()
            manifest["blobs"] = {name: blob for name, blob in blobs if not name.startswith(VECTORS) or name in there}
            if json.dumps(manifest) != before:
                saving.sync(self.home)
                write_manifest(self.home, self._key, manifest)
            named = {segment["file"] for segment in manifest["segments"]}
            named |= {blob["file"] for blob in manifest["blobs"].values()}
            for file in _files(self.home):
                if file.name not in named:
                    file.unlink()

    def _manifest(self) -> Manifest:
        return json.loads(self._read(MANIFEST, MANIFEST))

    def _segment(self, segment: Mapping[str, Any]) -> list[Item]:
        return [from_line(json.loads(line)) for line in self._read(segment["file"], "segment").decode().splitlines()]

    def _written(self, items: list[Item]) -> dict[str, Any]:
        """Write a segment, and return its entry of the manifest."""
        content = "".join(json.dumps(to_line(item)) + "\n" for item in items).encode()
        return {"file": self._file(content, "segment"), "items": [item.id for item in items], "bytes": len(content)}

    def _file(self, content: bytes, purpose: str) -> str:
        name = secrets.token_hex(16) + ".sealed"
        saving.write(self.home / name, seal(self._key, f"{purpose} {name}", content))
        return name

    def _read(self, name: str, purpose: str) -> bytes:
        """Return the content of a file; its name is part of its purpose, so that no two can be exchanged."""
        try:
            return unseal(self._key, purpose if name == MANIFEST else f"{purpose} {name}", (self.home / name).read_bytes())
        except (Unreadable, OSError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise UserError(f"{self.home / name}: {reason}; put the folder back from a copy of it") from None


def open_store(home: Path, passphrase_file: str = "", *, create: bool = False, in_keyring: bool = False) -> Store:
    """Return the store in a folder. create: make it if the folder is empty or missing; in_keyring: with its key in the keyring.

    Raises: UserError if there is none, or its key is wrong.
    """
    if not (home / keys.FILE).exists() and create:
        if home.exists() and (not home.is_dir() or any(not LEFT_OVER.fullmatch(file.name) for file in home.iterdir())):
            lost = home.is_dir() and any(OURS.fullmatch(file.name) for file in home.iterdir())
            cure = f"{keys.FILE} is missing: put it back" if lost else "no store: name a new folder, which only the store uses"
            raise UserError(f"{home}: {cure}")
        made, record = keys.make(home, passphrase_file, in_keyring)
        home.mkdir(parents=True, exist_ok=True)
        home.chmod(0o700)
        write_manifest(home, made, {"segments": [], "blobs": {}, "settings": {}, "secret": secrets.token_hex(32)})
        saving.write_json(home / keys.FILE, record)  # last: a folder with it is a store
        return Store(home, made)
    return Store(home, keys.read(home, passphrase_file))


def wipe(home: Path) -> None:
    """Delete the key first, without which nothing opens, and then all files of the store; the folder too, if it is empty.

    The key itself is not needed, as a passphrase may be forgotten.
    """
    with _locked(home):
        keys.remove(home)
        for file in [home / MANIFEST, *_files(home)]:
            file.unlink(missing_ok=True)
        (home / LOCK).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        home.rmdir()


def write_manifest(home: Path, key: bytes, manifest: Manifest) -> None:
    saving.write(home / MANIFEST, seal(key, MANIFEST, json.dumps(manifest).encode()))


@contextlib.contextmanager
def _locked(home: Path) -> Iterator[None]:
    """Wait for the lock. The kernel releases it when the process ends."""
    handle = os.open(home / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _ids(manifest: Manifest) -> set[str]:
    return {name for segment in manifest["segments"] for name in segment["items"]}


def _files(home: Path) -> list[Path]:
    """Return the segments and blobs, and what a killed process left."""
    return [file for file in home.iterdir() if OURS.fullmatch(file.name)]
