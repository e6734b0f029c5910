"""Find numbers with a checksum or a fixed form: payment cards, IBANs, US social security numbers."""

import re
from collections.abc import Iterator

from data.filters.pii.folding import Span, adjoins

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
    # Maestro
    *((range(prefix, prefix + 1), (16, 18, 19)) for prefix in (5018, 5020, 5038, 5893, 6304, 6759, 6761, 6762, 6763)),
    (range(2200, 2205), (16, 17, 18, 19)),  # Mir
    (range(508, 509), (16,)),  # RuPay
    (range(5019, 5020), (16,)),  # Dankort
    (range(5060, 5062), (16, 18, 19)),  # Verve
    (range(9792, 9793), (16,)),  # Troy
)
BANKS = "56"  # the first digit of all other bank cards (ISO/IEC 7812-1, table 1)
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

_CARD_RUN = re.compile(r"\d(?:[ .\-/\n\t_]{0,3}+\d){13,}+")
_TABLE = 8  # groups; a run of more is a table or a list, in which four numbers look like a card by chance
_DIGITS = re.compile(r"\d+")
# Finds the two check digits. The country before them may stand apart in capitals. What follows is not consumed.
_IBAN = re.compile(r"\d\d(?:(?<=[A-Za-z][A-Za-z]\d\d)|(?<=[A-Z][A-Z] \d\d))(?=[ \n.-]{0,3}+[A-Za-z0-9]{2})")
_IBAN_GAP = 3  # characters between two of its groups
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
        if adjoins(text[max(0, run.start() - 1) : run.start()]):
            del groups[0]
        if adjoins(text[run.end() : run.end() + 1]):
            del groups[-1:]
        if not groups or text[max(0, groups[0][0] - 1) : groups[0][0]] in ("_", "$", "€", "£", "."):
            continue
        digits = "".join([text[start:end] for start, end in groups[:20]])
        if len(groups) <= 19 and len(digits) <= 19 and _is_alone(text, groups, digits):
            yield Span(groups[0][0], groups[-1][1], "card")
            continue
        first = 0
        while first < len(groups):
            first = yield from _card_among(text, groups, first)


def _is_alone(text: str, groups: list[tuple[int, int]], digits: str) -> bool:
    """Return whether the digits of a whole run are a card number. As printed, it may be of a brand that is not listed."""
    gaps = {text[end : groups[n + 1][0]] for n, (_, end) in enumerate(groups[:-1])}
    sizes = tuple(end - start for start, end in groups)
    if ("." in gaps and (len(gaps) > 1 or len(sizes) < 4)) or (
        len(sizes) > 2 and min(sizes) == 1 and max(sizes) >= 4 and sizes not in GROUPS
    ):
        return False  # decimal numbers, or a list
    unlisted = sizes == (4, 4, 4, 4) and len(gaps) == 1 and "\n" not in gaps and digits[0] in BANKS and luhn(digits)
    return (unlisted or is_card(digits)) and not _counts(text, groups)


def _counts(text: str, groups: list[tuple[int, int]]) -> bool:
    """Return whether the groups are numbers that rise or fall evenly, as 2401 2402 2403 2404."""
    values = [int(text[start:end]) for start, end in groups]
    return len(values) > 2 and len({later - earlier for earlier, later in zip(values, values[1:])}) == 1


def _card_among(text: str, groups: list[tuple[int, int]], first: int) -> Iterator[Span]:
    """Yield the card that begins at group `first`, if one does. Returns the group to go on with."""
    start, end = groups[first]
    if end - start < 4 or (first and text[start - 1] == "."):
        return first + 1
    digits, sizes = "", []
    for last in range(first, min(first + 5, len(groups))):
        start, end = groups[last]
        sizes.append(end - start)
        digits += text[start:end]
        if len(digits) > 19:
            break
        if tuple(sizes) not in GROUPS and not (len(sizes) == 1 and len(digits) >= 14):
            continue
        if last > first and len(groups) > _TABLE and not _is_apart(text, groups, first, last):
            continue
        if is_card(digits) and not _counts(text, groups[first : last + 1]):
            yield Span(groups[first][0], end, "card")
            return last + 1
    return first + 1


def _is_apart(text: str, groups: list[tuple[int, int]], first: int, last: int) -> bool:
    """Return whether groups first … last have one gap between them, and other ones beside them."""

    def gap(after: int) -> str:
        return text[groups[after][1] : groups[after + 1][0]]

    inside = {gap(n) for n in range(first, last)}
    beside = {gap(n) for n in (first - 1, last) if 0 <= n < len(groups) - 1}
    return len(inside) == 1 and inside.isdisjoint(beside)


def find_ibans(text: str) -> Iterator[Span]:
    """Yield the spans of IBANs, in either case, with a right check number: ISO 13616, the number mod 97 is 1."""
    for match in _IBAN.finditer(text):
        start = match.start() - 2 - (text[match.start() - 1] == " ")
        country = text[start : start + 2].upper()
        length = IBAN_LENGTHS.get(country)
        if length is None or (adjoins(text[max(0, start - 1) : start]) and text[max(0, start - 4) : start].upper() != "IBAN"):
            continue
        end, gap, compact = match.end(), 0, [country, match[0]]
        left = length - 4
        while left and gap <= _IBAN_GAP and end < len(text):
            character = text[end]
            end += 1
            if character.isalnum() and character.isascii():
                compact.append(character.upper())
                left, gap = left - 1, 0
            elif character in " \n.-":
                gap += 1
            else:
                break
        if left or adjoins(text[end : end + 1]):
            continue
        whole = "".join(compact)
        if int("".join([str(int(character, 36)) for character in whole[4:] + whole[:4]])) % 97 == 1:
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
            adjoins(before[-1:])
            or before[-1:] in ("-", ".", "/", "_", "$")
            or (before[:1].isdigit() and not before[1:].isalpha())
        ):
            continue
        if adjoins(after[:1]) or after[:1] == "_" or (after[:1] in ("-", ".", "/") and after[1:].isalnum()):
            continue
        written = match[0][3:4] == "-" and match[0][6:7] == "-" and len(match[0]) == 11
        if written or _SSN_WORDS.search(text[max(0, match.start() - 40) : match.start()]):
            yield Span(match.start(), match.end(), "ssn")
