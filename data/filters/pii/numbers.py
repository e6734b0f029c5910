"""Find numbers with a checksum or a fixed form: payment cards, IBANs, US social security numbers."""

import re
from collections.abc import Iterator

from data.filters.pii.spans import Span

# Issuers by the first digits, and the lengths of their numbers (ISO/IEC 7812; the ranges that the networks publish). Visa's
# 13 digits are left out: none were issued since the 1990s, and article numbers (EAN-13) look like them.
ISSUERS = (
    (range(4, 5), (16, 19)),  # Visa
    (range(51, 56), (16,)),  # Mastercard
    (range(2221, 2721), (16,)),
    (range(34, 35), (15,)),  # American Express
    (range(37, 38), (15,)),
    (range(6011, 6012), (16, 19)),  # Discover
    (range(644, 650), (16, 19)),
    (range(65, 66), (16, 19)),
    (range(300, 306), (14, 16)),  # Diners Club
    (range(36, 37), (14,)),
    (range(38, 40), (14, 16)),
    (range(3528, 3590), (16,)),  # JCB
    (range(62, 63), (16, 17, 18, 19)),  # UnionPay
    *(
        (range(prefix, prefix + 1), (16, 18, 19)) for prefix in (5018, 5020, 5038, 5893, 6304, 6759, 6761, 6762, 6763)
    ),  # Maestro
)
GROUPS = {(4, 4, 4, 4), (4, 6, 5), (4, 6, 4), (4, 4, 4, 4, 3), (4, 4, 4, 4, 2), (4, 4, 4, 4, 1), (6, 13)}  # as printed on cards

# Characters of an IBAN by country: SWIFT, IBAN registry.
IBAN_LENGTHS = {
    "NO": 15, "BE": 16, **dict.fromkeys(("DK", "FI", "FK", "FO", "GL", "NL", "SD"), 18),
    **dict.fromkeys(("MK", "SI"), 19), **dict.fromkeys(("AT", "BA", "EE", "KZ", "LT", "LU", "MN", "XK"), 20),
    **dict.fromkeys(("CH", "HR", "LI", "LV"), 21),
    **dict.fromkeys(("BG", "BH", "CR", "DE", "GB", "GE", "IE", "ME", "RS", "VA"), 22),
    **dict.fromkeys(("AE", "GI", "IL", "IQ", "OM", "SO", "TL"), 23),
    **dict.fromkeys(("AD", "CZ", "ES", "MD", "PK", "RO", "SA", "SE", "SK", "TN", "VG"), 24),
    **dict.fromkeys(("LY", "PT", "ST"), 25), **dict.fromkeys(("IS", "TR"), 26),
    **dict.fromkeys(("BI", "DJ", "FR", "GR", "IT", "MC", "MR", "SM"), 27),
    **dict.fromkeys(("AL", "AZ", "BY", "CY", "DO", "GT", "HN", "HU", "LB", "NI", "PL", "SV"), 28),
    **dict.fromkeys(("BR", "EG", "PS", "QA", "UA"), 29), **dict.fromkeys(("JO", "KW", "MU", "YE"), 30),
    **dict.fromkeys(("MT", "SC"), 31), "LC": 32, "RU": 33,
}  # fmt: skip

_CARD_RUN = re.compile(r"\d(?:[ .\-/\n\t]{0,3}+\d){13,}+")
_DIGITS = re.compile(r"\d+")
_IBAN = re.compile(r"\d\d(?<=[A-Za-z][A-Za-z]\d\d)(?:[ \n.-]{0,2}+[A-Za-z0-9]){11,40}+")
_SSN = re.compile(r"\d\d\d[- ]{0,3}+\d\d[- ]{0,3}+\d\d\d\d")
_SSN_WORDS = re.compile(r"(?:\bss[ni]\b|social.security)\W{0,5}(?:(?:number|no|is|num|nr|#)\W{0,3}){0,3}\Z", re.IGNORECASE)


