"""Rename damaged files and folders. They are never deleted, so that their owner can inspect them."""

import itertools
import os
from pathlib import Path


def place_aside(path: Path, name: str | None = None) -> Path:
    """Return the path that `set_aside` would rename to: NAME.damaged in the same folder, or NAME.damaged-1, … if it exists.

    name: used instead of the path's own name.
    """
    names = (f"{name or path.name}.damaged{n and f'-{n}' or ''}" for n in itertools.count())
    return next(place for name in names if not (place := path.with_name(name)).exists())


def set_aside(path: Path, name: str | None = None) -> Path:
    """Rename a file or a folder to `place_aside` and return that path."""
    place = place_aside(path, name)
    os.rename(path, place)
    return place
