"""Open a file for reading, decompressed, so that no file can block the process or fill its memory.

Memory is bounded by `BLOCK_BYTES`, by the dictionary of the compressor (zstd up to 2 GiB for files packed with
`--long=31`, xz up to `XZ_MEMORY`, otherwise under 10 MiB), and by the limit that a caller passes to `readline`.
"""

from __future__ import annotations

import bz2
import errno
import io
import lzma
import os
import stat
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from data.sources import objects

BLOCK_BYTES = 1 << 20  # the most that one step of a decompressor may return
ZSTD_STEP = 1 << 9  # zstd cannot limit its output. It gives at most 32 KiB for each byte, so 16 MiB for this step.
ZSTD_WINDOW = 1 << 31  # large corpora are often packed with `zstd --long=31`
XZ_MEMORY = 1 << 28  # xz -9 needs 65 MiB
SKIPPED_BYTES = 1 << 36  # give up a file in which a line is longer than this

COMPRESSED = (".gz", ".zst", ".bz2", ".xz")


class Unreadable(Exception):
    """Data that gives no document. `reason` is short and stable, `detail` is the library's own message."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason, self.detail = reason, detail


def open_regular(path: str) -> BinaryIO:
    """Open a regular file, or an object of a bucket if the path has a URL scheme such as gs:// or s3://.

    Raises:
        Unreadable: the path is a FIFO, a device, a socket or a folder.
        OSError: it is missing or may not be read.
    """
    if "://" in path:
        return objects.open_object(path)
    # Opening some devices has an effect, so look before. O_NONBLOCK: the path may become a FIFO in between.
    _check_regular(os.stat(path))
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        _check_regular(os.fstat(descriptor))
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def open_stream(path: str) -> BinaryIO:
    """Open a file as `open_regular` does, decompressed if its name ends in one of `COMPRESSED`.

    Reading raises Unreadable ("truncated gzip", "damaged zstd", …) where the data ends too early or is damaged.
    """
    file = open_regular(path)
    for ending, blocks in _DECOMPRESSORS.items():
        if path.endswith(ending):
            return io.BufferedReader(_Blocks(blocks(file), file), 1 << 16)
    return file


def lines(stream: BinaryIO, limit: int) -> Iterator[bytes | None]:
    r"""Yield lines with their "\n". A line over `limit` bytes is skipped without being stored, and gives None.

    Raises: Unreadable if a line has more than `SKIPPED_BYTES`.
    """
    while line := stream.readline(limit + 1):
        if len(line) <= limit:
            yield line
            continue
        skip_line(stream, line)
        yield None


def skip_line(stream: BinaryIO, begun: bytes) -> None:
    """Skip the rest of a line that began with `begun`. Raises: Unreadable if it has more than `SKIPPED_BYTES`."""
    left = SKIPPED_BYTES
    while begun and not begun.endswith(b"\n"):
        left -= len(begun)
        if left < 0:
            raise Unreadable(f"line over {SKIPPED_BYTES >> 30} GiB")
        begun = stream.readline(BLOCK_BYTES)


def reason(error: OSError) -> str:
    """Return a short stable reason for an error of opening or reading a file."""
    code = error.errno or (errno.ENOENT if isinstance(error, FileNotFoundError) else None)  # drivers of buckets set none
    return _REASONS.get(code, "input/output error")


_REASONS = {
    errno.ENOENT: "missing file",
    errno.ELOOP: "link loop",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.ENXIO: "not a regular file",
    errno.ENAMETOOLONG: "name too long",
    errno.EISDIR: "a folder",
    errno.ENOTDIR: "missing file",
}


def _check_regular(status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise Unreadable("a folder")
    if not stat.S_ISREG(status.st_mode):
        raise Unreadable("not a regular file")


def _gzip(file: BinaryIO) -> Iterator[bytes]:
    member, fresh, data = zlib.decompressobj(31), True, b""
    while data := data or file.read(BLOCK_BYTES // 8):
        if fresh and not (data := data.lstrip(b"\0")):  # padding between members, as gzip allows
            continue
        try:
            block = member.decompress(data, BLOCK_BYTES)
        except zlib.error as error:
            raise Unreadable("damaged gzip", str(error)) from error
        fresh, data = False, member.unconsumed_tail
        if member.eof:
            data, member, fresh = member.unused_data, zlib.decompressobj(31), True
        yield block
    while not fresh and (block := member.decompress(b"", BLOCK_BYTES)):
        yield block
    if not fresh and not member.eof:
        raise Unreadable("truncated gzip")


def _bz2(file: BinaryIO) -> Iterator[bytes]:
    return _streams(file, bz2.BZ2Decompressor, "bz2")


def _xz(file: BinaryIO) -> Iterator[bytes]:
    return _streams(file, lambda: lzma.LZMADecompressor(memlimit=XZ_MEMORY), "xz")


def _streams(file: BinaryIO, new, name: str) -> Iterator[bytes]:
    one, fresh, data = new(), True, b""
    while True:
        if one.eof:
            data, one, fresh = one.unused_data, new(), True
        if not data and one.needs_input:
            data = file.read(BLOCK_BYTES // 8)
        if fresh:
            data = data.lstrip(b"\0")  # padding between streams, as xz allows
        if not data and one.needs_input:
            break
        try:
            block = one.decompress(data, BLOCK_BYTES)
        except lzma.LZMAError as error:
            big = "limit" in str(error)
            raise Unreadable(f"xz needs over {XZ_MEMORY >> 20} MiB" if big else f"damaged {name}", str(error)) from error
        except OSError as error:  # bz2's name for damage
            raise Unreadable(f"damaged {name}", str(error)) from error
        data, fresh = b"", False
        yield block
    if not fresh:
        raise Unreadable(f"truncated {name}")


def _zstd(file: BinaryIO) -> Iterator[bytes]:
    import zstandard

    # `stream_reader` does not detect a truncated file; a decompression object knows the end of its frame.
    decompressor = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW)
    frame, fresh = decompressor.decompressobj(), True
    while data := file.read(BLOCK_BYTES // 8):
        for begin in range(0, len(data), ZSTD_STEP):
            step = data[begin : begin + ZSTD_STEP]
            while step:
                try:
                    block, fresh = frame.decompress(step), False
                except zstandard.ZstdError as error:
                    raise Unreadable("damaged zstd", str(error)) from error
                yield block
                step = frame.unused_data
                if frame.eof:
                    frame, fresh = decompressor.decompressobj(), True
    if not fresh:
        raise Unreadable("truncated zstd")


_DECOMPRESSORS = {".gz": _gzip, ".zst": _zstd, ".bz2": _bz2, ".xz": _xz}


class _Blocks(io.RawIOBase):
    """A readable stream of the bytes that an iterator yields. It closes `file` when it is closed."""

    def __init__(self, blocks: Iterator[bytes], file: BinaryIO):
        self._blocks, self._file, self._left = blocks, file, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not len(self._left):
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._left = memoryview(block)
        size = min(len(buffer), len(self._left))
        buffer[:size] = self._left[:size]
        self._left = self._left[size:]
        return size

    def close(self) -> None:
        self._file.close()
        super().close()
