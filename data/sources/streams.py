"""Open a file for reading, decompressed, so that no file can block the process or fill its memory.

Memory is bounded by data/sources/members.py, and by the limit that a caller passes to `readline`.
"""

import errno
import functools
import io
import os
import stat
from collections.abc import Callable, Iterator
from typing import BinaryIO

from data.sources import members, objects
from data.sources.members import BLOCK_BYTES

SKIPPED_BYTES = 1 << 36  # give up a file in which a line is longer than this

COMPRESSED = tuple(members.FORMATS)


class Unreadable(Exception):
    """Data that gives no document. `reason` is short and stable, `detail` is the library's own message.

    lost: (first, end), the bytes of the file that hold what cannot be read, if that is known.
    """

    def __init__(self, reason: str, detail: str = "", lost: tuple[int, int] | None = None):
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason, self.detail, self.lost = reason, detail, lost


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

    Reading raises Unreadable ("truncated gzip", "damaged zstd", …) where the data ends too early or is damaged. The next call
    reads on behind the damage.
    """
    file = open_regular(path)
    ending = compression(path)
    if not ending:
        return file
    return io.BufferedReader(Chunks(functools.partial(_next_piece, members.pieces(file, ending)), file), 1 << 16)


def compression(path: str) -> str | None:
    """Return which of `COMPRESSED` a path ends in, None if in none."""
    return next((ending for ending in COMPRESSED if path.endswith(ending)), None)


def lines(stream: BinaryIO, limit: int) -> Iterator[bytes | Unreadable | None]:
    r"""Yield lines with their "\n", and the error for each stretch that cannot be read; the lines behind it follow.

    A line over `limit` bytes is skipped without being stored, and gives None.
    """
    while True:
        try:
            line = stream.readline(limit + 1)
            if not line:
                return
            if len(line) > limit:
                _skip_line(stream, line)
                line = None
        except Unreadable as error:
            yield error
            if error.lost is None:
                return
        else:
            yield line


def _skip_line(stream: BinaryIO, line: bytes) -> None:
    """Skip the rest of a line, of which `line` has been read. Raises: Unreadable if it has more than `SKIPPED_BYTES`."""
    left = SKIPPED_BYTES
    while line and not line.endswith(b"\n"):
        left -= len(line)
        if left < 0:
            raise Unreadable(f"line over {SKIPPED_BYTES >> 30} GiB")
        line = stream.readline(BLOCK_BYTES)


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


class Chunks(io.RawIOBase):
    """A readable stream of the bytes that calls of `chunk` return, b"" at the end. It closes `file` when it is closed."""

    def __init__(self, chunk: Callable[[], bytes], file: BinaryIO | None = None):
        self._chunk, self._file, self._left = chunk, file, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        if not len(self._left):
            self._left = memoryview(self._chunk())
        size = min(len(buffer), len(self._left))
        buffer[:size], self._left = self._left[:size], self._left[size:]
        return size

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        super().close()


def _next_piece(pieces: Iterator[members.Piece | members.Gap]) -> bytes:
    """Return the bytes of the next piece that has some. Raises: Unreadable at a gap; the next call goes on behind it."""
    for piece in pieces:
        if isinstance(piece, members.Gap):
            raise Unreadable(piece.reason, piece.detail, (piece.first, piece.end))
        if piece.data:
            return piece.data
    return b""
