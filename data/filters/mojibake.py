"""Test fast whether a text holds mojibake: text in UTF-8 that was decoded in another encoding.

ftfy recognises it by two or three neighbours that seldom stand together, such as "Ã" and "©"
(`ftfy.badness.BADNESS_RE`). Here each of its alternatives is a rule: three sets of characters. Bit r of first[c] says that c is
in the first set of rule r, and so on. A text is suspicious if

    first[c_i] & second[c_{i+1}] & third[c_{i+2}]  ≠ 0  for some i.

That is three table look-ups a character outside ASCII. An alternative that looks at more than three
characters, or at the one before, is widened to fewer. So every text that ftfy finds bad is suspicious. The opposite need not
hold.
"""

import functools
import re

import numpy as np

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


def suspicious(codes: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Return bool [len(at)]: where a text may hold mojibake.

    Args:
        codes: code points of the text, below 65,536, and two of a line feed behind it.
        at: indices of those that are not ASCII; only they begin mojibake.
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
