"""Write a folder completely or not at all, and nothing over what is there."""

import contextlib
import filecmp
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from lm.errors import UserError

EXPORTED = ("config.json", "adapter_config.json", "manifest.json")  # one of them is in every folder that an export writes


def check_target(to: Path) -> None:
    """Raise UserError if --to is a file, or a folder that is not empty and no export has written.

    A folder with an export passes, because the same export may be asked for again: `written_whole` compares the two.
    """
    if not any((to / name).is_file() for name in EXPORTED):
        check_free(to, "to")


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

    If `folder` holds all of its files already, with the same bytes, it is left as it is. If the block fails, the temporary
    folder is removed. The next call for the same name removes what a killed process left.
    Raises: UserError at the end of the block if `folder` is not empty, and lacks a file or holds another one.
    """
    staging = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        yield staging
        if folder.is_dir() and any(folder.iterdir()):
            check_unchanged(staging, folder)
            shutil.rmtree(staging)
        else:
            os.rename(staging, folder)  # over an empty folder, never over a full one
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def check_unchanged(new: Path, old: Path) -> None:
    """Raise UserError if the file `old` differs from `new`, or the folder `old` lacks or changes a file of `new`."""
    pairs = [(path, old / path.relative_to(new)) for path in sorted(new.rglob("*"))] if new.is_dir() else [(new, old)]
    for one, other in pairs:
        if one.is_file() and not (other.is_file() and filecmp.cmp(one, other, shallow=False)):
            what = "is not empty" if new.is_dir() else "exists"
            raise UserError(
                f"--to={old} {what}, and its {other.name} is not that of this export: name a new "
                f"{'folder' if new.is_dir() else 'file'}, since files are never overwritten"
            )
