"""Indexes of finished runs, against which later runs are deduplicated.

    WORKDIR/index/KEY/index.json               {"format", "documents", "stages": {NAME: settings}}
    WORKDIR/index/KEY/names.utf8, ends.u64     "SOURCE/ID" of each document that stayed, and where each name ends
    WORKDIR/index/KEY/NAME/…                   what the stage NAME compares of these documents, see `save_index` of data/dedup
    WORKDIR/index/made_from.json               the run that the index was made from

KEY is a hash of the files, so it does not depend on where and when an index was made. manifest.json names the present one.
A document's place in an index is its row among those that stayed.
"""

import functools
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import xxhash

from data.dedup import tables
from data.dedup.keep import old_places
from data.recipe.inputs import digest
from lm.errors import UserError
from lm.files import saving

FOLDER, FORMAT = "index", 1  # FORMAT: of an index, and of the hashes in it; after a change no older index is read
_ABOUT, _NAMES, _ENDS, _MADE_FROM = "index.json", "names.utf8", "ends.u64", "made_from.json"


class Index(NamedTuple):
    """The index of an earlier corpus. folder: WORKDIR/index/KEY."""

    folder: Path
    key: str


@functools.lru_cache(maxsize=64)
def _opened(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    ends, path = tables.read(folder / _ENDS, 1)[:, 0], folder / _NAMES
    return ends, np.memmap(path, np.uint8, "r") if os.path.getsize(path) else np.empty(0, np.uint8)


def names(numbers: np.ndarray, against: Sequence[Index]) -> list[str | None]:
    """Return "KEY/SOURCE/ID" of each document of an earlier corpus, None for others. numbers: as in keep.old_bits."""
    found: list[str | None] = []
    for from_old, corpus, place in zip(*(values.tolist() for values in old_places(numbers))):
        if from_old:
            ends, names = _opened(against[corpus].folder)
            begin = int(ends[place - 1]) if place else 0
            found.append(f"{against[corpus].key}/{bytes(names[begin : int(ends[place])]).decode()}")
        else:
            found.append(None)
    return found


def find(against: str, workdir: Path | None = None) -> list[Index]:
    """Return the indexes of workdirs, "DIR,DIR", in this order.

    workdir: of the run that will use them. Raises: UserError: one is not finished or has no index, or is named twice.
    """
    found: list[Index] = []
    seen: list[Path] = [] if workdir is None else [workdir.resolve()]
    for name in [against] if os.path.exists(against) else filter(None, (part.strip() for part in against.split(","))):
        folder = Path(name)
        if folder.resolve() in seen:
            what = "is named twice" if found else "is the workdir itself; name those of earlier runs"
            raise UserError(f"against={against!r}: {folder} {what}")
        seen.append(folder.resolve())
        found.append(_of(folder))
    return found


def _of(workdir: Path) -> Index:
    def error(problem: str) -> UserError:
        return UserError(f"against: {workdir} {problem}")

    if not (workdir / "config.json").exists() and not (workdir / "manifest.json").exists():
        raise error("is no workdir of curate.py; name folders that curate.py wrote")
    try:
        manifest = json.loads((workdir / "manifest.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise error("is not finished; run its command again, then this one") from None
    except ValueError as fault:
        raise error(f"has a damaged manifest.json ({fault}); run its command again") from None
    again = "run its command again with --config.index=True, and a stage that compares documents, such as near_duplicates"
    if not manifest.get("index"):
        raise error(f"has no index; {again}")
    index = Index(workdir.absolute() / FOLDER / manifest["index"], manifest["index"])
    try:
        about = _about(index)
    except (FileNotFoundError, ValueError):
        raise error(f"has lost its index; {again}") from None
    if about["format"] != FORMAT:
        raise error(f"has an index of another version; {again}")
    return index


def _about(index: Index) -> dict[str, Any]:
    return json.loads((index.folder / _ABOUT).read_text(encoding="utf-8"))


def check(indexes: Sequence[Index], name: str, settings: Mapping[str, Any]) -> None:
    """Raise UserError if an index lacks a stage, or the stage had other settings there. The error names the key."""
    for index in indexes:
        workdir, stages = index.folder.parents[1], _about(index)["stages"]
        if name not in stages:
            raise UserError(
                f"against: the recipe of {workdir} has no stage {name}; add it there and run that command again, "
                "or leave it out here"
            )
        for option, here in settings.items():
            if (there := stages[name][option]) != here:
                raise UserError(
                    f"against: {name}.{option} is {there!r} in {workdir} and {here!r} here; set "
                    f"--config.{name}.{option}={there}, or run the command of {workdir} again with {here}"
                )


def write(
    workdir: Path, compared: Sequence[tuple[Any, Sequence[Path]]], stayed: Sequence[tuple[Path, Path]], made_from: Any
) -> str:
    """Write the index of a run, if it is not there, and return its key.

    Args:
      compared: the planned stages that compare documents, each with the parts it gathered.
      stayed: of each unit, in order: the table of the numbers of the documents that stayed, and their Parquet file.
      made_from: JSON; the index is a function of it.
    """
    root, made_from = workdir / FOLDER, digest([FORMAT, made_from])
    try:
        done = json.loads((root / _MADE_FROM).read_text(encoding="utf-8"))
        if done["made_from"] == made_from and (root / done["key"] / _ABOUT).exists():
            return done["key"]
    except (FileNotFoundError, ValueError, KeyError):
        pass
    fresh = workdir / "stages" / f"{FOLDER}-{made_from}"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    numbers = fresh / "stayed.u64"
    count = tables.write(numbers, (block for table, _ in stayed for block in tables.blocks(tables.read(table, 1))))
    with saving.replacing(fresh / _NAMES, "wb") as file:
        tables.write(fresh / _ENDS, _written(file, [documents for _, documents in stayed]))
    about: dict[str, Any] = {"format": FORMAT, "documents": count, "stages": {}}
    for planned, parts in compared:
        planned.stage.save_index(fresh / planned.name, parts, numbers, planned.old)
        about["stages"][planned.name] = planned.stage.settings(planned.options)
    numbers.unlink()
    saving.write_json(fresh / _ABOUT, about)
    files = [path for path in sorted(fresh.rglob("*")) if path.is_file()]
    key = digest([(path.relative_to(fresh).as_posix(), saved_hash(path)) for path in files])
    root.mkdir(exist_ok=True)
    if not (root / key).exists():
        os.rename(fresh, root / key)
    shutil.rmtree(fresh, ignore_errors=True)
    saving.write_json(root / _MADE_FROM, {"made_from": made_from, "key": key})
    return key


def _written(file, documents: Sequence[Path]) -> Iterator[np.ndarray]:
    """Write the names of the documents in Parquet files. Yields where each ends, uint64 [n, 1]."""
    size = 0
    for path in documents:
        with pq.ParquetFile(path) as parquet:
            for group in range(parquet.num_row_groups):
                rows = parquet.read_row_group(group, columns=["source", "id"]).to_pydict()
                some = [f"{source}/{id}".encode() for source, id in zip(rows["source"], rows["id"])]
                file.write(b"".join(some))
                yield size + np.cumsum([len(name) for name in some], dtype=np.uint64)[:, None]
                size += sum(map(len, some))


def saved_hash(path: Path) -> str:
    """Return the XXH3 of a file, 128 bits in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()


def tidy(workdir: Path, key: str | None) -> None:
    """Remove all indexes but the one with this key."""
    root = workdir / FOLDER
    for path in sorted(root.iterdir()) if root.exists() else ():
        if key is None or path.name not in (key, _MADE_FROM):
            path.unlink() if path.is_file() else shutil.rmtree(path)
    if key is None and root.exists():
        root.rmdir()
