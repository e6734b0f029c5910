"""Which checkpoints in a bucket are whole: the checksums of a step name all its files, and are uploaded after them.

    checkpoints/<step>/state/…, meta/…                   first
    checkpoints/<step>/{state,meta}/checksums.json       then
    checkpoints/<step>/_CHECKPOINT_METADATA              last

This needs no marker of its own, and reads a workdir that another tool has copied into the bucket. A step without the last
object is the rest of an upload that was cut off; a step that has it, but no checksums, is of an older version and left alone.
"""

import json
import re
from collections.abc import Iterable, Mapping

from lm.bucket.store import Entry, Store
from lm.files import checksums

LAST = "_CHECKPOINT_METADATA"
HEALTHY = "healthy.json"  # in a workdir: {"step": of the newest checkpoint whose training loss is not high, or null}
_STEP = re.compile(r"((?:.*/)?checkpoints/\d+)/.+")


def place_of(name: str) -> str | None:
    """Return the folder of the step that an object belongs to, such as checkpoints/20, or None."""
    match = _STEP.fullmatch(name)
    return match[1] if match else None


def number(place: str) -> int:
    return int(place.rpartition("/")[2])


def places(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the folders of steps in each folder of checkpoints, newest first; they may not be whole."""
    by_folder: dict[str, list[str]] = {}
    for place in sorted(set(filter(None, map(place_of, names))), key=number, reverse=True):
        by_folder.setdefault(place.rpartition("/")[0], []).append(place)
    return by_folder


def is_whole(store: Store, listing: Mapping[str, Entry], place: str) -> bool:
    """Return whether the step in `place` is whole: a listing has each file that its checksums name, with its size."""
    folders = f"{place}/state", f"{place}/meta"
    if any(name not in listing for name in (f"{place}/{LAST}", *(f"{folder}/{checksums.NAME}" for folder in folders))):
        return False
    try:
        for folder in folders:
            files = json.loads(store.read(f"{folder}/{checksums.NAME}") or b"{}")[checksums.ALGORITHM].items()
            if any(f"{folder}/{file}" not in listing or listing[f"{folder}/{file}"].size != size for file, (size, _) in files):
                return False
    except (ValueError, KeyError, TypeError, AttributeError):
        return False
    return True


def newest_whole(store: Store, listing: Mapping[str, Entry]) -> dict[str, str]:
    """Return the newest whole step of each folder of checkpoints that has one: its place by folder."""
    whole = {
        folder: next((place for place in steps if is_whole(store, listing, place)), None)
        for folder, steps in places(listing).items()
    }
    return {folder: place for folder, place in whole.items() if place}
