"""Repair the characters of texts: mojibake, control characters, line ends, invisible characters, composed forms.

`ftfy` repairs, at a few MB/s. A test over all characters of a text in NumPy finds the lines that need it, so clean text is
passed on untouched and fast. Mojibake, text in UTF-8 that was decoded in another encoding, is what ftfy recognises by two or
three neighbours that seldom stand together, such as "Ã" and "©" (`ftfy.badness.BADNESS_RE`). Here each of its alternatives is a
rule: three sets of characters. Bit r of first[c] says that c is in the first set of rule r, and so on. A text is suspicious if

    first[c_i] & second[c_{i+1}] & third[c_{i+2}]  ≠ 0  for some i.

That is three table look-ups a character outside ASCII. An alternative that looks at more than three characters, or at the one
before, is widened to fewer. So every text that ftfy finds bad is suspicious. The opposite need not hold.

What ftfy could also change is left as it is, since it is correct text: curly quotes, ligatures, full-width characters and HTML
entities.
"""

import functools
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

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

_ANY = r"\s\S"
_ACCENTED = "{lower_accented}{upper_accented}"
_SIGNS = "{start_punctuation}{end_punctuation}"
_FOREIGN = _ACCENTED + "{box}" + _SIGNS + "{currency}{numeric}{law}"
# (first, second, third), in the order of ftfy 6.3's alternatives. Its categories of characters stand in braces. Its first one,
# a single character of the category c1, is a fault anyway.
RULES = (
    ("{bad}" + _FOREIGN, "{bad}", _ANY),
    ("{lower_common}{upper_common}", "{bad}", _ANY),
    ("{bad}", _FOREIGN, _ANY),
    ("{lower_accented}{lower_common}{box}{end_punctuation}{currency}{numeric}", "{upper_accented}", _ANY),
    ("{box}{end_punctuation}{currency}{numeric}", "{lower_accented}", _ANY),
    ("{lower_accented}{box}{end_punctuation}", "{currency}", _ANY),
    ("{upper_accented}", "{currency}{start_punctuation}", _ANY),
    ("{upper_accented}{box}", "{numeric}{law}", _ANY),
    (_ACCENTED + "{box}{currency}{end_punctuation}", "{start_punctuation}", "{numeric}"),
    (_ACCENTED + "{currency}{numeric}{box}{law}", "{end_punctuation}", "{start_punctuation}"),
    ("{currency}{numeric}{box}", "{start_punctuation}", _ANY),
    ("{box}", "{kaomoji}{end_punctuation}", _ANY),
    (_ACCENTED + "{currency}{numeric}" + _SIGNS + "{law}", "{box}", _ANY),
    (_ACCENTED, _SIGNS, r"\w"),
    ("Œœ", r"\W\d_\x80-\uffff", _ANY),
    ("{upper_accented}", "°", _ANY),
    ("ÂÃÎÐ", "€œŠš¢£Ÿž\xa0\xad®©°·»–—´¡ " + _SIGNS, _ANY),
    ("×", "²³", _ANY),
    ("ØÙ", "{common}{currency}{bad}{numeric}{start_punctuation}ŸŠ®°µ»", "ØÙ"),
    ("à", "²µ¹¼½¾", _ANY),
    ("√", "±∂†≠®™´≤≥¥µø", _ANY),
    ("≈", "°¢", _ANY),
    ("‚", "Ä", "ìîïòôúùû†°¢π"),
    ("‚", "âó", "àä°ê"),
    ("в", "Ђ", _ANY),
    ("ВГРС", "{c1}{bad}" + _SIGNS + "{currency}°µ", "ВГРС"),
    ("Г", "ў", "В"),
    ("β", "€", "™\xa0Ά\xad®°"),
    ("ΒΓΞΟ", "{c1}{bad}" + _SIGNS + "{currency}°", "ΒΓΞΟ"),
    ("ā", "€", _ANY),
)


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
    bad = at[_faulty_codes()[codes[at]] | _suspicious(codes, at)]
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


def _suspicious(codes: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Return bool [len(at)]: where a text may hold mojibake.

    codes: code points of the text, below 65,536, and two of a line feed behind it. at: indices of those that are not ASCII.
    """
    first, second, third = _tables()
    rules = first[codes[at]]
    rules &= second[codes[at + 1]]
    rules &= third[codes[at + 2]]
    return rules > 0


@functools.cache
def _tables() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return uint32 [65536] thrice: the rules in whose first, second and third set each code is."""
    from ftfy.badness import MOJIBAKE_CATEGORIES

    every = "".join(map(chr, range(0x10000)))

    @functools.cache
    def codes(characters: str) -> np.ndarray:
        found = re.sub(f"[^{characters}]+", "", every)
        return np.frombuffer(found.encode("utf-32-le", "surrogatepass"), np.uint32)

    tables = np.zeros((3, 0x10000), np.uint32)
    for number, rule in enumerate(RULES):
        for table, characters in zip(tables, rule):
            table[codes(characters.format(**MOJIBAKE_CATEGORIES))] |= np.uint32(1 << number)
    return tables[0], tables[1], tables[2]


@functools.cache
def _faulty_codes() -> np.ndarray:
    """Return bool [65536]: the codes that always need a repair."""
    faulty = np.zeros(0x10000, bool)
    faulty[[ord(match[0]) for match in _FAULTY.finditer("".join(map(chr, range(0x10000))))]] = True
    return faulty
