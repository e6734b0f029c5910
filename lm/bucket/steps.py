"""Which checkpoints in a bucket are whole: the checksums of a step are its last objects, and name all others.

So a step is whole if both checksums.json are there and every file that they list is there with its size. This needs no
marker of its own, and a workdir that another tool has copied into the bucket is read as well.
"""

import json
import re
from collections.abc import Iterable, Mapping

from lm import checksums
from lm.bucket.store import Entry, Store

_STEP = re.compile(r"((?:.*/)?checkpoints)/(\d+)/.+")
ITEMS = ("meta", "state")


def step_of(name: str) -> tuple[str, int] | None:
    """Return (folder of checkpoints, step) of an object of a checkpoint, or None."""
    match = _STEP.fullmatch(name)
    return (match[1], int(match[2])) if match else None


def steps_in(names: Iterable[str]) -> dict[str, list[int]]:
    """Return the steps of each folder of checkpoints, ascending; they may not be whole."""
    found: dict[str, set[int]] = {}
    for folder, step in filter(None, map(step_of, names)):
        found.setdefault(folder, set()).add(step)
    return {folder: sorted(steps) for folder, steps in found.items()}


def is_last(name: str) -> bool:
    """Return whether an object makes its step whole."""
    return step_of(name) is not None and name.endswith(tuple(f"/{item}/{checksums.NAME}" for item in ITEMS))


def is_whole(store: Store, listing: Mapping[str, Entry], place: str) -> bool:
    """Return whether the step in `place`, such as checkpoints/20, is whole in the bucket."""
    for item in ITEMS:
        if f"{place}/{item}/{checksums.NAME}" not in listing:
            return False
    return all(there_are(listing, f"{place}/{item}", store.read(f"{place}/{item}/{checksums.NAME}") or b"") for item in ITEMS)


def there_are(listing: Mapping[str, Entry], folder: str, sums: bytes) -> bool:
    """Return whether a listing has each file that the content of a checksums.json names, with its size."""
    try:
        files = json.loads(sums)[checksums.ALGORITHM].items()
        return all((there := listing.get(f"{folder}/{name}")) and there.size == size for name, (size, _) in files)
    except (ValueError, KeyError, TypeError, AttributeError):
        return False


def newest_whole(store: Store, listing: Mapping[str, Entry]) -> dict[str, int]:
    """Return the newest whole step of each folder of checkpoints that has one."""
    found = {}
    for folder, steps in steps_in(listing).items():
        whole = next((step for step in reversed(steps) if is_whole(store, listing, f"{folder}/{step}")), None)
        if whole is not None:
            found[folder] = whole
    return found
