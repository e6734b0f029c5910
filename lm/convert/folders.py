"""Write a folder completely or not at all."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from lm.errors import UserError


def check_free(folder: Path, flag: str) -> None:
    """Raise UserError if `folder` exists, unless it is an empty folder."""
    for place in (folder, *folder.parents):
        if place.exists() and not place.is_dir():
            raise UserError(f"--{flag}={folder}: {place} is a file; name a new folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"--{flag}={folder} exists and is not empty: name a new folder, since files are never overwritten")


@contextlib.contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder next to `folder`; rename it to `folder` at the end of the block.

    If the block fails, the temporary folder is removed. The next call for the same name removes what a killed process left.
    """
    staging = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        yield staging
        os.rename(staging, folder)  # over an empty folder, never over a full one
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
