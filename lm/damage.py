"""What is found damaged is set aside under another name. It is never deleted, so that its owner can look at it."""

import itertools
import os
from pathlib import Path


def place_aside(path: Path, name: str | None = None) -> Path:
    """Return where `set_aside` would put `path`: NAME.damaged beside it, or NAME.damaged-1, … where that is taken.

    name: in place of the path's own.
    """
    names = (f"{name or path.name}.damaged{n and f'-{n}' or ''}" for n in itertools.count())
    return next(place for name in names if not (place := path.with_name(name)).exists())


def set_aside(path: Path, name: str | None = None) -> Path:
    """Rename a file or a folder to `place_aside` and return that path."""
    place = place_aside(path, name)
    os.rename(path, place)
    return place
