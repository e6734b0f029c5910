"""Decompress a file member by member, and go on behind damage.

A compressed file is a sequence of members: those of gzip, frames of zstd, streams of bz2 and xz. Each begins with its format's
magic number, so what follows a damaged member can still be read. Memory is bounded by `BLOCK_BYTES` and the dictionary of the
compressor (zstd up to 2 GiB for files packed with `--long=31`, xz up to `XZ_MEMORY`, otherwise under 10 MiB).
"""

import bz2
import lzma
import os
import re
import zlib
from collections.abc import Callable, Generator, Iterator
from typing import Any, BinaryIO, NamedTuple

BLOCK_BYTES = 1 << 20  # the most that one step of a decompressor may return
GZIP_STEP = 1 << 16  # compressed bytes of a step
STEP = 1 << 9  # zstd cannot limit its output. It gives at most 32 KiB for each byte, so 16 MiB for this step.
ZSTD_WINDOW = 1 << 31  # large corpora are often packed with `zstd --long=31`
XZ_MEMORY = 1 << 28  # xz -9 needs 65 MiB
TRIAL_BYTES = 1 << 12  # compressed bytes of a possible member that are tried
MAGIC_BYTES = 10  # the longest magic number
SEARCHED_AGAIN = 1 << 26  # bytes of a file that may be read twice: a hostile one would take the square of its size


class Piece(NamedTuple):
    """Bytes of a member. first, end: the bytes of the file that they come from. member: where their member begins."""

    data: bytes
    first: int
    end: int
    member: int


class Gap(NamedTuple):
    """Bytes of the file from `first` to `end` that cannot be decompressed. member: the start of the damaged member."""

    first: int
    end: int
    member: int
    reason: str  # "damaged gzip", "truncated zstd", …
    detail: str


class _Format(NamedTuple):
    """new: makes a decompressor with the interface of bz2.BZ2Decompressor. step: compressed bytes that it gets at a time."""

    name: str
    magic: re.Pattern[bytes]
    new: Callable[[], Any]
    step: int = STEP


