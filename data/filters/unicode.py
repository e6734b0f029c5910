"""Repair the characters of texts: mojibake, control characters, line ends, invisible characters, composed forms.

`ftfy` repairs, at a few MB/s. A test over all characters of a text in NumPy finds the lines that need it
(data/filters/mojibake.py), so clean text is passed on untouched and fast.

What ftfy could also change is left as it is, since it is correct text: curly quotes, ligatures, full-width characters and HTML
entities.
"""

import functools
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from data.filters.mojibake import suspicious

# Invisible characters without a meaning for text: soft hyphen, zero-width space, word joiner and its kin, byte-order mark.
# Joiners (U+200C, U+200D) and direction marks stay: Persian, Indic scripts, emoji, Arabic and Hebrew need them.
INVISIBLE = "\u00ad\u200b\u2060-\u2064\ufeff"
# Control characters but tab, line feed and form feed, surrogates, and the deprecated characters that ftfy removes.
CONTROL = "\0-\x08\x0b\x0e-\x1f\x7f-\x9f\u206a-\u206f\ufff9-\ufffb\ud800-\udfff"
LINE_ENDS = "\r\u2028\u2029\x85"

_INVISIBLE = re.compile(f"[{INVISIBLE}]")
_LINE_END = re.compile("\r\n?|[\u2028\u2029\x85]")
_FAULTY = re.compile(f"[{INVISIBLE}{CONTROL}{LINE_ENDS}]")
_BATCH = 1 << 15  # characters that NumPy takes together: their tables and indices stay in the cache
_FAULTY_ASCII = bytes(code for code in range(128) if _FAULTY.match(chr(code)))


def repair(texts: Sequence[str]) -> tuple[list[str], dict[str, np.ndarray]]:
    """Return repaired texts, and counts. A text without a fault is returned unchanged.

    Returns:
        The new texts, and int32 columns [documents]: unicode_line_ends, the number of line ends that were not a line feed;
        unicode_invisible, the number of invisible characters that were removed; unicode_lines, the number of lines that ftfy
        changed.
    """
    columns = {name: np.zeros(len(texts), np.int32) for name in ("unicode_line_ends", "unicode_invisible", "unicode_lines")}
    repaired = list(texts)
    for number in np.flatnonzero(may_be_faulty(texts)):
        repaired[number], *counts = _repaired(texts[number])
        for column, count in zip(columns.values(), counts):
            column[number] = count
    return repaired, columns


def may_be_faulty(texts: Sequence[str]) -> np.ndarray:
    """Return bool [texts]: whether each may need a repair. It is never False for a text that needs one."""
    faulty, waiting, size = np.zeros(len(texts), bool), [], 0
    for number, text in enumerate(texts):
        data = text.encode(errors="surrogatepass")
        faulty[number] = len(data.translate(None, _FAULTY_ASCII)) < len(data)
        if not faulty[number] and len(data) > len(text):  # not all of it is ASCII
            faulty[number] = not unicodedata.is_normalized("NFC", text)
            waiting.append(number)
            size += len(text)
        if waiting and (size > _BATCH or number == len(texts) - 1):
            faulty[waiting] |= _outside_ascii([texts[i] for i in waiting])
            waiting, size = [], 0
    return faulty


def _outside_ascii(texts: Sequence[str]) -> np.ndarray:
    """Return bool [texts]: whether each has a faulty character outside ASCII, or may hold mojibake."""
    joined = "\n\n".join((*texts, ""))
    codes = np.frombuffer(joined.encode("utf-32-le", errors="surrogatepass"), np.uint32)
    codes = np.minimum(codes, 0xFFFF)  # what is above is in no mojibake
    at = np.flatnonzero(codes >= 0x80)
    bad = at[_faulty_codes()[codes[at]] | suspicious(codes, at)]
    starts = np.cumsum([0] + [len(text) + 2 for text in texts[:-1]])
    faulty = np.zeros(len(texts), bool)
    faulty[np.searchsorted(starts, bad, side="right") - 1] = True
    return faulty


def _repaired(text: str) -> tuple[str, int, int, int]:
    """Return the repaired text, and the counts that `repair` reports."""
    import ftfy

    text, line_ends = _LINE_END.subn("\n", text)
    text, invisible = _INVISIBLE.subn("", text)
    lines, changed = text.split("\n"), 0
    for number in np.flatnonzero(may_be_faulty(lines)):
        fixed = unicodedata.normalize("NFC", _INVISIBLE.sub("", ftfy.fix_text(lines[number], _config())))
        changed += fixed != lines[number]
        lines[number] = fixed
    return "\n".join(lines), line_ends, invisible, changed


@functools.cache
def _config():
    """Return ftfy's configuration: its default, without what changes correct text."""
    import ftfy

    return ftfy.TextFixerConfig(
        unescape_html=False, uncurl_quotes=False, fix_latin_ligatures=False, fix_character_width=False, explain=False
    )


@functools.cache
def _faulty_codes() -> np.ndarray:
    """Return bool [65536]: the codes that always need a repair."""
    faulty = np.zeros(0x10000, bool)
    faulty[[ord(match[0]) for match in _FAULTY.finditer("".join(map(chr, range(0x10000))))]] = True
    return faulty
