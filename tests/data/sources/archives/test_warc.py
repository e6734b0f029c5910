"""Archives of crawls give their pages with address, date and rights; damage ends one archive, a bad record only itself."""

import gzip
import json
import tracemalloc
import zlib

import pytest
import zstandard

from data.sources import archives
from data.sources.archives import warc_records
from data.sources.source import Quarantined
from tests.data.sources.archives.common import read

TEXT = "Bees gather nectar, and they make honey of it through the whole summer."


def record(body: bytes, kind="conversion", number=0, content="text/plain", **headers) -> bytes:
    about = {
        "WARC-Type": kind,
        "WARC-Record-ID": f"<urn:uuid:{number}>",
        "WARC-Target-URI": f"https://bees.example/{number}",
        "WARC-Date": "2024-05-06T07:08:09Z",
        "Content-Type": content,
        "Content-Length": str(len(body)),
    } | {name.replace("_", "-"): value for name, value in headers.items()}
    return b"WARC/1.0\r\n" + "".join(f"{k}: {v}\r\n" for k, v in about.items()).encode() + b"\r\n" + body + b"\r\n\r\n"


def response(body: bytes, number=0, head="Content-Type: text/html; charset=utf-8", status="200 OK") -> bytes:
    http = f"HTTP/1.1 {status}\r\n{head}\r\n\r\n".encode() + body
    return record(http, "response", number, "application/http; msgtype=response")


def html(text: str = TEXT) -> bytes:
    return f"<html lang=fr><head><title>Bees</title></head><body><main><p>{text}</p></main></body></html>".encode()


@pytest.mark.parametrize("ending", ["", ".gz", ".zst", ".xz"])
def test_texts_and_pages(tmp_path, ending):
    import lzma

    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress, ".xz": lzma.compress}[ending]
    whole = [
        record(b"software: test", "warcinfo", 0, "application/warc-fields"),
        record(TEXT.encode(), number=1, WARC_Identified_Content_Language="eng,fra"),
        record(b"GET / HTTP/1.1\r\n\r\n", "request", 2, "application/http; msgtype=request"),
        response(html(), 3, "Content-Type: text/html\r\nX-Robots-Tag: noai"),
        response(b"gone", 4, status="404 Not Found"),
        response(b"\x89PNG", 5, "Content-Type: image/png"),
        response("Größe".encode("latin-1") * 9, 6, "Content-Type: text/plain; charset=iso-8859-1"),
        record(html(), "resource", 7, "text/html"),
    ]
    (tmp_path / f"a.warc{ending}").write_bytes(b"".join(map(pack, whole)))
    documents, quarantined = read(tmp_path / f"a.warc{ending}")
    assert not quarantined
    assert [(d.id, d.url) for d in documents] == [(f"urn:uuid:{k}", f"https://bees.example/{k}") for k in (1, 3, 6, 7)]
    assert [d.text for d in documents] == [TEXT, TEXT, "Größe" * 9, TEXT]
    assert [d.language for d in documents] == ["eng", "fr", None, "fr"]
    assert {d.date for d in documents} == {"2024-05-06T07:08:09Z"}
    assert documents[1].metadata == {"robots": "noai", "title": "Bees"}


def test_a_name_without_an_ending_is_recognised_by_its_content(tmp_path):
    (tmp_path / "archive.gz").write_bytes(gzip.compress(record(TEXT.encode())))
    assert [d.text for d in read(tmp_path / "archive.gz")[0]] == [TEXT]


