"""Decode bytes of unknown encoding, or say why they are not text."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence

from data.sources.streams import Unreadable

SAMPLE_BYTES = 1 << 17  # what the detector looks at, resiliparse's own default
CONTROL_BYTES = 8_000  # where control characters are counted; git looks at as many
CONTROL_SHARE = 0.01  # above this share of control characters, bytes are no text
DAMAGED_SHARE = 0.1  # up to this share of invalid sequences among those beyond ASCII, text is damaged UTF-8

_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_CONTROLS = bytes(set(range(32)) - set(b"\t\n\v\f\r\x1b"))
_MAGIC = (
    b"%PDF-",
    b"PK\x03\x04",
    b"\x7fELF",
    b"\x89PNG",
    b"\xff\xd8\xff",
    b"GIF8",
    b"\x1f\x8b",
    b"BZh",
    b"(\xb5/\xfd",
    b"MZ\x90",
)
_MARKED = (*(mark for mark, _ in _BOMS), *_MAGIC)
# Browsers read these encodings as wider ones.
_WIDER = {"gbk": "gb18030", "gb2312": "gb18030", "euc-kr": "cp949", "shift_jis": "cp932", "iso-8859-1": "cp1252"}
_WIDER |= {"us-ascii": "cp1252", "ascii": "cp1252", "latin-1": "cp1252", "iso-8859-8-i": "iso-8859-8"}


def decode(data: bytes, declared: Sequence[str | None] = (), *, replace: bool = False) -> str:
    """Return the text of `data` without its byte order mark.

    A mark decides, then valid UTF-8, then `declared` encodings, then detection by uchardet (resiliparse).

    Args:
        declared: names of encodings, the most trusted first; unknown names and None are ignored.
        replace: put U+FFFD for the invalid bytes of damaged UTF-8, as browsers do.

    Raises: Unreadable with "binary", "invalid utf-8" or "unknown encoding".
    """
    if not data.startswith(_MARKED) and b"\0" not in data and b"\x1b" not in data and not _is_binary(data):
        try:
            return data.decode()  # the usual case, decoded once
        except UnicodeDecodeError:
            pass
    encoding = encoding_of(data, declared)
    try:
        return data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        if encoding == "utf-8" and replace:
            return data.decode("utf-8", "replace").removeprefix("\ufeff")
        raise Unreadable(f"invalid {encoding}") from error


def encoding_of(data: bytes, declared: Sequence[str | None] = (), *, whole: bool = True) -> str:
    """Return the name of a Python codec for `data`, which may be the beginning of a longer text if `whole` is false.

    "utf-8" is also returned for damaged UTF-8, which does not decode. Raises: Unreadable as `decode`.
    """
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            return encoding
    if data.startswith(_MAGIC):
        raise Unreadable("binary")
    if b"\0" in data:
        return _wide(data)
    if _is_binary(data):
        raise Unreadable("binary")
    if b"\x1b" not in data and _decodes(data, "utf-8", whole):  # ISO-2022 is ASCII with escapes
        return "utf-8"
    for name in filter(None, declared):
        encoding = _WIDER.get(name.strip().lower(), name.strip())
        if _decodes(data, encoding, whole):
            return encoding
    if _mostly_utf8(data):
        return "utf-8"
    return _detected(data, whole)


def _is_binary(data: bytes) -> bool:
    head = data[:CONTROL_BYTES]
    return len(head) - len(head.translate(None, _CONTROLS)) > CONTROL_SHARE * len(head)


def _detected(data: bytes, whole: bool) -> str:
    from resiliparse.parse.encoding import detect_encoding

    name = detect_encoding(data, max_len=SAMPLE_BYTES) or "windows-1252"
    encoding = _WIDER.get(name.lower(), name)
    if _decodes(data, encoding, whole):
        return encoding
    raise Unreadable("unknown encoding")


def _wide(data: bytes) -> str:
    """Return UTF-16 without a mark, if every second byte is often zero and the other one never is."""
    head = data[:4096]
    even, odd = head[::2].count(0), head[1::2].count(0)
    for few, many, encoding in ((even, odd, "utf-16-le"), (odd, even, "utf-16-be")):
        if few == 0 and many > 0.4 * len(head) / 2 and _decodes(data[: len(data) & ~1], encoding, False):
            return encoding
    raise Unreadable("binary")


def _decodes(data: bytes, encoding: str, whole: bool) -> bool:
    try:
        decoder = codecs.getincrementaldecoder(encoding)()
        return isinstance(decoder.decode(data, whole), str)
    except (LookupError, UnicodeError, ValueError, TypeError):  # no such codec, or one that gives bytes
        return False


def _mostly_utf8(data: bytes) -> bool:
    text = data.decode("utf-8", "replace")
    invalid = text.count("\ufffd")
    beyond = len(re.sub(r"[\x00-\x7f]+", "", text))
    return beyond > invalid and invalid <= DAMAGED_SHARE * beyond
