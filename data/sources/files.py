"""Read documents from local files: plain text, JSON lines (plain, gzip, zstd) and Parquet.

Memory is bounded for files of any size: text is read in pieces, JSON by line (at most `MAX_LINE_BYTES`), Parquet by record
batch. A FIFO, a device or a damaged file is an error; nothing blocks.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, BinaryIO

from data.sources import corpus, objects, plain_text, streams, walk
from data.sources.not_found import TEXT, missing, other_format
from data.sources.plain_text import BOM, TO_UTF8
from data.sources.source import Document, Source
from data.sources.streams import Unreadable
from lm.bucket.store import is_url
from lm.errors import UserError

if TYPE_CHECKING:
    import pyarrow

# C4 and similar corpora publish JSON lines as .json.gz; in practice a compressed file is never one big array.
JSON_LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json.gz", ".json.zst")
PARQUET = (".parquet",)
EXTENSIONS = TEXT + JSON_LINES + PARQUET

MAX_LINE_BYTES = 1 << 28  # of a JSON line. The longest book has some 20 MB; parsing takes about five times the line.
_NAMED = re.compile(r"([a-z0-9_]+)=(.+)")  # sources become names of TFDS datasets


def is_path(input: str) -> bool:
    """Return whether `input` must mean files: it exists, is a glob or a list, names a source, or looks like a path."""
    return (
        os.path.exists(os.path.expanduser(input))
        or input.startswith((".", "/", "~"))
        or input.endswith(("/", *EXTENSIONS))
        or any(c in input for c in "*?[,\\")
        or is_url(input)
        or named(input)[0] is not None
    )


def named(part: str) -> tuple[str | None, str]:
    """Split NAME=FILES into (NAME, FILES). A part without a name, or that exists as it is written, gives (None, part)."""
    match = None if os.path.exists(os.path.expanduser(part)) else _NAMED.fullmatch(part)
    return (match[1], match[2]) if match else (None, part)


def open_files(input: str, text_key: str = "text") -> list[Source]:
    """Return a source of the readable files under `input`, ordered by path, and one for each name of NAME=FILES.

    Args:
        input: a file, a folder (searched recursively; hidden names are skipped) or a glob (`**` matches any number
            of folders), or several of these separated by commas. NAME=FILES puts files into the source NAME.
        text_key: the field or column that holds the text. String fields `id`, `url` or `source`, and
            `license` or `licence` give the document's id, origin and licence. The default id is file and line.

    Raises:
        UserError: nothing matches, or no match has one of `EXTENSIONS`.
    """
    sources: dict[str | None, list[str]] = {}
    for name, part in _named_parts(input):
        sources.setdefault(name, []).append(part)
    return [_source(name, parts, text_key) for name, parts in sources.items()]


def _source(name: str | None, parts: list[str], text_key: str) -> Source:
    paths = sorted({path for part in parts for path in _find(part, EXTENSIONS)})
    roots = [fixed_folder(part) for part in parts]
    base = os.path.commonpath([os.path.abspath(root) for root in roots])
    name = name or "_".join(_identifier(part) for part in parts)[:64]

    def read() -> Iterator[Document]:
        for path in paths:
            yield from read_file(path, os.path.relpath(path, base), text_key)

    return Source(name, read)


def read_file(path: str, id: str, text_key: str = "text") -> Iterator[Document]:
    """Yield the documents of one file. `id` is the name of the file in its source.

    Raises:
        UserError: with the location, if the file cannot be read or decoded, or a row has no valid text.
    """
    try:
        if path.endswith(JSON_LINES):
            yield from _read_json_lines(path, id, text_key)
        elif path.endswith(PARQUET):
            yield from _read_parquet(path, id, text_key)
        else:
            yield from plain_text.read(path, id)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; repair the file or leave it out of data.input") from error
    except Unreadable as error:
        raise unreadable(path, error) from error


# Finding files.


def find(input: str, extensions: tuple[str, ...] = EXTENSIONS) -> list[str]:
    """Return the files of `input` (see `open_files`) with these extensions, ordered by path."""
    return sorted({path for part in _parts(input) for path in _find(part, extensions)})


def present(input: str, extensions: tuple[str, ...] = EXTENSIONS) -> list[str]:
    """Return the same as `find`, but skip missing parts of the input; empty if all are missing."""
    return sorted({path for part in _parts(input) for path in _readable(part, extensions)})


def first_files(input: str, extensions: tuple[str, ...] = EXTENSIONS) -> list[str]:
    """Return the first file of each part of an input. Raises: UserError for a part without one."""
    found = [(part, next(_readable(part, extensions), None)) for part in _parts(input)]
    for part, path in found:
        if path is None:
            raise _none(part, extensions)
    return [path for _, path in found]


def folders(input: str) -> list[str]:
    """Return the parts of an input that are folders; those of a corpus are its documents."""
    return [part for part in _parts(input) if os.path.isdir(part)]


def urls(input: str) -> list[str]:
    """Return the parts of an input that are in buckets, each up to its first glob character."""
    return [objects.fixed(part) for part in _parts(input) if is_url(part)]


def _parts(input: str) -> list[str]:
    return [part for _, part in _named_parts(input)]


def _named_parts(input: str) -> list[tuple[str | None, str]]:
    whole = os.path.expanduser(input)
    if os.path.exists(whole):
        return [(None, whole)]
    parts = [named(part.strip()) for part in input.split(",") if part.strip()]
    if not parts:
        raise missing(input)
    found = [(name, os.path.expanduser(part)) for name, part in parts]
    # The other folders of a corpus hold what its recipe dropped.
    return [(name, os.path.join(part, corpus.DOCUMENTS) if corpus.is_corpus(part) else part) for name, part in found]


def _find(part: str, extensions: tuple[str, ...]) -> list[str]:
    found = list(_readable(part, extensions))
    if not found:
        raise _none(part, extensions)
    return found


def _readable(part: str, extensions: tuple[str, ...]) -> Iterator[str]:
    """Yield the files with these extensions of one part of an input."""
    if is_url(part):
        yield from (url for url in objects.listed(part) if url.endswith(extensions))
        return
    matches = [part] if os.path.exists(part) else walk.matches(part)
    for match in matches:
        # A FIFO or a device is found too: leaving it out in silence would hide a mistake. Opening it is an error.
        paths = walk.below(match) if os.path.isdir(match) else [match]
        yield from (os.path.normpath(path) for path in paths if path.endswith(extensions))


def _none(part: str, extensions: tuple[str, ...]) -> UserError:
    if is_url(part):
        return UserError(f"data.input={part!r}: no object there can be read; accepted: {' '.join(extensions)}")
    if not os.path.exists(part) and not walk.matches(part):
        return missing(part)
    return UserError(
        f"data.input={part!r} holds no file that can be read; accepted: {' '.join(extensions)}{other_format(part, extensions)}"
    )


def fixed_folder(part: str) -> str:
    """Return the folder that document ids are relative to: the part before the first glob character."""
    if is_url(part):
        is_object = part.endswith(EXTENSIONS) and not objects.has_glob(part)
        return part.rpartition("/")[0] if is_object else objects.fixed(part)
    if os.path.isdir(part):
        return part
    fixed = part if os.path.exists(part) else re.split(r"[*?\[]", part, maxsplit=1)[0]
    return os.path.dirname(fixed) or "."


def _identifier(part: str) -> str:
    """Return a source name: `my corpus/part-1.jsonl.gz` gives `part_1`; a glob gives the name of its fixed folder."""
    is_whole = os.path.exists(part) or (is_url(part) and not objects.has_glob(part))
    last = os.path.basename(os.path.abspath(part if is_whole else fixed_folder(part)))
    for extension in sorted(EXTENSIONS, key=len, reverse=True):
        last = last.removesuffix(extension)
    return re.sub(r"[^a-z0-9]+", "_", last.lower()).strip("_") or "text"


# JSON lines.


def _read_json_lines(path: str, id: str, text_key: str) -> Iterator[Document]:
    for number, row in json_lines(path):
        where = f"{path}:{number}"
        if not isinstance(row.get(text_key), str):
            what = f"{text_key!r} is {type(row[text_key]).__name__}" if text_key in row else f"no {text_key!r}"
            raise UserError(f"{where}: {what}, keys are {listed(row)}; {_text_key(row)}")
        document = _from_row(row, text_key, f"{id}:{number}", where, path)
        if document:
            yield document


def json_lines(path: str) -> Iterator[tuple[int, dict]]:
    """Yield (line number from 1, object) of a file that may be compressed. Raises: UserError, OSError."""
    try:
        for number, row in json_rows(path, MAX_LINE_BYTES):
            if isinstance(row, BadLine):
                raise UserError(f"{path}:{number}: {row.detail}") from row
            if isinstance(row, Unreadable):
                raise row
            yield number, row
    except Unreadable as error:
        raise unreadable(path, error) from error


class BadLine(Unreadable):
    """A line that holds no JSON object."""


def json_rows(path: str, limit: int) -> Iterator[tuple[int, dict | Unreadable]]:
    """Yield (line number from 1, object) of a file that may be compressed, or why there is none. Blank lines give nothing.

    limit: bytes of a line. Raises: Unreadable, OSError: the file cannot be opened.
    """
    offset = 0
    with streams.open_stream(path) as stream:
        for number, line in enumerate(_lines(stream, limit), start=1):
            if isinstance(line, Unreadable):
                yield number, line
                continue
            start, offset = offset, offset + len(line)
            if number == 1:
                line = line.removeprefix(BOM)
                start = offset - len(line)
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode())
            except UnicodeDecodeError as error:
                row = BadLine("invalid utf-8", f"byte {start + error.start} is not valid UTF-8; {TO_UTF8}")
            except (ValueError, RecursionError) as error:
                row = BadLine("not json", f"not JSON ({error}); write one JSON object a line")
            if not isinstance(row, dict | Unreadable):
                row = BadLine("not an object", f"a JSON {type(row).__name__}, not an object; write one JSON object a line")
            yield number, row


def _lines(stream: BinaryIO, limit: int) -> Iterator[bytes | Unreadable]:
    """Yield lines, and the error for each that is too long and each stretch that cannot be read. Lines behind it follow."""
    size = f"{limit >> 20} MiB"
    long = BadLine(f"line over {size}", f"the line has over {size}; write one document a line, or leave the file out")
    while True:
        try:
            yield from (long if line is None else line for line in streams.lines(stream, limit))
            return
        except Unreadable as error:
            yield error
            if error.lost is None:
                return


def unreadable(path: str, error: Unreadable) -> UserError:
    """Return the error for a file that `data.sources.streams` refuses to read."""
    what, _, kind = error.reason.partition(" ")
    if what == "damaged":
        return UserError(f"{path}: damaged {kind} file ({error.detail}); fetch it again, or rename it if it is not compressed")
    if what == "truncated":
        return UserError(f"{path}: {kind} file ends too early; fetch it again")
    return UserError(f"{path}: {error.reason}; name regular files only, or leave it out of data.input")


# Parquet.


def _read_parquet(path: str, id: str, text_key: str) -> Iterator[Document]:
    def chosen(schema: pyarrow.Schema) -> list[str]:
        kinds = {field.name: field.type for field in schema}
        if text_key not in kinds or not is_string(kinds[text_key]):
            what = f"column {text_key!r} is {kinds[text_key]}" if text_key in kinds else f"no column {text_key!r}"
            texts = {name: name for name, kind in kinds.items() if is_string(kind)}
            raise UserError(f"{path}: {what}, columns are {listed(kinds)}; {_text_key(texts)}")
        columns = [c for c in (text_key, *_ABOUT) if c in kinds and is_string(kinds[c])]
        return list(dict.fromkeys(columns))

    for number, row in parquet_rows(path, chosen):
        if row[text_key] is None:  # an empty text in some columns
            continue
        document = _from_row(row, text_key, f"{id}:{number}", f"{path}: row {number}", path)
        if document:
            yield document


def is_string(kind: pyarrow.DataType) -> bool:
    """Return whether a column of this type holds strings, plain or in a dictionary."""
    import pyarrow

    kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    return pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)


def parquet_rows(path: str, columns: Callable | None = None) -> Iterator[tuple[int, dict]]:
    """Yield (row number from 1, values). `columns` selects columns from the schema; default: all. Raises: UserError."""
    import pyarrow
    import pyarrow.parquet

    try:
        with streams.open_regular(path) as opened, pyarrow.parquet.ParquetFile(opened) as file:
            number = 0
            for batch in file.iter_batches(batch_size=1024, columns=columns(file.schema_arrow) if columns else None):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: a string column is not valid UTF-8 ({error}); write the file again") from error
    except Unreadable as error:
        raise unreadable(path, error) from error
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: damaged Parquet file ({' '.join(str(error).split())[:200]}); fetch it again") from error


# Rows.

_ABOUT = ("id", "url", "source", "license", "licence")


def _from_row(row: dict, text_key: str, id: str, where: str, path: str) -> Document | None:
    text = row[text_key]
    if not text or text.isspace():
        return None
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: character {error.start} of {text_key!r} is half a surrogate pair, which UTF-8 cannot hold; "
            "write the whole pair or U+FFFD"
        ) from error
    # The text itself may be in a field such as `source`.
    given = {key: row[key] for key in _ABOUT if key != text_key and isinstance(row.get(key), str) and row[key]}
    return Document(
        id=encodable(given.get("id", id)),
        text=text,
        origin=encodable(given.get("url") or given.get("source") or path),
        licence=given.get("license") or given.get("licence"),
    )


def _text_key(row: dict) -> str:
    """Return what to set data.text_key to: the key of the longest string."""
    texts = {key: value for key, value in row.items() if isinstance(value, str)}
    longest = max(texts, key=lambda key: len(texts[key]), default=None)
    return "set data.text_key to one that holds a string" + (f", such as --config.data.text_key={longest}" if longest else "")


def encodable(string: str) -> str:
    """Return a string that UTF-8 can hold: "?" stands for lone surrogates."""
    return string if string.isascii() else string.encode(errors="replace").decode()


def listed(keys: dict) -> str:
    """Format the keys for an error message."""
    shown = [repr(key) for key in keys][:20]
    return " ".join(shown + ["…"] * (len(keys) > 20)) or "none"