def test_encodings_of_servers_are_undone(tmp_path):
    chunked = b"%x\r\n" % len(html()) + html() + b"\r\n0\r\n\r\n"
    bodies = [
        (gzip.compress(html()), "Content-Encoding: gzip"),
        (html(), "Content-Encoding: gzip"),  # already undone
        (chunked, "Transfer-Encoding: chunked"),
        (b"zz no chunk", "Transfer-Encoding: chunked\r\nContent-Encoding: gzip"),
        (gzip.compress(html())[:20] + b"damage", "Content-Encoding: gzip"),
        (gzip.compress(bytes(40 << 20)), "Content-Encoding: gzip"),
        (b"\x00no brotli", "Content-Encoding: br"),
        (html(), "A: b"),
    ]
    raw = zlib.compressobj(wbits=-15)
    bodies += [
        (raw.compress(html()) + raw.flush(), "Content-Encoding: deflate"),
        (zlib.compress(html()), "Content-Encoding: deflate"),
        (html(), "Content-Encoding: deflate"),
        (zstandard.compress(html()), "Content-Encoding: zstd"),
        (html(), "Content-Encoding: br"),
        (b"\x1f\x9d\x90<\x00\x01", "Content-Encoding: compress"),
    ]
    data = b"".join(response(body, k, f"Content-Type: text/html\r\n{head}") for k, (body, head) in enumerate(bodies))
    (tmp_path / "a.warc").write_bytes(data)
    documents, quarantined = read(tmp_path / "a.warc")
    found = [d.id.rpartition(":")[2] for d in documents if d.text == TEXT]
    assert found == ["0", "1", "2", "7", "8", "9", "10", "11", "12"] and not any(
        "truncated" in (d.metadata or {}) for d in documents
    )
    reasons = ["no text", "record over 16 MiB", "bad br body", "compress body cannot be decoded"]
    assert quarantined == [
        (f"record {k + 1} https://bees.example/{k}", why) for k, why in zip((4, 5, 6, 13), reasons, strict=True)
    ]


def test_what_the_crawler_cut_is_no_loss(tmp_path):
    head = "Content-Type: text/html\r\nContent-Length: 9999"
    cut = response(html(), 0, head).replace(b"WARC-Date", b"WARC-Truncated: length\r\nWARC-Date")
    (tmp_path / "a.warc").write_bytes(cut)
    [document], quarantined = read(tmp_path / "a.warc")
    assert document.metadata["truncated"] == "length" and not quarantined


LONG = " ".join(f"Bee {k} gathers nectar and makes honey of it." for k in range(6000))


