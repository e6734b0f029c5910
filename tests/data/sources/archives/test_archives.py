"""Inputs of any kind are found in a fixed order, and hostile files never raise, block or stop the rest."""

import gzip
import json
import os
import tracemalloc

import pytest

from data.sources import archives
from data.sources.archives import Options
from data.sources.source import Document, Quarantined
from lm.errors import UserError


def read_all(input, **options) -> tuple[dict[str, str], dict[str, str]]:
    """Return texts by id, and reasons by the name of the file."""
    options = Options(**options)
    found = [one for path, id in archives.units(str(input), options) for one in archives.read(path, id, options)]
    texts = {one.id: one.text for one in found if isinstance(one, Document)}
    return texts, {os.path.basename(one.path): one.reason for one in found if isinstance(one, Quarantined)}


def test_hostile_files_are_quarantined_and_the_rest_goes_through(tmp_path):
    (tmp_path / "good.txt").write_text("good")
    (tmp_path / "z.jsonl.gz").write_bytes(gzip.compress(b'{"text": "also good"}\n'))
    os.mkfifo(tmp_path / "pipe.warc.gz")
    os.symlink("/dev/zero", tmp_path / "zero.html")
    os.symlink("loop", tmp_path / "loop")
    os.symlink("nowhere", tmp_path / "broken.txt")
    os.symlink(".", tmp_path / "self")
    (tmp_path / "cut.warc.gz").write_bytes(gzip.compress(b"WARC/1.0\r\n" * 100)[:-4])
    (tmp_path / "bomb.html").write_bytes(b"<div>" * 900_000)
    (tmp_path / "huge.html").write_bytes(b"<div>" * 2_000_000)
    (tmp_path / "line.txt").write_bytes(b"x" * (17 << 20))
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)))
    (tmp_path / "picture").write_bytes(b"\x89PNG\r\n")
    (tmp_path / "old.arc.gz").write_bytes(gzip.compress(b"filedesc://old.arc 0.0.0.0 20010101000000 text/plain 9\n1 0 x\n"))
    (tmp_path / "empty.parquet").write_bytes(b"")
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / os.fsdecode(b"b\xffd.txt")).write_text("named in bytes")
    texts, reasons = read_all(tmp_path)
    assert texts == {"good.txt": "good", "z.jsonl.gz:1": "also good", "b\\xffd.txt": "named in bytes"}
    assert reasons == {
        "pipe.warc.gz": "not a regular file",
        "zero.html": "not a regular file",
        "loop": "link loop",
        "broken.txt": "missing file",
        "cut.warc.gz": "truncated gzip",
        "bomb.html": "html too deep",
        "huge.html": "html over 5 MiB",
        "line.txt": "line over 16 MiB",
        "binary.txt": "binary",
        "picture": "binary",
        "old.arc.gz": "arc, the format before warc; convert it with warcio",
        "empty.parquet": "damaged parquet",
        "empty.txt": "no text",
    }


LONG = {
    "a.jsonl.gz": b'{"text": "',
    "a.txt.gz": b"",
    "a.mbox.gz": b"From a\n",
    "b.mbox.gz": b"",
    "a.eml.gz": b"Subject: ",
    "a.xml.gz": b"<mediawiki><page><text>",
    "a.html.gz": b"<p>",
    "a.warc.gz": b"WARC/1.0\r\n",
    "a.py.gz": b"",
}


@pytest.mark.parametrize(("name", "head"), LONG.items())
def test_a_long_line_in_a_small_file_takes_little_memory(tmp_path, name, head):
    (tmp_path / name).write_bytes(gzip.compress(head + b"x" * (100 << 20), 1))
    tracemalloc.start()
    try:
        texts, reasons = read_all(tmp_path / name)
        assert tracemalloc.get_traced_memory()[1] < 80 << 20
    finally:
        tracemalloc.stop()
    assert not texts and reasons


def test_many_small_files_stream(tmp_path):
    for folder in range(20):
        (tmp_path / f"{folder:02}").mkdir()
        for k in range(100):
            (tmp_path / f"{folder:02}/{k:02}.txt").write_text(f"{folder} {k}")
    found = archives.units(str(tmp_path))
    assert next(found) == (f"{tmp_path}/00/00.txt", "00/00.txt")
    texts, reasons = read_all(tmp_path)
    assert len(texts) == 2000 and list(texts) == sorted(texts) and not reasons


def test_globs_lists_and_missing_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c/d").mkdir(parents=True)
    for name in ("c/a.txt", "c/d/b.txt", "c/d/c.md"):
        (tmp_path / name).write_text(name)
    assert list(read_all("c/**/*.txt")[0]) == ["a.txt", "d/b.txt"]
    assert list(read_all("c/a.txt, c/d/*.md")[0]) == ["a.txt", "c.md"]
    for missing in ("c/x.txt", "nothing/*", "no_such_name"):
        with pytest.raises(UserError):
            list(archives.units(missing))
    with pytest.raises(UserError, match="choose one of"):
        Options(format="docx")


def test_a_bucket(tmp_path):
    import fsspec

    system = fsspec.filesystem("memory")
    system.pipe("/bucket/b/two.jsonl.gz", gzip.compress(json.dumps({"text": "two"}).encode()))
    system.pipe("/bucket/a.txt", b"one")
    system.pipe("/bucket/bad.html", b"<p>")
    texts, reasons = read_all("memory://bucket")
    assert texts == {"a.txt": "one", "b/two.jsonl.gz:1": "two"} and reasons == {"bad.html": "no text"}
    assert list(read_all("memory://bucket/*.txt")[0]) == ["a.txt"]
    assert list(read_all("memory://bucket/a.txt")[0]) == ["a.txt"]
    with pytest.raises(UserError, match="nothing is there"):
        list(archives.units("memory://bucket/none"))
    with pytest.raises(UserError, match="nosuchscheme"):
        list(archives.units("nosuchscheme://bucket/none"))
    assert [one.reason for one in archives.read("memory://bucket/none.txt", "none.txt")] == ["missing file"]
