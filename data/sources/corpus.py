"""Read the corpus that a run of curate.py wrote: its documents, without those that were dropped."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator
from pathlib import Path

from data.sources.source import Document, Source
from lm.errors import UserError

DOCUMENTS, MANIFEST = "documents", "manifest.json"
_READ = ["id", "text", "source", "url", "language", "date", "licence", "metadata"]


def is_corpus(path: str | os.PathLike) -> bool:
    """Return whether a path is the workdir of a finished run of curate.py."""
    folder = Path(path).expanduser()
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and "recipe" in manifest and (folder / DOCUMENTS).is_dir()


def files(path: str | os.PathLike) -> list[str]:
    """Return the paths of a corpus' documents, in order."""
    return sorted(map(str, (Path(path).expanduser() / DOCUMENTS).glob("*.parquet")))


def open_corpus(path: str | os.PathLike) -> list[Source]:
    """Return a source for each value of the column `source`, in order of names. Raises: UserError: no document is left."""
    import pyarrow.parquet as pq

    found: set[str] = set()
    for file in files(path):
        found.update(pq.read_table(file, columns=["source"]).column("source").unique().to_pylist())
    if not found:
        raise UserError(f"{path}: no document is left in this corpus; see its report.html for the rules that drop them")
    return [Source(name, functools.partial(_read, path, name)) for name in sorted(found)]


def _read(path: str | os.PathLike, source: str) -> Iterator[Document]:
    import pyarrow.parquet as pq

    for name in files(path):
        with pq.ParquetFile(name) as file:
            for group in range(file.num_row_groups):
                for number, row in enumerate(file.read_row_group(group, columns=_READ).to_pylist()):
                    if row["source"] == source:
                        metadata = json.loads(row["metadata"]) if row["metadata"] else {}
                        yield Document(
                            f"{row['id']}#{group}.{number}",
                            row["text"],
                            row["url"] or os.path.basename(name),
                            row["licence"],
                            metadata.pop("split_key", None),
                            row["url"],
                            row["language"],
                            row["date"],
                            metadata or None,
                        )