def test_a_body_that_is_cut_is_a_document_that_says_so(tmp_path):
    import brotli

    raw = zlib.compressobj(wbits=-15)
    bodies = [
        (gzip.compress(html(LONG)), "gzip"),
        (raw.compress(html(LONG)) + raw.flush(), "deflate"),
        (brotli.compress(html(LONG)), "br"),
        (zstandard.compress(html(LONG)), "zstd"),
    ]
    whole = [response(body[: 2 * len(body) // 3], 0, f"Content-Type: text/html\r\nContent-Encoding: {n}") for body, n in bodies]
    chunk = b"%x\r\n" % len(html(LONG)) + html(LONG)
    whole.append(response(chunk[: len(chunk) // 2], 0, "Content-Type: text/html\r\nTransfer-Encoding: chunked"))
    whole.append(response(chunk + b"\r\n", 0, "Content-Type: text/html\r\nTransfer-Encoding: chunked"))
    whole.append(response(html(LONG)[:9000], 0, "Content-Type: text/html\r\nContent-Length: 9001"))
    for data, name in zip(whole, ["gzip", "deflate", "br", "zstd", "chunked", "chunked", "http"], strict=True):
        (tmp_path / "a.warc").write_bytes(data)
        documents, quarantined = read(tmp_path / "a.warc")
        [document] = documents
        assert document.text.startswith(LONG[:500]) and document.metadata["truncated"] == name
        assert quarantined == [("record 1 https://bees.example/0", f"cut {name} body")]


def test_a_bad_record_is_quarantined_and_the_rest_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(warc_records, "MAX_RECORD_BYTES", 1 << 20)
    whole = [
        response(b"<div>" * 100_000),
        record(b"x" * (2 << 20)),
        record(b"\0binary"),
        record(b" \n"),
        record(b"no http", "response", 9, "application/http; msgtype=response"),
        record(TEXT.encode(), number=1),
    ]
    (tmp_path / "a.wet").write_bytes(b"".join(whole))
    documents, quarantined = read(tmp_path / "a.wet")
    assert [d.text for d in documents] == [TEXT]
    reasons = ["html too deep", "record over 1 MiB", "binary", "no text", "no http header"]
    assert quarantined == [(f"record {k + 1} https://bees.example/{9 * (k == 4)}", why) for k, why in enumerate(reasons)]


TEXTS = [json.dumps([k * j % 9973 for j in range(400)]) for k in range(6)]
NAMES = [f"record {k + 1} https://bees.example/{k}" for k in range(6)]


def lost(path) -> list[tuple[str, str, tuple[int, int]]]:
    found = archives.read(str(path), path.name)
    return [(one.where, one.reason, one.place) for one in found if isinstance(one, Quarantined)]


def damage(part: bytes, kind: str) -> bytes:
    at = len(part) // 2
    damaged = {"zeros": part[:at] + bytes(40) + part[at + 40 :], "hole": part[:at] + part[at + 100 :], "cut": part[:at]}
    damaged |= {"checksum": part[:-6] + b"wrong!", "head": b"wrong!" + part[6:], "tail": part[:-3]}
    return damaged[kind]


def test_reading_goes_on_behind_a_damaged_member(tmp_path):
    path = tmp_path / "a.wet.gz"
    parts = [gzip.compress(record(text.encode(), number=k)) for k, text in enumerate(TEXTS)]
    for kind in ("zeros", "hole", "cut", "checksum", "head", "tail"):
        for k in (0, 3, 5):
            bad = damage(parts[k], kind)
            path.write_bytes(b"".join([*parts[:k], bad, *parts[k + 1 :]]))
            documents, _ = read(path)
            assert [d.text for d in documents] == TEXTS[:k] + TEXTS[k + 1 :]
            start = sum(map(len, parts[:k]))
            [(where, reason, place)] = lost(path)
            assert where.split()[:2] == NAMES[k].split()[:2] and (kind not in ("checksum", "tail") or where == NAMES[k])
            assert reason == ("truncated gzip" if k == 5 and kind in ("cut", "tail") else "damaged gzip")
            assert place == (start, start + len(bad))
    path.write_bytes(b"".join(parts[:3]) + parts[3][:5])
    assert lost(path) == [("record 4", "truncated gzip", (sum(map(len, parts[:3])), sum(map(len, parts[:3])) + 5))]


@pytest.mark.parametrize("length", ["999999999999", "99999999", "20000", "300", "9" * 30, "-5", "x"])
@pytest.mark.parametrize("packing", ["plain", "members", "one member"])
def test_a_wrong_length_costs_only_its_record(tmp_path, monkeypatch, length, packing):
    monkeypatch.setattr(warc_records, "MAX_RECORD_BYTES", 1 << 14)
    path = tmp_path / ("a.wet" if packing == "plain" else "a.wet.gz")
    whole = [record(text.encode(), number=k) for k, text in enumerate(TEXTS)]
    whole[2] = record(TEXTS[2].encode(), number=2, Content_Length=length)
    if packing == "members":
        whole = [gzip.compress(one) for one in whole]
    data = b"".join(whole)
    path.write_bytes(gzip.compress(data) if packing == "one member" else data)
    documents, _ = read(path)
    # Without members or the size of the content, a length over the limit is believed.
    swallowed = packing == "one member" and length in ("99999999", "20000")
    assert [d.text for d in documents] == TEXTS[:2] + ([] if swallowed else TEXTS[3:])
    [(where, reason, place)] = lost(path)
    assert where == NAMES[2] and reason == ("truncated record" if swallowed else "wrong Content-Length")
    start = sum(map(len, whole[:2]))
    assert place == (start, start + len(whole[2])) if packing != "one member" else place[1] <= path.stat().st_size


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_what_is_no_record_is_named_and_skipped(tmp_path, ending):
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[ending]
    junk = [
        b"no warc\n",
        b"WARC/1.0\r\nA: " + b"x" * 100_000 + b"\r\n\r\n",
        b"WARC/1.0\r\nWARC-Type: conversion\r\n\r\nabc\r\n",
    ]
    path = tmp_path / f"a.wet{ending}"
    for bad, reason in zip(junk, ["not a WARC record", "warc header too long", "wrong Content-Length"], strict=True):
        parts = [pack(one) for one in (record(TEXT.encode(), number=0), bad, record(TEXT.encode(), number=2))]
        path.write_bytes(b"".join(parts))
        assert [d.text for d in read(path)[0]] == [TEXT, TEXT]
        start = len(parts[0])
        assert lost(path) == [("record 2", reason, (start, start + len(parts[1])))]
    (tmp_path / "b.warc").write_bytes(b"garbage\n" * 1000)
    assert lost(tmp_path / "b.warc") == [("record 1", "not a WARC record", (0, 8000))]
    first, cut = record(TEXT.encode()), record(TEXT.encode(), number=1)[:-30]
    (tmp_path / "c.warc").write_bytes(first + cut)
    assert lost(tmp_path / "c.warc") == [(NAMES[1], "truncated record", (len(first), len(first + cut)))]


def test_hostile_archives_take_little_time_and_memory(tmp_path):
    head = b"WARC/1.0\r\nWARC-Type: response\r\nContent-Length: 99999999\r\n\r\n"
    (tmp_path / "many.warc").write_bytes(head * 5_000)  # each claims all that follow
    (tmp_path / "many.warc.gz").write_bytes(gzip.compress(head * 5_000))
    (tmp_path / "members.warc.gz").write_bytes(gzip.compress(head)[:-9] * 2_000)
    (tmp_path / "zeros.warc.gz").write_bytes(gzip.compress(record(TEXT.encode()) + bytes(40 << 20), 1))
    (tmp_path / "bomb.warc.gz").write_bytes(gzip.compress(head + b"x" * (40 << 20), 1))
    folds = b"HTTP/1.1 200 OK\r\nA: b\r\n" + b" c\r\n" * 200_000
    (tmp_path / "folds.warc").write_bytes(record(folds, "response", 0, "application/http"))
    tracemalloc.start()
    try:
        for name in ("many.warc", "many.warc.gz", "members.warc.gz", "zeros.warc.gz", "bomb.warc.gz", "folds.warc"):
            found = list(archives.read(str(tmp_path / name), name))
            assert len(found) >= 1
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def test_a_record_may_continue_in_the_next_member(tmp_path):
    data = b"".join(record(text.encode(), number=k) for k, text in enumerate(TEXTS))
    parts = [gzip.compress(data[at : at + 700]) for at in range(0, len(data), 700)]
    (tmp_path / "a.wet.gz").write_bytes(b"".join(parts))
    documents, quarantined = read(tmp_path / "a.wet.gz")
    assert [d.text for d in documents] == TEXTS and not quarantined


def test_a_record_over_the_limit_is_skipped_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(warc_records, "MAX_RECORD_BYTES", 1 << 10)
    inner = record(TEXT.encode(), number=7) * 9  # records in the body of another one
    data = record(TEXT.encode()) + record(inner, "resource", 1, "application/warc") + record(TEXT.encode(), number=2)
    for name, packed in (("a.warc", data), ("a.warc.gz", gzip.compress(data)), ("a.warc.zst", zstandard.compress(data))):
        (tmp_path / name).write_bytes(packed)
        documents, quarantined = read(tmp_path / name)
        assert [d.id[-1] for d in documents] == ["0", "2"] and quarantined == [(NAMES[1], "record over 0 MiB")]


@pytest.mark.parametrize("version", ["WARC/0.17", "WARC/0.18", "WARC/1.1"])
def test_other_versions_and_sloppy_headers(tmp_path, version):
    one = record(TEXT.encode(), number=0)
    page = response(html(), 1).replace(b"WARC-Target-URI: https://bees.example/1", b"warc-target-uri: <https://bees.example/1>")
    bare = record(html(), "response", 2, "application/http; msgtype=response")
    lines = record(TEXT.encode(), number=3).replace(b"\r\n", b"\n")
    folded = record(TEXT.encode(), number=4).replace(b"WARC-Date: ", b"WARC-Date:\r\n ")
    dns = record(b"20240101 bees.example. 300 IN A 192.0.2.1", "response", 5, "text/dns")
    data = b"".join([one, page, bare, lines, folded, dns]).replace(b"WARC/1.0", version.encode())
    (tmp_path / "a.warc").write_bytes(data)
    documents, quarantined = read(tmp_path / "a.warc")
    assert [(d.url, d.text) for d in documents] == [(f"https://bees.example/{k}", TEXT) for k in range(5)] and not quarantined
    assert {d.date for d in documents} == {"2024-05-06T07:08:09Z"}
