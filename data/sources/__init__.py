"""Sources of documents: files, a curated corpus, a TFDS dataset, or the Python installation that runs this program."""

import dataclasses
import difflib
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from data.sources.source import Document, Quarantined, Source
from lm.errors import UserError, hub_hint
from lm.files import saving


def open_sources(input: str | None, *, text_key: str = "text", max_bytes: int | None = None) -> list[Source]:
    """Open the sources that `data.input` names, without reading them.

    Args:
        input: None for the Python installation (sources `code`, `docstrings`, `docs`); a workdir of curate.py (its sources);
            a file, a folder or a glob, several separated by commas (one source, and one for each name of NAME=FILES); or a
            TFDS name such as `lm1b` (one source). A path that exists wins over a TFDS dataset of the same name.
        text_key: the JSONL field, Parquet column or TFDS feature that holds the text.
        max_bytes: a source ends with the document that reaches this many UTF-8 bytes.

    Raises:
        UserError: the name is neither a path nor a dataset, a folder holds no readable file, or the dataset has no
            such feature. `read` raises errors inside a file when it reaches them.
    """
    # Import pyarrow and TFDS only if they are needed.
    if input is None:
        from data.sources import python_installation

        sources = python_installation.open_installation()
    else:
        sources = _open_named(input.strip(), text_key)
    if max_bytes is not None:
        sources = [capped(source, max_bytes) for source in sources]
    return sources


def _open_named(input: str, text_key: str) -> list[Source]:
    from data.sources import corpus, files

    if corpus.is_corpus(input):
        return corpus.open_corpus(input)
    if files.is_path(input):
        return files.open_files(input, text_key)

    from data.sources import tfds_source

    if tfds_source.is_known(input):
        return [tfds_source.open_tfds(input, text_key)]
    # "corpus/en" may be a path or dataset/config. It is not a known dataset, so it is a missing path.
    if "/" in input:
        raise files.missing(input)
    names = files.siblings(input) + tfds_source.names()
    near = difflib.get_close_matches(input, names, n=1)
    raise UserError(
        f"data.input={input!r} is neither a path nor a TFDS dataset; "
        + (f"nearest: {near[0]!r}" if near else "name a file, a folder, a glob or a dataset, or leave it out")
        + hub_hint(input, "dataset")
    )


def capped(source: Source, max_bytes: int) -> Source:
    """Return a source that ends with the document that reaches this many UTF-8 bytes."""
    return Source(source.name, lambda: until(source.read(), max_bytes))


def until(documents: Iterable[Document | Quarantined], max_bytes: int) -> Iterator[Document | Quarantined]:
    """Yield what is read up to the document that reaches this many UTF-8 bytes."""
    for document in documents:
        if max_bytes <= 0:
            return
        if isinstance(document, Document):  # what could not be read has no text
            max_bytes -= len(document.text.encode())
        yield document


def spooled(source: Source, folder: Path) -> Source:
    """Return a slow source whose first complete pass writes a compressed copy to `folder`, which later passes read."""
    import zstandard

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
