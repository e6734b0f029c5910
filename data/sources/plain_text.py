"""Read documents from a file of plain text in UTF-8, in pieces."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from data.sources import streams
from data.sources.source import Document
from lm.errors import UserError

PIECE_BYTES = 1 << 16  # a longer text file becomes several documents of at most this size
TO_UTF8 = "convert the file to UTF-8, such as with iconv -f latin1 -t utf-8, or leave it out"
BOM = b"\xef\xbb\xbf"


def read(path: str, id: str) -> Iterator[Document]:
    """Yield the pieces of a file. id: its name in the ids. Raises: UserError, Unreadable, OSError."""
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
