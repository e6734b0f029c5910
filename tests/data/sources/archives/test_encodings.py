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
KOREAN = "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.\n" * 20
CHINESE = "人人生而自由,在尊严和权利上一律平等。他们赋有理性和良心。\n" * 20
TAIWANESE = "人人生而自由,在尊嚴和權利上一律平等。他們賦有理性和良心,並應以兄弟關係的精神相對待。\n" * 20
GREEK = "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια.\n" * 20
THAI = "เราทุกคนเกิดมาอย่างอิสระ เราทุกคนมีความคิดและความเข้าใจเป็นของเราเอง\n" * 20


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        *((GERMAN, name) for name in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp1252")),
        *((RUSSIAN, name) for name in ("utf-8", "utf-16", "cp1251", "koi8-r")),
        *((JAPANESE, name) for name in ("utf-8", "utf-16", "shift_jis", "euc-jp", "iso2022_jp")),
        *((KOREAN, name) for name in ("euc-kr", "cp949", "iso2022_kr")),
        *((CHINESE, "gb18030"), (TAIWANESE, "big5"), (GREEK, "cp1253"), (THAI, "cp874")),
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


@pytest.mark.parametrize("declared", ["utf-8", "iso-8859-1", "windows-1252"])
@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        *((JAPANESE, name) for name in ("iso2022_jp", "shift_jis", "euc-jp")),
        *((KOREAN, "euc-kr"), (KOREAN, "iso2022_kr"), (CHINESE, "gb18030"), (TAIWANESE, "big5")),
        *((RUSSIAN, "koi8-r"), (RUSSIAN, "cp1251"), (GREEK, "cp1253"), (GERMAN, "cp1252")),
    ],
)
def test_a_wrong_declaration_does_not_spoil_the_text(text, encoding, declared):
    assert decode(text.encode(encoding), (declared,)) == text


def test_labels_of_browsers_are_known():
    for text, encoding, label in (
        (JAPANESE, "cp932", "x-sjis"),
        (KOREAN, "cp949", "windows-949"),
        (THAI, "cp874", "windows-874"),
    ):
        assert decode(text[:30].encode(encoding), (label,)) == text[:30]


def test_a_character_that_is_cut_or_damaged_does_not_lose_the_text():
    for text, encoding in ((KOREAN, "euc-kr"), (JAPANESE, "euc-jp")):
        text = text.rstrip("\n.。")
        cut = text.encode(encoding)[:-1]
        for declared in (encoding, None):
            assert decode(cut, (declared,), replace=True) == text[:-1] + "\ufffd"
    with pytest.raises(Unreadable, match="invalid cp949"):
        decode(KOREAN.rstrip("\n").encode("euc-kr") + b"\xb0", ("euc-kr",))


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


def test_a_text_whose_archive_is_cut_is_read_up_to_there(tmp_path):
    packed = gzip.compress("".join(f"line {k} of the text\n" for k in range(5000)).encode())
    (tmp_path / "a.txt.gz").write_bytes(packed[: len(packed) // 2])
    [document], quarantined = read(tmp_path / "a.txt.gz")
    assert document.text.startswith("line 0 of the text\nline 1 of") and document.text.endswith("text\n")
    assert quarantined == [("", "truncated gzip")]


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
