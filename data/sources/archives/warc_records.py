"""Cut a WARC file into records, and go on behind damage.

A record ends where its Content-Length says, if two line breaks, another record or the end of its member is there. If not, the
record is damaged, and the next one is searched for. Where a gzip member begins with a record, the one before it has ended,
whatever its Content-Length says. Memory is bounded by `MAX_RECORD_BYTES`.
"""

import itertools
import os
import re
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from data.sources import members
from data.sources.archives.http_bodies import MAX_HEADER_BYTES, fields
from data.sources.members import Gap, Piece
from data.sources.streams import SKIPPED_BYTES, compression, open_regular

MAX_RECORD_BYTES = 16 << 20  # of a record's body
_VERSION = re.compile(rb"WARC/\d\.\d{1,2}[ \t]*\r?\n")
_START = re.compile(rb"\nWARC/\d\.\d{1,2}[ \t]*\r?\n(?=[A-Za-z-]+:)")
START_BYTES = 64  # that hold what `_START` matches
_END_OF_HEADER = re.compile(rb"\r?\n\r?\n")
_BETWEEN = b"\r\n\0"  # what may stand between records
WRONG_LENGTH, CUT = "wrong Content-Length", "truncated record"


class Record(NamedTuple):
    """A record, or what is known of one that cannot be read.

    number: from 1, of all records in the file. place: the bytes (first, end) of the file that hold it.
    fields: of its header by names in lower case; {} if there is none. problem: why it cannot be read, None if it can.
    """

    number: int
    place: tuple[int, int]
    fields: dict[str, str]
    body: bytes
    problem: str | None = None


def records(path: str) -> Iterator[Record]:
    """Yield the records of a WARC file, which may be compressed. Raises: Unreadable, OSError, as `open_regular`."""
    with open_regular(path) as file:
        window, numbers = _Window(file, compression(path)), itertools.count(1)
        while window.next_part():
            while window.skip(_BETWEEN):
                about, body, problem = _taken(window)
                gap = window.gap if problem and not window.data else None  # the record reaches to it
                yield Record(next(numbers), window.place(), about, body, gap.reason if gap else problem)
                window.gap = None if gap else window.gap
            if window.gap:  # it is outside of all records
                yield Record(next(numbers), window.place_of_gap(), {}, b"", window.gap.reason)


def _taken(window: "_Window") -> tuple[dict[str, str], bytes, str | None]:
    """Take a record, or what stands before the next one. Returns its fields, its body and its problem."""
    window.begin()
    window.need(START_BYTES)
    if not _VERSION.match(window.data):
        window.find_start()
        return {}, b"", "not a WARC record"
    end = window.end_of_header()
    about = fields(bytes(window.data[: end or MAX_HEADER_BYTES]).partition(b"\n")[2])
    if end is None:
        problem = "warc header too long" if len(window.data) >= MAX_HEADER_BYTES else CUT
        window.find_start()
        return about, b"", problem
    window.drop(end - 1)  # but its last line break, which stands before a record's start
    length = int(text) if (text := about.get("content-length", "")).isdecimal() and len(text) < 20 else -1
    if MAX_RECORD_BYTES < length <= window.most_left() and window.may_end(1 + length):
        if window.skip_bytes(1 + length) and window.is_end(0):
            return about, b"", f"record over {MAX_RECORD_BYTES >> 20} MiB"
    elif 0 <= length <= window.most_left() and window.need(1 + length) and window.is_end(1 + length):
        body = bytes(window.data[1 : 1 + length])
        window.drop(1 + length)
        return about, body, None
    window.find_start()
    return about, b"", WRONG_LENGTH if window.has_more() else CUT


