"""Find damage to the files of a checkpoint: by their checksums, or by reading what was saved without them."""

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from lm.errors import UserError
from lm.files import checksums
from lm.files.untrusted import read_json


def alone() -> ocp.options.MultiprocessingOptions:
    """Return the options for a process that reads alone, without waiting for others."""
    here = jax.process_index()
    return ocp.options.MultiprocessingOptions(primary_host=here, active_processes={here}, barrier_sync_key_prefix="read")


def damage(folder: Path, part: int = 0, parts: int = 1) -> str | None:
    """Return a description of the damage to a checkpoint's files, or None.

    part, parts: check only this share of the files. Files are not read again while their sizes and times are unchanged.
    Raises: PermissionError.
    """
    folder = folder.absolute()  # Orbax requires it
    if not folder.is_dir():
        return "it is no folder"
    names = sorted(path for path in folder.rglob("*") if path.is_file())
    return _damage(folder, tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in names), part, parts)


@functools.cache
def _damage(folder: Path, files: tuple, part: int, parts: int) -> str | None:
    for path, *_ in files:
        open(path, "rb").close()  # a file without read permission raises PermissionError and is not damaged
    try:
        for item in ("meta", "state"):
            if found := checksums.damage(folder / item, part, parts):
                return f"{item}/{found}"
    except FileNotFoundError:
        return _unreadable(folder, part, parts)
    return None


def _unreadable(folder: Path, part: int, parts: int) -> str | None:
    """Return the same for a checkpoint without checksums: the first item that cannot be read, or None."""
    item = "meta"
    try:
        read_json(folder / item / "metadata")
        item, reader = "state", ocp.PyTreeCheckpointHandler(multiprocessing_options=alone())
        stored = jax.tree_util.tree_flatten_with_path(reader.metadata(folder / item).tree)[0]
        for path, x in stored[part::parts]:
            wanted = functools.reduce(lambda inside, key: {key.key: inside}, reversed(path), x)
            how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
            reader.restore(folder / item, args=ocp.args.PyTreeRestore(wanted, restore_args=how, partial_restore=True))
    except MemoryError:
        raise
    except Exception as error:  # Orbax and TensorStore raise many types
        return f"{item} {_why(error)}"
    return None


@contextlib.contextmanager
def readable(folder: Path) -> Iterator[None]:
    """Raise UserError for what Orbax and TensorStore raise about the files of a checkpoint, which is of many types."""
    try:
        yield
    except (UserError, MemoryError, PermissionError):
        raise
    except Exception as error:
        raise UserError(f"{folder} {_why(error)}: put a copy in its place") from error


def _why(error: Exception) -> str:
    return f"cannot be read ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
