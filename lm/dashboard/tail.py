"""Read what was appended to a file of lines since the last read."""

import errno
import os
import stat
from pathlib import Path
from typing import NamedTuple

LONGEST_LINE = 1 << 20  # bytes; a longer line is left out
SLICE = 4 << 20  # bytes of one read
CHECKED = 64  # bytes before the place that was read last, which must be the same


class Read(NamedTuple):
    """lines: whole lines. anew: the file is another one than before, so what was read earlier no longer counts. more: another
    read finds more. too_long: lines of this read that were left out."""

    lines: bytes
    anew: bool
    more: bool
    too_long: int


class Tail:
    """Reads a file from where the last read ended. A last line without its end waits until it has one.

    A file that shrank, was replaced, or differs before the place that was read last is read from its beginning.
    """

    def __init__(self, path: Path):
        self.path = path
        self.forget()

    def forget(self) -> None:
        """Read the file from its beginning next time."""
        self._file, self._place, self._before, self._rest, self._skipping = None, 0, b"", b"", False

    @property
    def waits(self) -> bool:
        """Whether a last line has no end yet."""
        return bool(self._rest) or self._skipping

    @property
    def place(self) -> int:
        """The bytes that were read so far."""
        return self._place

    def read(self, most: int = SLICE) -> Read:
        """Return what is new, at most `most` bytes. Raises OSError as open does, and for a pipe or a device."""
        with open(os.open(self.path, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as file:
            kind = os.fstat(file.fileno())
            if not stat.S_ISREG(kind.st_mode):
                raise OSError(errno.EINVAL, "no regular file")
            anew = self._file != (kind.st_dev, kind.st_ino) or kind.st_size < self._place
            if not anew and self._before and kind.st_size > self._place:
                anew = os.pread(file.fileno(), len(self._before), self._place - len(self._before)) != self._before
            if anew:
                self.forget()
                self._file = (kind.st_dev, kind.st_ino)
            data = os.pread(file.fileno(), most, self._place)
        self._place += len(data)
        self._before = (self._before + data)[-CHECKED:]
        lines, too_long = self._whole(data)
        return Read(lines, anew, self._place < kind.st_size and bool(data), too_long)

    def _whole(self, data: bytes) -> tuple[bytes, int]:
        """Return the whole lines of what is left of the last read and of `data`, and how many were too long."""
        if self._skipping:
            end = data.find(b"\n")
            if end < 0:
                return b"", 0
            self._skipping, data = False, data[end + 1 :]
        data = self._rest + data
        end = data.rfind(b"\n") + 1
        lines, self._rest, too_long = data[:end], data[end:], 0
        if len(self._rest) > LONGEST_LINE:
            self._rest, self._skipping, too_long = b"", True, 1
        half = LONGEST_LINE // 2  # a longer line covers a whole half
        if any(lines.find(b"\n", at, at + half) < 0 for at in range(0, len(lines) - half, half)):
            short = [line for line in lines.splitlines(keepends=True) if len(line) <= LONGEST_LINE]
            too_long += lines.count(b"\n") - b"".join(short).count(b"\n")
            lines = b"".join(short)
        return lines, too_long