class _Window:
    """A part of the file's content, up to a gap or to a member that begins with a record. `data` is what is left of it."""

    def __init__(self, file: BinaryIO, ending: str | None):
        self._file, self._ending, self._size, self._first = file, ending, file.seek(0, os.SEEK_END), 0
        self._pieces = members.pieces(file, ending, b"WARC/") if ending else members.plain_pieces(file)
        self._next: Piece | Gap | None = None
        self._advance()

    def _advance(self) -> None:
        self._next = next((one for one in self._pieces if isinstance(one, Gap) or one.data), None)

    def next_part(self) -> bool:
        """Go to the next part. Returns whether there is one."""
        self.data, self.gap, self._stopped = bytearray(), None, False
        # The place of data[0]: in an uncompressed file, else in the part.
        self._at = 0 if self._ending or self._next is None else self._next.first
        self._spans: list[tuple[int, int, int]] = []  # (place, first, end) of the pieces of `data`
        self._members: set[int] = set()  # places where members begin
        self._member = -1  # where the last one begins in the file
        return self._fill() or self.gap is not None

    def _fill(self) -> bool:
        """Add a piece to `data`, unless the part ends. Returns whether it did."""
        piece, at = self._next, self._at + len(self.data)
        if isinstance(piece, Gap) and not self._stopped:
            self.gap, self._stopped = piece, True
            self._advance()
        if not isinstance(piece, Piece) or self._stopped:
            return False
        if piece.member != self._member:
            if self._members and b"WARC/".startswith(piece.data[:5]):
                self._stopped = True
                return False
            self._members.add(at)
            self._member = piece.member
        self._spans.append((at, piece.first, piece.end))
        self.data += piece.data
        self._advance()
        return True

    def begin(self) -> None:
        """Say that a record begins here."""
        first = next(first for at, first, _ in reversed(self._spans) if at <= self._at)
        self._first = first if self._ending else self._at
        last = max(at for at in self._members if at <= self._at)
        self._members = {at for at in self._members if at >= last}

    def place(self) -> tuple[int, int]:
        """Return the bytes of the file from the last `begin` to here, or to the end of the gap that is here."""
        if self.gap and not self.data:
            return self._first, self.gap.end
        return self._first, self._spans[0][2] if self._ending else self._at

    def place_of_gap(self) -> tuple[int, int]:
        """Return the bytes of the file that hold the records that are lost in the gap."""
        return self.gap.first if self.gap.member == self._member else self.gap.member, self.gap.end

    def drop(self, size: int) -> None:
        del self.data[:size]
        self._at += size
        while len(self._spans) > 1 and self._spans[1][0] < self._at:
            del self._spans[0]

    def need(self, size: int) -> bool:
        """Return whether `data` has at least `size` bytes, after what it takes to read them."""
        while len(self.data) < size and self._fill():
            pass
        return len(self.data) >= size

    def skip(self, bytes: bytes) -> bool:
        """Skip these bytes. Returns whether others follow."""
        while self.need(1):
            some = self.data[:START_BYTES]
            left = len(some.lstrip(bytes))
            self.drop(len(some) - left)
            if left:
                return True
        return False

    def end_of_header(self) -> int | None:
        """Return where the header ends, None if it has no end or is too long."""
        at = 0
        while True:
            if found := _END_OF_HEADER.search(self.data, at, MAX_HEADER_BYTES):
                return found.end()
            at = max(len(self.data) - 4, 0)
            if at >= MAX_HEADER_BYTES or not self._fill():
                return None

    def find_start(self) -> None:
        """Drop what is before the next record, or all."""
        while True:
            if found := _START.search(self.data):
                return self.drop(found.start() + 1)
            self.drop(max(len(self.data) - START_BYTES, 0))
            if not self._fill():
                return self.drop(len(self.data))

    def most_left(self) -> int:
        """Return the most bytes that can follow."""
        return SKIPPED_BYTES if self._ending else self._size - self._at - 1

    def has_more(self) -> bool:
        return bool(self.data) or self._next is not None

    def is_end(self, at: int) -> bool:
        """Return whether a record ends at data[at]: two line breaks, another record, another member, or nothing follows."""
        for place in range(at, at + MAX_HEADER_BYTES):
            if not self.need(place + 1):
                return self.gap is None or self.gap.member != self._member
            if self._at + place in self._members:
                return True
            if self.data[place] not in _BETWEEN:
                self.need(place + START_BYTES)
                return self.data.startswith((b"\r\n\r\n", b"\n\n"), at) or _VERSION.match(self.data, place) is not None
        return True  # padding

    def may_end(self, size: int) -> bool:
        """Return whether a record may end so many bytes ahead. Only a file without compression can be looked at there."""
        if self._ending:
            return True
        place = self._file.tell()
        self._file.seek(self._at + size)
        ahead = self._file.read(MAX_HEADER_BYTES)
        self._file.seek(place)
        return not ahead.strip(_BETWEEN) or ahead.startswith((b"\r\n\r\n", b"\n\n"))

    def skip_bytes(self, size: int) -> bool:
        """Drop `size` bytes. Returns whether there are as many."""
        while size and self.need(1):
            some = min(size, len(self.data))
            self.drop(some)
            size -= some
        return not size
