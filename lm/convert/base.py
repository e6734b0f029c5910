"""The base model of an adapter: record it in the run's checkpoints, find it again, and verify its fingerprint.

A checkpoint of an adapter run holds only the trained parameters. Its meta has `base`: path (absolute), relative (to the
workdir), step (of a workdir's checkpoint; None for a Hugging Face folder or a GGUF file) and fingerprint (of the weight files,
lm/files/checksums.py).
"""

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path

from lm.bucket.copies import local
from lm.convert.published import is_published
from lm.errors import UserError
from lm.files import checksums
from lm.files.gguf import files_of, find_gguf
from lm.files.untrusted import short
from lm.runs.checkpoint import newest
from lm.runs.workdir import read_config


def reference(path: str | os.PathLike, workdir: Path) -> dict:
    """Return the `base` entry of a run in `workdir` that starts from `path`.

    If `path` holds only an adapter, the base is that adapter's base.
    """
    path, step = Path(path), None
    if not is_published(path):
        checkpoints, step = newest(path)
        with contextlib.closing(checkpoints):
            base = checkpoints.meta(step).get("base")
        if base:
            path, step = found(base, path), base["step"]
    path = path.absolute()
    relative = os.path.relpath(path, workdir.absolute())
    return {"path": str(path), "relative": relative, "step": step, "fingerprint": fingerprint(path, step)}


def found(base: dict, workdir: Path) -> Path:
    """Return the current path of the adapter's base. Raises UserError if it is gone or its files have changed."""
    record = workdir / "config.json"
    kinds = {"path": str, "relative": str, "step": int | None, "fingerprint": str}
    if not isinstance(base, dict) or not all(isinstance(base.get(key), kind) for key, kind in kinds.items()):
        raise UserError(f"{workdir}: the base of its adapter is {short(base)}, which names no model: put the right meta back")
    changed = None
    for path in _places(base, workdir):
        there = fingerprint(path, base["step"])
        if there == base["fingerprint"]:
            return path
        changed = changed or (there and path)
    what = base["path"] + ("" if base["step"] is None else f", step {base['step']}")
    why = "which does not exist: put it or a link back"
    if changed:
        why = f"and the weights in {changed} have changed since: put the original files back"
    raise UserError(f"{workdir} holds an adapter of {what}, {why}, or set init_from in {record} to the path of a copy")


def fingerprint(path: Path, step: int | None) -> str | None:
    """Return a digest of a model's weight files; None if there are none. The result is cached.

    A workdir's files already have checksums; each process reads the files of a Hugging Face folder.
    """
    folder = path if step is None else path / "checkpoints" / str(step) / "state"
    if step is not None:
        names = (folder / name for name in checksums.files(folder))
    elif (file := find_gguf(path)) is not None:
        folder, names = file.parent, files_of(file)
    else:
        names = folder.glob("*.safetensors")
    files = sorted(file for file in names if file.is_file() and file.name != "commit_success.txt")
    stats = [file.stat() for file in files]
    return _fingerprint(folder, tuple((file, stat.st_size, stat.st_mtime_ns) for file, stat in zip(files, stats)))


@functools.cache
def _fingerprint(folder: Path, files: tuple) -> str | None:
    return checksums.fingerprint(folder, [file.relative_to(folder).as_posix() for file, *_ in files]) if files else None


def _places(base: dict, workdir: Path) -> Iterator[Path]:
    """Yield candidate paths: the recorded ones, then init_from in the config of the run, of that workdir, and so on."""
    yield Path(local(base["path"]))
    yield Path(os.path.normpath(workdir.absolute() / base["relative"]))
    seen: set[Path] = set()
    while workdir not in seen and isinstance(start := read_config(workdir).get("init_from"), str) and start:
        seen.add(workdir)
        workdir = Path(start).absolute()
        yield workdir
