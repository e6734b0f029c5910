"""Documents of plain text and Markdown in any common encoding; a long text becomes several documents."""

import codecs
import functools
import io
from collections.abc import Iterator
from itertools import chain
from typing import BinaryIO

from data.sources.archives.encodings import SAMPLE_BYTES, encoding_of
from data.sources.source import Document, Quarantined
from data.sources.streams import Chunks, Unreadable, lines, open_stream

PIECE_BYTES = 1 << 20  # of UTF-8; a longer text is cut at a blank line, or else at the end of a line
MAX_LINE_BYTES = 16 << 20


def read(path: str, id: str) -> Iterator[Document | Quarantined]:
    """Yield the text of a file as documents of about `PIECE_BYTES`. Text that is not UTF-8 is converted."""
    with open_stream(path) as file:
        head, damage = _head(file)
        encoding = encoding_of(head, whole=len(head) < SAMPLE_BYTES and damage is None)
        chunks = _joined(head, file, damage)
        chunks = chunks if encoding == "utf-8" else _transcoded(chunks, encoding)
        stream = io.BufferedReader(Chunks(functools.partial(next, chunks, b"")), 1 << 16)
        number = 0
        for where, piece in _pieces(stream):
            if piece is None:
                yield Quarantined(path, where, f"line over {MAX_LINE_BYTES >> 20} MiB")
                continue
            try:
                text = piece.decode().removeprefix("\ufeff") if number == 0 else piece.decode()
            except UnicodeDecodeError:
                yield Quarantined(path, where, "invalid utf-8")
                continue
            if "\0" in text:
                yield Quarantined(path, where, "binary")
                continue
            if text and not text.isspace():
                yield Document(f"{id}#{number}" if number else id, text, path)
                number += 1
        if not number and not head.strip():
            yield Quarantined(path, "", "no text")


def _head(file: BinaryIO) -> tuple[bytes, Unreadable | None]:
    """Return the first `SAMPLE_BYTES`, and the damage that ends them before."""
    head = b""
    try:
        while len(head) < SAMPLE_BYTES and (more := file.read1(SAMPLE_BYTES - len(head))):
            head += more
    except Unreadable as error:
        if not head:
            raise
        return head, error
    return head, None


def _pieces(stream: BinaryIO) -> Iterator[tuple[str, bytes | None]]:
    """Yield (where, bytes) of pieces that end with a line; None for a line that is too long."""
    held: list[bytes] = []
    size, first, blank = 0, 1, 0
    for number, line in enumerate(lines(stream, MAX_LINE_BYTES), start=1):
        if not isinstance(line, bytes):
            if held:  # what came before it is a text
                yield f"line {first}", b"".join(held)
            if line is not None:
                raise line
            yield f"line {number}", None
            held, size, first, blank = [], 0, number + 1, 0
            continue
        if size + len(line) > PIECE_BYTES and held:
            cut = blank or len(held)  # a blank line in the second half, else here
            yield f"line {first}", b"".join(held[:cut])
            held, first = held[cut:], first + cut
            size, blank = sum(map(len, held)), 0
        held.append(line)
        size += len(line)
        if size > PIECE_BYTES // 2 and line.isspace():
            blank = len(held)
    if held:
        yield f"line {first}", b"".join(held)


def _joined(head: bytes, rest: BinaryIO, damage: Unreadable | None) -> Iterator[bytes]:
    """Yield the bytes that were already read, then the rest, or the damage that follows them."""
    yield head
    if damage:
        raise damage
    while data := rest.read1(1 << 16):
        yield data


def _transcoded(chunks: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    """Yield UTF-8 for chunks of another encoding. Raises: Unreadable where the encoding does not fit."""
    decoder = codecs.getincrementaldecoder(encoding)()
    for data, ended in chain(((data, False) for data in chunks), [(b"", True)]):
        try:
            text = decoder.decode(data, ended)
        except UnicodeError as error:
            raise Unreadable(f"invalid {encoding}") from error
        if text:
            yield text.encode()