def plain_pieces(file: BinaryIO) -> Iterator[Piece]:
    """Yield the bytes of an uncompressed file as one member."""
    start = file.seek(0)
    while data := file.read(BLOCK_BYTES // 8):
        yield Piece(data, start, start + len(data), 0)
        start += len(data)


def pieces(file: BinaryIO, ending: str, begins: bytes = b"") -> Iterator[Piece | Gap]:
    """Yield the content of a compressed file, and its gaps; reading goes on with the next member behind a gap.

    Args:
        ending: one of `FORMATS`.
        begins: how the content of each member begins, to recognise one behind a gap.
    """
    format, again = FORMATS[ending], SEARCHED_AGAIN
    file.seek(0)
    while _skip_padding(file):  # between members, as gzip and xz allow
        first = file.tell()
        damage = yield from _member(file, format)
        if damage is None:
            continue
        damaged, (reason, detail) = file.tell(), damage
        # The decompressor may have read over the beginning of the next member, if bytes are missing.
        file.seek(first + 1 if again > 0 else max(damaged, first + 1))
        again -= damaged - first
        end = _find(file, format, begins)
        reason = reason if end >= damaged else f"damaged {format.name}"
        known = end > damaged or (end == damaged and reason.startswith("truncated"))
        yield Gap(damaged if known else first, end, first, reason, detail)


def _skip_padding(file: BinaryIO) -> bool:
    """Skip bytes that are zero. Return whether others follow."""
    while data := file.read(STEP):
        if left := len(data.lstrip(b"\0")):
            file.seek(-left, os.SEEK_CUR)
            return True
    return False


def _member(file: BinaryIO, format: _Format) -> Generator[Piece, None, tuple[str, str] | None]:
    """Yield one member. Return the (reason, detail) of damage, where `file` is then, or None."""
    member, start = format.new(), file.tell()
    first = end = start
    while not member.eof:
        data = b""
        if member.needs_input:
            first, data = end, file.read(format.step)
            end += len(data)
        try:
            block = member.decompress(data, BLOCK_BYTES)
        except _errors() as error:
            file.seek(first)
            big = "limit" in str(error)
            reason = f"xz needs over {XZ_MEMORY >> 20} MiB" if big else f"damaged {format.name}"
            return reason, str(error)
        if member.eof:
            end = file.seek(end - len(member.unused_data))
        if not data and not block and member.needs_input and not member.eof:
            return f"truncated {format.name}", "the file ends in the middle"
        yield Piece(block, first, end, start)
    return None


def _find(file: BinaryIO, format: _Format, begins: bytes) -> int:
    """Go to the next place where a member begins, or to the end of the file. Return it."""
    start, data, at = file.tell(), b"", 0
    while True:
        block = file.read(BLOCK_BYTES // 8)
        data += block
        for match in format.magic.finditer(data, at):
            at = match.start()
            if block and at + TRIAL_BYTES > len(data):
                break  # try it when more is there
            if _is_member(data[at : at + TRIAL_BYTES], format, begins):
                return file.seek(start + at)
            at += 1
        else:
            at = max(at, len(data) - MAGIC_BYTES)
        if not block:
            return file.tell()
        start, data, at = start + at, data[at:], 0


def _is_member(data: bytes, format: _Format, begins: bytes) -> bool:
    member, content = format.new(), b""
    for at in range(0, len(data), STEP):
        try:
            content += member.decompress(data[at : at + STEP], BLOCK_BYTES)
        except _errors():
            return False
        if member.eof or len(content) >= max(len(begins), 1):
            break
    # bz2 gives nothing before the end of a block of up to 900 KB. Its magic number is long enough.
    return content.startswith(begins) or (begins.startswith(content) and not member.eof)


class _Gzip:
    """A gzip member, which gives all bytes before the damage."""

    def __init__(self):
        self._inflate, self._left = zlib.decompressobj(31), b""

    eof = property(lambda self: self._inflate.eof)
    unused_data = property(lambda self: self._inflate.unused_data)
    needs_input = property(lambda self: not self._left)

    def decompress(self, data: bytes, limit: int) -> bytes:
        data, before = self._left + data, self._inflate.copy()
        try:
            block = self._inflate.decompress(data, limit)
            self._left = self._inflate.unconsumed_tail
        except zlib.error:
            if len(data) < 2:
                raise
            half = len(data) // 2
            self._inflate, self._left = before, b""
            block = self.decompress(data[:half], limit)
            self._left += data[half:]
        return block


class _Zstd:
    """A frame. zstandard's `stream_reader` does not detect a truncated file; a decompression object knows its end."""

    needs_input = True

    def __init__(self):
        import zstandard

        self._frame = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW).decompressobj()

    def decompress(self, data: bytes, limit: int) -> bytes:
        """Return what the data give. It cannot be limited, so `STEP` bounds the data."""
        return self._frame.decompress(data)

    eof = property(lambda self: self._frame.eof)
    unused_data = property(lambda self: self._frame.unused_data)


def _errors() -> tuple[type[Exception], ...]:
    """Return what decompressors raise at damage."""
    import zstandard

    return (zlib.error, lzma.LZMAError, OSError, zstandard.ZstdError)  # OSError: that of bz2


FORMATS = {
    # Method, flags, any time, extra flags and system, as RFC 1952 has them.
    ".gz": _Format("gzip", re.compile(rb"\x1f\x8b\x08[\x00-\x1f][\s\S]{4}[\x00\x02\x04][\x00-\x0d\xff]"), _Gzip, GZIP_STEP),
    ".zst": _Format("zstd", re.compile(rb"\x28\xb5\x2f\xfd"), _Zstd),
    ".bz2": _Format("bz2", re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)"), bz2.BZ2Decompressor),
    ".xz": _Format("xz", re.compile(rb"\xfd7zXZ\x00"), lambda: lzma.LZMADecompressor(memlimit=XZ_MEMORY)),
}
