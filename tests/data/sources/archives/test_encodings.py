"""Text of any common encoding is decoded as written; what is no text is refused."""

import gzip

import pytest

from data.sources.archives import plain
from data.sources.archives.encodings import decode, encoding_of
from data.sources.streams import Unreadable
from tests.data.sources.archives.common import read

GERMAN = "Über die Größe der Städte läßt sich trefflich streiten, und früher war natürlich alles schöner.\n" * 20
RUSSIAN = "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему.\n" * 20
JAPANESE = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。\n" * 20


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        *((GERMAN, name) for name in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp1252")),
        *((RUSSIAN, name) for name in ("utf-8", "utf-16", "cp1251", "koi8-r")),
        *((JAPANESE, name) for name in ("utf-8", "utf-16", "shift_jis", "euc-jp")),
    ],
)
def test_the_encoding_is_found(tmp_path, text, encoding):
    data = text.encode(encoding)
    assert decode(data) == text
    assert data.decode(encoding_of(data)).removeprefix("\ufeff") == text  # without the fast path
    (tmp_path / "a.txt").write_bytes(text.encode(encoding) * (20 if encoding in ("latin-1", "koi8-r") else 1))
    documents, quarantined = read(tmp_path / "a.txt")
    assert documents[0].text.startswith(text) and not quarantined


def test_what_is_declared_wins_over_detection_but_not_over_valid_utf_8():
    assert decode("naïve".encode("cp1250", "replace") + b"\xbe", ("windows-1250",)).endswith("ľ")
    assert decode("naïve".encode(), ("latin-1",)) == "naïve"
    assert decode("日本".encode("iso2022_jp"), ("iso-2022-jp",)) == "日本"
    assert decode(b"caf\xe9 au lait", ("no such codec", "base64", None)) == "café au lait"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x7fELF\x02\x01\x01", "binary"),
        (b"%PDF-1.7 text", "binary"),
        (bytes(range(256)) * 9, "binary"),
        (b"text\0text", "binary"),
        (b"\1\2\3 text", "binary"),
        ("Straße und Größe ".encode() * 30 + b"\xff", "invalid utf-8"),
        (b"\xff\xfea", "invalid utf-16-le"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path, data, reason):
    with pytest.raises(Unreadable, match=reason):
        decode(data)
    (tmp_path / "a.txt").write_bytes(data)
    documents, quarantined = read(tmp_path / "a.txt")
    assert not documents and [why for _, why in quarantined] == [reason]


def test_damaged_utf_8_may_be_repaired():
    assert decode("Straße und Größe ".encode() * 30 + b"\xff", replace=True).endswith("Größe \ufffd")


def test_a_long_text_is_cut_at_blank_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(plain, "PIECE_BYTES", 1000)
    monkeypatch.setattr(plain, "MAX_LINE_BYTES", 3000)
    text = "".join(f"paragraph {k}\nof two lines, ü\n\n" for k in range(300))
    for data in (text.encode(), text.encode("utf-16")):
        (tmp_path / "a.md").write_bytes(data)
        documents, quarantined = read(tmp_path / "a.md")
        assert "".join(document.text for document in documents) == text and not quarantined
        assert all(document.text.endswith("\n\n") and len(document.text.encode()) <= 1000 for document in documents)
        assert [document.id for document in documents[:3]] == ["a.md", "a.md#1", "a.md#2"]
    data = "one ü\n".encode() * 50 + b"x" * 5000 + b"\ntwo\n\xff\n" + b"y" * 2000 + b"\n"
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(data))
    documents, quarantined = read(tmp_path / "b.txt.gz")
    assert [document.text[:5] for document in documents] == ["one ü", "yyyyy"]
    assert quarantined == [("line 51", "line over 0 MiB"), ("line 52", "invalid utf-8")]
