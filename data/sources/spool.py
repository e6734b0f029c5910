"""Cache a slow source: the first complete pass writes a compressed copy, which later passes read."""

import dataclasses
import io
import json
from collections.abc import Iterator
from pathlib import Path

import zstandard

from data.sources.source import Document, Source
from lm.files import saving


def spooled(source: Source, folder: Path) -> Source:
    """Return a source of the same documents, cached in `folder`, which may be deleted after the last pass."""
    path = folder / f"{source.name}.jsonl.zst"

    def read() -> Iterator[Document]:
        if path.exists():
            with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as stream:
                for line in io.TextIOWrapper(stream, encoding="utf-8", newline="\n"):
                    yield Document(**json.loads(line))
            return
        with saving.replacing(path, "wb") as file, zstandard.ZstdCompressor(level=1).stream_writer(file) as stream:
            for document in source.read():
                stream.write((json.dumps(dataclasses.asdict(document)) + "\n").encode())
                yield document

    return Source(source.name, read)
