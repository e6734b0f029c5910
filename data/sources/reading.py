"""Read documents from files: plain text in UTF-8, JSON lines (plain, gzip, zstd) and Parquet.

The first row or byte that is wrong is an error that names its place. Memory is bounded for files of any size: text is read in
pieces, JSON by line (at most `MAX_LINE_BYTES`), Parquet by record batch. A FIFO, a device or a damaged file is an error;
nothing blocks.
"""

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, BinaryIO

from data.sources import streams
from data.sources.source import Document
from data.sources.streams import Unreadable
from lm.errors import UserError

if TYPE_CHECKING:
    import pyarrow

TEXT = (".txt", ".md", ".rst", ".py")
# C4 and similar corpora publish JSON lines as .json.gz; in practice a compressed file is never one big array.
JSON_LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json.gz", ".json.zst")
PARQUET = (".parquet",)

PIECE_BYTES = 1 << 16  # a longer text file becomes several documents of at most this size
MAX_LINE_BYTES = 1 << 28  # of a JSON line. The longest book has some 20 MB; parsing takes about five times the line.
BOM = b"\xef\xbb\xbf"
TO_UTF8 = "convert the file to UTF-8, such as with iconv -f latin1 -t utf-8, or leave it out"


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
            yield from _read_text(path, id)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; repair the file or leave it out of data.input") from error
    except Unreadable as error:
        raise unreadable(path, error) from error


# Plain text.


def _read_text(path: str, id: str) -> Iterator[Document]:
    with streams.open_regular(path) as file:
        for k, (offset, data, only) in enumerate(_pieces(file)):
            try:
                text = data.decode()
            except UnicodeDecodeError as error:
                raise UserError(f"{path}: byte {offset + error.start} is not valid UTF-8; {TO_UTF8}") from error
            if text and not text.isspace():
                yield Document(id if only else f"{id}#{k}", text, path)


def _pieces(file: BinaryIO) -> Iterator[tuple[int, bytes, bool]]:
    """Cut a file into (offset, bytes, whether it is the only piece); together they are the file without its BOM."""
    data = file.read(len(BOM))
    offset = len(BOM) if data == BOM else 0
    data, only = data[offset:], True
    while True:
        data += file.read(PIECE_BYTES + 1 - len(data))
        if len(data) <= PIECE_BYTES:
            if data:
                yield offset, data, only
            return
        cut, only = _cut(data), False
        yield offset, data[:cut], only
        offset, data = offset + cut, data[cut:]


def _cut(data: bytes) -> int:
    # Search only the second half: an early blank line would give a tiny document.
    for mark in (b"\n\n", b"\n\r\n", b"\n"):
        at = data.rfind(mark, PIECE_BYTES // 2, PIECE_BYTES)
        if at >= 0:
            return at + len(mark)
    for cut in range(PIECE_BYTES, PIECE_BYTES - 4, -1):
        if data[cut] & 0xC0 != 0x80:  # not inside a character
            return cut
    return PIECE_BYTES  # not UTF-8; decoding will report the position


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
    offset, over = 0, f"over {limit >> 20} MiB"
    with streams.open_stream(path) as stream:
        for number, line in enumerate(streams.lines(stream, limit), start=1):
            if line is None:
                line = BadLine(f"line {over}", f"the line has {over}; write one document a line, or leave the file out")
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
    def chosen(schema: "pyarrow.Schema") -> list[str]:
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


def is_string(kind: "pyarrow.DataType") -> bool:
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
