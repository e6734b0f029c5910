"""Fold a text to plain characters for searching: full-width digits, odd spaces and dashes, and nothing invisible.

HTML entities are decoded before: &#64; hides an address from harvesters, and &nbsp; keeps a number on one line.
"""

import functools
import html
import re
import unicodedata
from typing import NamedTuple

import numpy as np

# Characters without width and without effect on the meaning, which break a pattern when they stand inside a number.
INVISIBLE = (
    "\u00ad\u034f\u061c\u180e\u200b\u200c\u200d\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2061\u2062\u2063\u2064\ufeff"
)
SPACES = "\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"
DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d"
DOTS = "\u2024\u3002\uff0e\uff61"
LAST_LETTER = 0x52F  # the end of Latin, Greek and Cyrillic: "邮箱li@example.cn" begins at "li"
_MATHEMATICAL_DIGITS = 0x1D7CE, 0x1D7FF  # five styles of 0-9

_ENTITY = re.compile(r"&(?:#(?:\d{1,7}|[xX][0-9A-Fa-f]{1,6})|[A-Za-z]{2,31}\d{0,2});")  # the longest name has 31 letters


class Span(NamedTuple):
    """Characters start … end − 1 of a text are of a kind: email, phone, ip, card, iban, ssn or secret."""

    start: int
    end: int
    kind: str


def decode_entities(text: str) -> tuple[str, np.ndarray | None]:
    """Return the text with characters in place of HTML entities, and where they were; None if there is no entity.

    Returns:
        places: int64 [characters + 1]: character i of the result was text[places[i] : places[i + 1]]. Entities that stand for
            two characters, and unknown ones, stay.
    """
    if "&" not in text:
        return text, None
    pieces, places, reached = [], [], 0
    for match in _ENTITY.finditer(text):
        said = html.unescape(match[0])
        if len(said) == 1:
            pieces += text[reached : match.start()], said
            places.append(np.arange(reached, match.start() + 1))
            reached = match.end()
    if not pieces:
        return text, None
    return "".join(pieces) + text[reached:], np.concatenate((*places, np.arange(reached, len(text) + 1)))


def fold(text: str) -> tuple[str, np.ndarray | None]:
    """Return the folded text and the index in `text` of each of its characters, int64, or None if nothing changed.

    Digits of every script in the Basic Multilingual Plane become ASCII, as do full-width characters, spaces, dashes and dots.
    Invisible characters and NUL are left out.
    """
    if text.isascii() and "\0" not in text:
        return text, None
    codes = np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), np.uint32)
    folded = _table()[np.minimum(codes, 0xFFFF)]
    high = codes > 0xFFFF
    if high.any():
        first, last = _MATHEMATICAL_DIGITS
        folded[high] = codes[high]
        digits = (codes >= first) & (codes <= last)
        folded[digits] = (codes[digits] - first) % 10 + ord("0")
    if (folded == codes).all() and "\0" not in text:
        return text, None
    kept = np.flatnonzero(folded)
    return folded[kept].tobytes().decode("utf-32-le", errors="surrogatepass"), kept


def adjoins(character: str) -> bool:
    """Return whether the character, or "", is a letter or digit that makes one word with a number beside it.

    Scripts without spaces put their words directly beside numbers.
    """
    return character.isalnum() and ord(character) <= LAST_LETTER


@functools.lru_cache(maxsize=1)
def lowered(text: str) -> str:
    """Return the text in lower case, with the same length: several finders search it for words."""
    return text.replace("İ", "i").lower()  # the only letter whose lower case is longer


def _folded(character: str) -> str:
    if character == "\0" or character in INVISIBLE:
        return ""
    for group, plain in ((SPACES, " "), (DASHES, "-"), (DOTS, ".")):
        if character in group:
            return plain
    if 0xFF01 <= ord(character) <= 0xFF5E:  # full-width forms of "!" … "~"
        return chr(ord(character) - 0xFEE0)
    low, high = _MATHEMATICAL_DIGITS
    if ord(character) < 0x10000 or low <= ord(character) <= high:
        digit = unicodedata.decimal(character, None)
        if digit is not None:
            return str(digit)
    return character


@functools.cache
def _table() -> np.ndarray:
    """Return uint32 [65536]: the folded code of each code of the Basic Multilingual Plane, 0 for those left out."""
    return np.array([ord(_folded(chr(code)) or "\0") for code in range(0x10000)], np.uint32)
