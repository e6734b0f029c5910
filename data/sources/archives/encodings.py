"""Decode bytes of unknown encoding, or say why they are not text."""

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
# Of PDF, zip, ELF, PNG, JPEG, GIF, gzip, bzip2, zstd and programs of DOS.
_MAGIC = tuple(b"%PDF- PK\x03\x04 \x7fELF \x89PNG \xff\xd8\xff GIF8 \x1f\x8b BZh (\xb5/\xfd MZ\x90".split())
_MARKED = (*(mark for mark, _ in _BOMS), *_MAGIC)
# Escape sequences of ISO-2022, which no other text has. ESC ( B is left out: terminals write it, too.
_ESCAPES = (
    (re.compile(rb"\x1b\$\)C"), ("iso2022_kr",)),
    (re.compile(rb"\x1b(?:\$[@B]|\$\([@DOPQ]|\([IJ])"), ("iso2022_jp", "iso2022_jp_ext", "iso2022_jp_2004")),
)
# Browsers read these encodings, by the names of Python's codecs, as wider ones.
_WIDER = {"gbk": "gb18030", "gb2312": "gb18030", "euc_kr": "cp949", "shift_jis": "cp932", "big5": "big5hkscs"}
_WIDER |= {"iso8859-1": "cp1252", "ascii": "cp1252", "iso8859-9": "cp1254", "tis-620": "cp874", "iso8859-11": "cp874"}
# Labels of the Encoding Standard (https://encoding.spec.whatwg.org/#names-and-labels) that Python does not know.
_LABELS = {"windows-949": "cp949", "x-sjis": "cp932", "x-gbk": "gb18030", "x-euc-jp": "euc_jp", "x-x-big5": "big5hkscs"}
_LABELS |= {"windows-874": "cp874", "dos-874": "cp874", "x-mac-cyrillic": "mac_cyrillic", "iso-8859-8-i": "iso8859-8"}
_RUN = re.compile(rb"[\x80-\xff]{4,}")


def decode(data: bytes, declared: Sequence[str | None] = (), *, replace: bool = False) -> str:
    """Return the text of `data` without its byte order mark.

    A mark decides, then escape sequences of ISO-2022, then valid UTF-8, then `declared` encodings, then detection by uchardet
    (resiliparse). Servers declare ISO-8859-1 by default, so it counts only if the text looks Western.

    Args:
        declared: names of encodings, the most trusted first; unknown names and None are ignored.
        replace: put U+FFFD for the invalid bytes of a damaged text, as browsers do.

    Raises: Unreadable with "binary", "invalid utf-8" (or another encoding) or "unknown encoding".
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
        if replace:
            return data.decode(encoding, "replace").removeprefix("\ufeff")
        raise Unreadable(f"invalid {encoding}") from error


def encoding_of(data: bytes, declared: Sequence[str | None] = (), *, whole: bool = True) -> str:
    """Return the name of a Python codec for `data`, which may be the beginning of a longer text if `whole` is false.

    The name is also returned for a damaged text, which does not decode. Raises: Unreadable as `decode`.
    """
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            return encoding
    if data.startswith(_MAGIC):
        raise Unreadable("binary")
    if b"\0" in data:
        return _wide(data)
    for mark, encodings in _ESCAPES if b"\x1b" in data else ():
        if mark.search(data) and (encoding := next((name for name in encodings if _decodes(data, name, whole)), None)):
            return encoding
    if _is_binary(data):
        raise Unreadable("binary")
    if _decodes(data, "utf-8", whole):
        return "utf-8"
    names = [_codec(name) for name in declared if name]
    for name in names:
        if _decodes(data, name, whole) and (name != "cp1252" or _looks_western(data)):
            return name
    if _mostly(data, "utf-8"):
        return "utf-8"
    from resiliparse.parse.encoding import detect_encoding

    # The names of HTML 5 have none for some encodings, and resiliparse then says UTF-8.
    names.insert(0, _codec(detect_encoding(data, max_len=SAMPLE_BYTES, html5_compatible=False) or "windows-1252"))
    for name in names:
        if _decodes(data, name, whole):
            return name
    for name in names[1:] + names[:1]:
        if _mostly(data, name):
            return name
    raise Unreadable("unknown encoding")


def _is_binary(data: bytes) -> bool:
    head = data[:CONTROL_BYTES]
    return len(head) - len(head.translate(None, _CONTROLS)) > CONTROL_SHARE * len(head)


def _codec(name: str) -> str:
    """Return the name of the codec that reads what is declared as `name`; `name` itself if there is none."""
    name = name.strip().lower()
    try:
        known = codecs.lookup(_LABELS.get(name, name)).name
    except (LookupError, ValueError):
        return name
    return _WIDER.get(known, known)


def _looks_western(data: bytes) -> bool:
    """Return whether letters beyond ASCII mostly stand among ASCII ones, unlike those of Cyrillic, Greek or Chinese."""
    beyond = len(data) - len(data.translate(None, bytes(range(128, 256))))
    return 2 * sum(len(run) for run in _RUN.findall(data)) <= beyond


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


def _mostly(data: bytes, encoding: str) -> bool:
    """Return whether only a few of the characters beyond ASCII are invalid."""
    try:
        text = data.decode(encoding, "replace")
    except (LookupError, UnicodeError, ValueError, TypeError):
        return False
    invalid = text.count("\ufffd")
    beyond = len(re.sub(r"[\x00-\x7f]+", "", text))
    return beyond > invalid and invalid <= DAMAGED_SHARE * beyond
