"""Rows give documents with what they say about themselves; a bad row is quarantined, and the rest goes on."""

import datetime
import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from data.sources.archives import rows
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
    assert quarantined == [(f"line {2 * k + 1}", reason) for k, reason in enumerate(bad.values())] + [("", "truncated gzip")]


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
