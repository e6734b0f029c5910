"""A folder that is whole or not there."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from lm.errors import UserError


def check_free(folder: Path, flag: str) -> None:
    """Raises UserError where something lies already; an empty folder is nothing."""
    for place in (folder, *folder.parents):
        if place.exists() and not place.is_dir():
            raise UserError(f"--{flag}={folder}: {place} is a file; name a new folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"--{flag}={folder} exists and is not empty, and nothing is ever written over; name a new folder")


@contextlib.contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """A folder beside, to write into, which gets its name at the end.

    If what is written fails, nothing stays; what a killed process left is swept away by the next one of the same name.
    """
    beside = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        yield beside
        os.rename(beside, folder)  # over an empty folder, never over a full one
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
