"""Which checkpoints in a bucket are whole: the checksums of a step name all its files, and are uploaded after them.

    checkpoints/<step>/state/…, meta/…                   first
    checkpoints/<step>/{state,meta}/checksums.json       when all of the files that they list are in the bucket
    checkpoints/<step>/_CHECKPOINT_METADATA              last

This needs no marker of its own, and reads a workdir that another tool has copied into the bucket. A step without the last
object is the rest of an upload that was cut off; a step that has it, but no checksums, is of an older version and left alone.
"""

import json
import re
from collections.abc import Iterable, Mapping

from lm.bucket.store import Entry, Store
from lm.files import checksums

ITEMS = ("state", "meta")
LAST = "_CHECKPOINT_METADATA"
HEALTHY = "healthy.json"  # in a workdir: {"step": of the newest checkpoint whose training loss is not high, or null}
_STEP = re.compile(r"((?:.*/)?checkpoints/(\d+))/(.+)")


def place_of(name: str) -> str | None:
    """Return the folder of the step that an object belongs to, such as checkpoints/20, or None."""
    match = _STEP.fullmatch(name)
    return match[1] if match else None


def makes_whole(name: str) -> bool:
    """Return whether an object is one of those that are uploaded last."""
    match = _STEP.fullmatch(name)
    return match is not None and match[3] in (LAST, *(f"{item}/{checksums.NAME}" for item in ITEMS))


def number(place: str) -> int:
    return int(place.rpartition("/")[2])


def places(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the folders of steps in each folder of checkpoints, newest first; they may not be whole."""
    found: dict[str, set[str]] = {}
    for place in set(filter(None, map(place_of, names))):
        found.setdefault(place.rpartition("/")[0], set()).add(place)
    return {folder: sorted(steps, key=number, reverse=True) for folder, steps in found.items()}


def is_whole(store: Store, listing: Mapping[str, Entry], place: str) -> bool:
    """Return whether the step in `place` is whole in the bucket."""
    sums = [f"{place}/{item}/{checksums.NAME}" for item in ITEMS]
    if f"{place}/{LAST}" not in listing or any(name not in listing for name in sums):
        return False
    return all(there_are(listing, name, store.read(name) or b"") for name in sums)


def there_are(listing: Mapping[str, Entry], name: str, content: bytes) -> bool:
    """Return whether a listing has each file that a checksums.json names, with its size."""
    folder = name.rpartition("/")[0]
    try:
        files = json.loads(content)[checksums.ALGORITHM].items()
        return all((there := listing.get(f"{folder}/{file}")) and there.size == size for file, (size, _) in files)
    except (ValueError, KeyError, TypeError, AttributeError):
        return False


def newest_whole(store: Store, listing: Mapping[str, Entry]) -> dict[str, str]:
    """Return the newest whole step of each folder of checkpoints that has one: its place by folder."""
    found = {}
    for folder, steps in places(listing).items():
        if whole := next((place for place in steps if is_whole(store, listing, place)), None):
            found[folder] = whole
    return found
