"""Files open decompressed, damage has a name, and nothing blocks or fills the memory."""

import bz2
import contextlib
import gzip
import lzma
import os
import random
import tracemalloc

import pytest
import zstandard

from data.sources import streams
from data.sources.streams import Unreadable

ZSTD = zstandard.ZstdCompressor(write_checksum=True)
COMPRESS = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}
NAMES = {"gz": "gzip", "bz2": "bz2", "xz": "xz", "zst": "zstd"}
DATA = random.Random(0).randbytes(50_000).hex().encode() + b"a\nb\n" * 100_000


def content(path) -> bytes:
    with streams.open_stream(str(path)) as stream:
        return stream.read()


@pytest.mark.parametrize("ending", COMPRESS)
def test_the_content_is_that_of_several_members(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    path.write_bytes(COMPRESS[ending](DATA) + COMPRESS[ending](b"") + COMPRESS[ending](b"end"))
    assert content(path) == DATA + b"end"
    path.write_bytes(b"")
    assert content(path) == b""


@pytest.mark.parametrize("ending", COMPRESS)
def test_damage_is_told(tmp_path, ending):
    path, packed = tmp_path / f"a.{ending}", COMPRESS[ending](DATA)
    for cut in (5, len(packed) // 2, len(packed) - 5, len(packed) - 1):
        path.write_bytes(packed + packed[:cut])
        with pytest.raises(Unreadable, match=f"truncated {NAMES[ending]}"):
            content(path)
    for wrong in (packed[:1000] + bytes(64) + packed[1064:], b"no archive at all", packed + b"junk after it"):
        path.write_bytes(wrong)
        with pytest.raises(Unreadable, match=f"damaged {NAMES[ending]}"):
            content(path)


@pytest.mark.parametrize("ending", COMPRESS)
def test_reading_goes_on_behind_a_damaged_member(tmp_path, ending):
    path, pack = tmp_path / f"a.{ending}", COMPRESS[ending]
    first, middle, last = pack(b"first\n"), pack(DATA), pack(b"last\n")
    for damaged in (middle[:2000] + bytes(64) + middle[2064:], middle[:2000], middle[:-1], middle[:2000] + middle[2500:]):
        path.write_bytes(first + damaged + last)
        found, lost = [], []
        with streams.open_stream(str(path)) as stream:
            while True:
                try:
                    if not (line := stream.readline()):
                        break
                    found.append(line)
                except Unreadable as error:
                    lost.append(error.lost)
        assert found[0] == b"first\n" and found[-1] == b"last\n"
        [(start, end)] = lost
        assert len(first) <= start < end == len(first + damaged)


def test_all_of_a_member_before_the_damage_is_read(tmp_path):
    packed = gzip.compress(DATA)
    (tmp_path / "a.gz").write_bytes(packed[:3000] + bytes(64) + packed[3064:])
    with streams.open_stream(str(tmp_path / "a.gz")) as stream, pytest.raises(Unreadable, match="damaged gzip") as error:
        found = b""
        while True:
            found += stream.read1(1000)
    assert error.value.lost[0] <= 3000 < error.value.lost[1] and DATA.startswith(found[:4000]) and len(found) > 4000


def test_starts_of_members_that_are_none_take_little_time(tmp_path):
    head = gzip.compress(b"x" * 50)[:-9]
    (tmp_path / "a.gz").write_bytes(head * 5_000)
    with streams.open_stream(str(tmp_path / "a.gz")) as stream, contextlib.suppress(Unreadable):
        stream.read()


@pytest.mark.parametrize("ending", COMPRESS)
def test_a_long_line_is_skipped_in_little_memory(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    path.write_bytes(COMPRESS[ending](b"one\n" + bytes(48 << 20) + b"\ntwo"))
    tracemalloc.start()
    try:
        with streams.open_stream(str(path)) as stream:
            assert list(streams.lines(stream, 1 << 16)) == [b"one\n", None, b"two"]
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
    finally:
        tracemalloc.stop()


def test_a_line_of_the_limit_is_whole(tmp_path):
    (tmp_path / "a").write_bytes(b"1234\n12345\n1234")
    with streams.open_stream(str(tmp_path / "a")) as stream:
        assert list(streams.lines(stream, 5)) == [b"1234\n", None, b"1234"]


def test_only_regular_files_open(tmp_path):
    os.mkfifo(tmp_path / "pipe.gz")
    os.symlink("pipe.gz", tmp_path / "link")
    for path in (tmp_path / "pipe.gz", tmp_path / "link", "/dev/zero", "/dev/stdin"):
        with pytest.raises(Unreadable, match="not a regular file"):
            content(path)
    with pytest.raises(Unreadable, match="a folder"):
        content(tmp_path)
    os.symlink("loop", tmp_path / "loop")
    for path, reason in ((tmp_path / "loop", "link loop"), (tmp_path / "none", "missing file")):
        with pytest.raises(OSError) as error:
            content(path)
        assert streams.reason(error.value) == reason
