"""Read the corpus that a run of curate.py wrote: its documents, without those that were dropped."""

import functools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from data.sources import objects, streams
from data.sources.source import Document, Source
from lm.bucket.store import is_url
from lm.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

DOCUMENTS, MANIFEST = "documents", "manifest.json"
_READ = ("id", "text", "source", "url", "language", "date", "licence", "metadata")  # those that are there


def is_corpus(path: str | os.PathLike) -> bool:
    """Return whether a path is the workdir of a run of curate.py.

    Raises: UserError: the run is not finished. Its folders, read as any others, would give what is dropped too.
    """
    folder = Path(path).expanduser()
    try:
        if is_url(path):
            if objects.has_glob(str(path)) or "," in str(path):
                return False
            manifest = json.loads(objects.content(f"{str(path).rstrip('/')}/{MANIFEST}"))
        else:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        if all(_is_folder(path, name) for name in (DOCUMENTS, "dropped", "stages")):
            raise UserError(f"{path}: this corpus is not finished; run its curate.py command again") from None
        return False
    return isinstance(manifest, dict) and "recipe" in manifest and _is_folder(path, DOCUMENTS)


def _is_folder(path: str | os.PathLike, name: str) -> bool:
    if is_url(path):
        return bool(objects.listed(f"{str(path).rstrip('/')}/{name}"))
    return os.path.isdir(Path(path).expanduser() / name)  # False for what can be no path


def files(path: str | os.PathLike) -> list[str]:
    """Return the paths of a corpus' documents, in order."""
    if is_url(path):
        return objects.listed(f"{str(path).rstrip('/')}/{DOCUMENTS}/*.parquet")
    return sorted(map(str, (Path(path).expanduser() / DOCUMENTS).glob("*.parquet")))


def open_corpus(path: str | os.PathLike) -> list[Source]:
    """Return a source for each value of the column `source`, in order of names. Raises: UserError: no document is left."""
    import pyarrow.parquet as pq

    names: set[str] = set()
    for file in files(path):
        with streams.open_regular(file) as opened:
            names.update(pq.read_table(opened, columns=["source"]).column("source").unique().to_pylist())
    if not names:
        raise UserError(f"{path}: no document is left in this corpus; see its report.html for the rules that drop them")
    return [Source(name, functools.partial(read, path, name)) for name in sorted(names)]


def read(
    path: str | os.PathLike, source: str, wanted: Callable[["pa.Table"], "np.ndarray"] | None = None, column: str | None = None
) -> Iterator[Document]:
    """Yield the documents of a source.

    wanted: says which rows of a table are read, bool [N]; the table has the column `column` too. None: all.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name in files(path):
        with streams.open_regular(name) as opened, pq.ParquetFile(opened) as file:
            columns = [one for one in file.schema_arrow.names if one in _READ or one == column]
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=columns)
                mine = table.column("source").to_numpy() == source
                at = np.flatnonzero(mine if wanted is None else mine & wanted(table))
                for number, row in zip(at.tolist(), table.take(pa.array(at)).to_pylist()):
                    metadata = json.loads(row.get("metadata") or "{}")
                    yield Document(
                        f"{row['id']}#{group}.{number}",
                        row["text"],
                        row.get("url") or os.path.basename(name),
                        row.get("licence"),
                        metadata.pop("split_key", None),
                        row.get("url"),
                        row.get("language"),
                        row.get("date"),
                        metadata or None,
                    )
