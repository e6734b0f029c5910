"""Archives of crawls give their pages with address, date and rights; damage ends one archive, a bad record only itself."""

import gzip
import json

import pytest
import zstandard

from data.sources.archives import warc
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
        (b"no brotli", "Content-Encoding: br"),
        (html(), "A: b"),
    ]
    data = b"".join(response(body, k, f"Content-Type: text/html\r\n{head}") for k, (body, head) in enumerate(bodies))
    (tmp_path / "a.warc").write_bytes(data)
    documents, quarantined = read(tmp_path / "a.warc")
    assert [d.id[-1] for d in documents if d.text == TEXT] == ["0", "1", "2", "7"]
    assert ("record 5", "no text") in quarantined and ("record 7", "bad br body") in quarantined
    assert ("record 6", "record over 16 MiB") in quarantined


def test_a_bad_record_is_quarantined_and_the_rest_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(warc, "MAX_RECORD_BYTES", 1 << 20)
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
    assert quarantined == [
        *(("record 1", "html too deep"), ("record 2", "record over 1 MiB"), ("record 3", "binary"), ("record 4", "no text"))
    ]


def test_damage_gives_what_came_before(tmp_path):
    texts = [json.dumps([k * j % 9973 for j in range(400)]) for k in range(5)]
    members = [gzip.compress(record(text.encode(), number=k)) for k, text in enumerate(texts)]
    whole = b"".join(members)
    start = sum(map(len, members[:3]))
    damaged = bytearray(whole)
    damaged[start + 300 : start + 400] = bytes(100)
    short = b"WARC/1.0\r\nWARC-Type: conversion\r\nContent-Length: 99\r\n\r\nabc"
    for data, reason in (
        (whole[: start + 5], "truncated gzip"),
        (whole[: start + 200], "truncated gzip"),
        (whole[: start + len(members[3]) - 3], "truncated gzip"),
        (bytes(damaged), "damaged gzip"),
        (whole[:start] + gzip.compress(b"no warc"), "damaged warc"),
        (whole[:start] + gzip.compress(b"WARC/1.0\r\nA: " + b"x" * 100_000), "warc header too long"),
        (whole[:start] + gzip.compress(short), "truncated record"),
    ):
        (tmp_path / "a.wet.gz").write_bytes(data)
        documents, quarantined = read(tmp_path / "a.wet.gz")
        assert [d.text for d in documents[:3]] == texts[:3]
        assert [why for _, why in quarantined] == [reason]
    (tmp_path / "b.warc").write_bytes(b"garbage\n" * 1000)
    assert read(tmp_path / "b.warc") == ([], [("after record 0", "damaged warc")])