def luhn(digits: str) -> bool:
    """Return whether the check digit is right: ISO/IEC 7812-1, annex B."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) << (place & 1)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def is_card(digits: str) -> bool:
    """Return whether the digits have an issuer, that issuer's length, a right check digit, and more than one value."""
    if len(set(digits)) < 2:
        return False
    for prefixes, lengths in ISSUERS:
        if len(digits) in lengths and int(digits[: len(str(prefixes.start))]) in prefixes:
            return luhn(digits)
    return False


def find_cards(text: str) -> Iterator[Span]:
    """Yield the spans of payment card numbers in a folded text.

    Groups of digits as printed on cards are found among other numbers. In another grouping, nothing else may stand beside them.
    """
    for run in _CARD_RUN.finditer(text):
        groups = [match.span() for match in _DIGITS.finditer(text, run.start(), run.end())]
        if text[max(0, run.start() - 1) : run.start()].isalnum():
            del groups[0]
        if text[run.end() : run.end() + 1].isalnum():
            del groups[-1:]
        if not groups or text[max(0, groups[0][0] - 1) : groups[0][0]] in ("_", "$", "€", "£", "."):
            continue
        digits = "".join(text[start:end] for start, end in groups)
        if len(digits) <= 19 and not _is_decimal(text, groups) and is_card(digits):
            yield Span(groups[0][0], groups[-1][1], "card")
            continue
        first = 0
        while first < len(groups):
            first = yield from _card_among(text, groups, first)


def _is_decimal(text: str, groups: list[tuple[int, int]]) -> bool:
    return len(groups) < 4 and any(text[end] == "." for _, end in groups[:-1])


def _card_among(text: str, groups: list[tuple[int, int]], first: int) -> Iterator[Span]:
    """Yield the card that begins at group `first`, if one does. Returns the group to go on with."""
    digits, sizes = "", []
    if first and text[groups[first][0] - 1] == ".":
        return first + 1
    for last in range(first, min(first + 5, len(groups))):
        start, end = groups[last]
        sizes.append(end - start)
        digits += text[start:end]
        if len(digits) > 19:
            break
        if (tuple(sizes) in GROUPS or len(sizes) == 1 and len(digits) >= 14) and is_card(digits):
            yield Span(groups[first][0], end, "card")
            return last + 1
    return first + 1


def find_ibans(text: str) -> Iterator[Span]:
    """Yield the spans of IBANs, in either case, with a right check number: ISO 13616, the number mod 97 is 1."""
    for match in _IBAN.finditer(text):
        start = match.start() - 2
        length = IBAN_LENGTHS.get(text[start : start + 2].upper())
        if length is None or (start > 0 and text[start - 1].isalnum()):
            continue
        end, count, compact = start, 0, []
        while count < length and end < match.end():
            if text[end].isalnum():
                compact.append(text[end].upper())
                count += 1
            end += 1
        if count < length or text[end : end + 1].isalnum():
            continue
        moved = "".join(compact[4:] + compact[:4])
        if int("".join(str(int(character, 36)) for character in moved)) % 97 == 1:
            yield Span(start, end, "iban")


def find_ssns(text: str) -> Iterator[Span]:
    """Yield the spans of US social security numbers: 123-45-6789, in another form only after a word for it.

    Numbers that were never issued are left out: area 000, 666 or 9xx, group 00, serial 0000 (SSA, "Meaning of the SSN").
    """
    for match in _SSN.finditer(text):
        digits = "".join(filter(str.isdigit, match[0]))
        before, after = text[max(0, match.start() - 2) : match.start()], text[match.end() : match.end() + 2]
        if digits[:3] in ("000", "666") or digits[0] == "9" or digits[3:5] == "00" or digits[5:] == "0000":
            continue
        if (
            before[-1:].isalnum()
            or before[-1:] in ("-", ".", "/", "_", "$")
            or (before[:1].isdigit() and not before[1:].isalpha())
        ):
            continue
        if after[:1].isalnum() or after[:1] == "_" or (after[:1] in ("-", ".", "/") and after[1:].isalnum()):
            continue
        written = match[0][3:4] == "-" and match[0][6:7] == "-" and len(match[0]) == 11
        if written or _SSN_WORDS.search(text[max(0, match.start() - 40) : match.start()]):
            yield Span(match.start(), match.end(), "ssn")
