"""Rows give documents with what they say about themselves; a bad row is quarantined, and the rest goes on."""

import bz2
import datetime
import gzip
import json
import random

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from data.sources import archives
from data.sources.archives import rows
from data.sources.source import Document, Quarantined
from tests.data.sources.archives.common import read

ROW = {
    "text": "one",
    "id": "first",
    "url": "https://a.example",
    "license": "MIT",
    "lang": "en",
    "timestamp": "2020-01-02",
    "title": "T",
    "score": 3,
    "metadata": {"robots": "noai", "n": 1},
}


def test_json_lines_keep_what_is_known(tmp_path):
    (tmp_path / "a.jsonl").write_text("\ufeff" + json.dumps(ROW) + '\n\n{"text": " "}\n{"text": "two", "source": "book"}\n')
    documents, quarantined = read(tmp_path / "a.jsonl")
    assert not quarantined
    one, two = documents
    assert (one.id, one.text, one.origin, one.licence, one.url, one.language, one.date) == (
        *("first", "one", "https://a.example", "MIT", "https://a.example", "en", "2020-01-02"),
    )
    assert one.metadata == {"title": "T", "robots": "noai"}
    assert (two.id, two.origin, two.metadata) == ("a.jsonl:4", "book", None)


def test_bad_lines_do_not_end_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "MAX_LINE_BYTES", 1 << 20)
    good = b'{"text": "good"}\n'
    bad = {
        b"{": "not json",
        b"[1]": "not an object",
        b'{"body": 1}': "no text field",
        b'{"text": 1}': "text not a string",
        b'{"text": "\\ud800"}': "lone surrogate",
        b'{"text": "\xff"}': "invalid utf-8",
        b"[" * 100_000: "not json",
        b'{"text": "' + b"x" * (2 << 20) + b'"}': "line over 1 MiB",
    }
    data = b"".join(line + b"\n" + good for line in bad)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(data)[:-4])
    documents, quarantined = read(tmp_path / "a.jsonl.gz")
    assert [d.text for d in documents] == ["good"] * len(bad)
    assert quarantined == [(f"line {2 * k + 1}", reason) for k, reason in enumerate(bad.values())] + [
        ("line 17", "truncated gzip")
    ]


CHECKED = zstandard.ZstdCompressor(write_checksum=True).compress


@pytest.mark.parametrize(("ending", "pack"), [("gz", gzip.compress), ("bz2", bz2.compress), ("zst", CHECKED)])
def test_lines_behind_a_damaged_member_are_read(tmp_path, ending, pack):
    path = tmp_path / f"a.jsonl.{ending}"
    rows = [json.dumps({"text": f"{k} " + random.Random(k).randbytes(3000).hex()}).encode() + b"\n" for k in range(9)]
    first, middle, last = (pack(b"".join(rows[k : k + 3])) for k in (0, 3, 6))
    damaged = middle[: len(middle) // 2] + bytes(30) + middle[len(middle) // 2 + 30 :]
    path.write_bytes(first + damaged + last)
    found = list(archives.read(str(path), path.name))
    texts = [one.text[0] for one in found if isinstance(one, Document)]
    assert texts[:3] == ["0", "1", "2"] and texts[-3:] == ["6", "7", "8"] and len(texts) < 9
    lost = [one for one in found if isinstance(one, Quarantined) and one.reason.startswith("damaged")]
    assert len(lost) == 1 and lost[0].where.startswith("line ")
    assert len(first) <= lost[0].place[0] < lost[0].place[1] == len(first + damaged)


def test_a_damaged_row_group_costs_only_itself(tmp_path):
    path, texts = tmp_path / "a.parquet", [random.Random(k).randbytes(2000).hex() for k in range(30)]
    table = pyarrow.table({"text": texts})
    pyarrow.parquet.write_table(table, path, row_group_size=10, use_dictionary=False)
    chunk = pyarrow.parquet.read_metadata(path).row_group(1).column(0)
    first, size = chunk.data_page_offset, chunk.total_compressed_size
    data = bytearray(path.read_bytes())
    data[first : first + 60] = b"\xff" * 60
    path.write_bytes(data)
    found = list(archives.read(str(path), path.name))
    assert [one.text for one in found if isinstance(one, Document)] == texts[:10] + texts[20:]
    lost = Quarantined(str(path), "rows 11 to 20", "damaged parquet", (first, first + size))
    assert [one for one in found if isinstance(one, Quarantined)] == [lost]


@pytest.mark.parametrize("dictionary", [False, True])
def test_parquet(tmp_path, dictionary):
    texts = pyarrow.array(["eins", None, " ", "zwei ü"] * 50)
    table = pyarrow.table(
        {
            "body": texts.dictionary_encode() if dictionary else texts,
            "id": [str(k) for k in range(200)],
            "url": [f"https://a.example/{k}" for k in range(200)],
            "n": list(range(200)),
            "date": [datetime.datetime(2020, 1, 2)] * 200,
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=70)
    documents, quarantined = read(tmp_path / "a.parquet", text_key="body")
    assert [d.text for d in documents] == ["eins", "zwei ü"] * 50 and not quarantined
    assert (documents[1].id, documents[1].url, documents[1].date) == ("3", "https://a.example/3", "2020-01-02T00:00:00")
    assert read(tmp_path / "a.parquet") == ([], [("", "no text field")])
    assert read(tmp_path / "a.parquet", text_key="n") == ([], [("", "text not a string")])


def test_bad_parquet(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "MAX_TEXT_BYTES", 1000)
    table = pyarrow.table({"text": ["a", "x" * 2000, "b"]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    documents, quarantined = read(tmp_path / "a.parquet")
    assert [d.text for d in documents] == ["a", "b"] and quarantined == [("row 2", "text over 0 MiB")]
    data = (tmp_path / "a.parquet").read_bytes()
    for wrong in (b"", b"PAR1", data[:-20], data[:10] + bytes(40) + data[50:], b"nothing of the kind"):
        (tmp_path / "b.parquet").write_bytes(wrong)
        assert [why for _, why in read(tmp_path / "b.parquet")[1]] == ["damaged parquet"]
    monkeypatch.setattr(rows, "MAX_COLUMN_BYTES", 10)
    assert read(tmp_path / "a.parquet")[1] == [("row group 0", "text column over 0 GiB")]
