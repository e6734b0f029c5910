"""Only what was appended is read; a file that shrank or was replaced is read anew; a line without its end waits."""

import os

import pytest

from lm.dashboard import tail
from lm.dashboard.tail import Tail


def all_of(found: Tail) -> bytes:
    parts, more = [], True
    while more:
        read = found.read()
        parts, more = [*parts, read.lines], read.more
    return b"".join(parts)


def test_appended_lines_are_read_once(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"a\nb\n")
    found, read = Tail(path), []
    whole = os.pread
    monkeypatch.setattr(tail.os, "pread", lambda *args: read.append(data := whole(*args)) or data)
    assert found.read() == (b"a\nb\n", True, False, 0)
    assert found.read() == (b"", False, False, 0)
    with path.open("ab") as file:
        file.write(b"c" * 1000 + b"\n")
    read.clear()
    assert found.read() == (b"c" * 1000 + b"\n", False, False, 0)
    assert sum(map(len, read)) == 1001 + 4  # and the bytes before, which are compared


def test_a_half_written_line_waits(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b'{"a": 1}\n{"b"')
    found = Tail(path)
    assert found.read().lines == b'{"a": 1}\n' and found.waits
    with path.open("ab") as file:
        file.write(b": 2}\n")
    assert found.read().lines == b'{"b": 2}\n' and not found.waits


@pytest.mark.parametrize("how", ["shrank", "replaced", "rewritten in place and longer"])
def test_another_content_is_read_from_its_beginning(tmp_path, how):
    path = tmp_path / "file"
    path.write_bytes(b"one\ntwo\nthree\n")
    found = Tail(path)
    found.read()
    new = b"four\n" if how == "shrank" else b"other one\nother two\nother three\n"
    if how == "replaced":
        (tmp_path / "new").write_bytes(new)
        os.replace(tmp_path / "new", path)
    else:
        path.write_bytes(new)
    assert found.read()[:2] == (new, True)


def test_a_large_file_is_read_in_slices(tmp_path):
    path, data = tmp_path / "file", b"".join(b"%d\n" % n for n in range(10_000))
    path.write_bytes(data)
    found = Tail(path)
    first = found.read(1000)
    assert first.more and len(first.lines) <= 1000 and first.lines.endswith(b"\n")
    assert first.lines + all_of(found) == data


def test_a_huge_line_is_left_out_and_never_held(tmp_path, monkeypatch):
    monkeypatch.setattr(tail, "LONGEST_LINE", 100)
    path = tmp_path / "file"
    path.write_bytes(b"a\n" + b"x" * 950 + b"\nb\n" + b"y" * 120 + b"\nc\n")
    found, lines, too_long, more = Tail(path), b"", 0, True
    while more:
        read = found.read(40)
        lines, too_long, more = lines + read.lines, too_long + read.too_long, read.more
        assert len(found._rest) <= 140
    assert (lines, too_long) == (b"a\nb\nc\n", 2)
    assert Tail(path).read().lines == b"a\nb\nc\n"  # in one slice


def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="no regular file"):
        Tail(tmp_path / "pipe").read()
