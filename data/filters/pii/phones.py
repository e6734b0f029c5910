"""Find phone numbers of any country. `phonenumbers` (a port of Google's libphonenumber) says which numbers exist.

It is slow, so it is asked only about runs of digits that are written like a phone number:

    international     +44 20 7946 0958, 0044 20 7946 0958
    North American    (212) 555-0123, 212-555-0123, 212.555.0123
    national          020 7946 0958, (011) 4321-0987: a leading zero or an area code in brackets
    after a word      tel. 20794609, Telefon: …, call me at …: any form
"""

import functools
import re
from collections.abc import Iterator, Sequence

from data.filters.pii.spans import Span

# The plan of each region is tried on a number without a country code.
REGIONS = tuple("US GB FR DE IT ES NL BE CH AT SE IE PL AU IN JP KR CN BR MX TR ZA".split())
MIN_DIGITS, MAX_DIGITS = 7, 15  # ITU-T E.164 allows at most 15

_RUN = re.compile(r"[+(\d](?:[ .\-/()+\n\t]{0,3}+\d){6,}+")
_LONG = re.compile(r"\d(?:[ .\-/()+\n\t_]{0,3}+\d){6}")
_BROKEN = re.compile(r"\n+(?=[+(\d])|[ \t/]+(?=\+)|\s{2,}|(?<=\d)[ /]+(?=\(\d)")
_NORTH_AMERICAN = re.compile(
    r"(?:\+?1[ .-]{1,2})?(?:\([2-9]\d\d\)[ .\-/]{0,3}|[2-9]\d\d(?P<separator>[ .-]|\s?-\s?))"
    r"[2-9]\d\d(?(separator)(?P=separator)|[ .-]{1,3})\d{4}(?!\d)"
)
_WORDS = re.compile(
    r"(?:(?P<strong>\b(?:tele?ph?one?s?|telefono?|teléfono|téléphone|telefon(?:nummer)?|tel|tél|tlf|ph|phone|fax|mobile|mob|móvil|"
    r"celular|cell(?:ulare|phone)?|portable|handy|whatsapp|rufnummer|hotline|puh|gsm|numéro)\b|тел|телефон|電話|电话|热线|熱線|手机|手機|전화|연락처|휴대폰|هاتف|تلفن|جوال|טלפון|फ़ोन|फोन|मोबाइल|โทร|☎|📞|✆|"
    r"\u260f)|\b(?:call|text|dial|ring|sms|reach)\b)\W{0,4}(?:(?:number|no|nr|num|is|us|me|him|her|them|at|on|now|today|free|toll|"
    r"toll-free|vert|verde|service|client|office|home|work|direct|m|e|de|la|le|ist|est|es|é|or|please)\W{1,3}){0,4}[+(]?\Z",
    re.IGNORECASE,
)
_DATE = re.compile(
    r"(?:(?:19|20)\d\d[ ./-]\d{1,2}[ ./-]\d{1,2}|\d{1,2}[ ./-]\d{1,2}[ ./-](?:19|20)\d\d|"
    r"(?:19|20)\d\d\s?[-/]\s?(?:19|20)\d\d)(?!\d)"
)
_DECIMAL = re.compile(r"\+?(?:\d+\.\d{1,5}|\d{1,2}\.\d+|\d{4,}\.\d+)")
_GROUPED = re.compile(r"\(?\+\d{1,3}\)?(?:[ -]\(?\d{1,5}\)?){2,}")
_BEFORE = frozenset("#$€£¥.-_/=&@%~^*")
_COUNTED = re.compile(r"[#№]\W{0,3}\Z")  # of an item, an order, a ticket
_EXTENSION = re.compile(r"\s?(?:x|ext\.?)\s?\d", re.IGNORECASE)


def has_long_number(text: str) -> bool:
    """Return whether a folded text has at least seven digits with little between them, as cards, SSNs and phone numbers do."""
    return _LONG.search(text) is not None


def find_phones(text: str, regions: Sequence[str] = REGIONS) -> Iterator[Span]:
    """Yield the spans of phone numbers in a folded text. regions: countries whose national numbers are known."""
    for run in _RUN.finditer(text):
        if run.end() - run.start() > 4096:  # a table of numbers
            continue
        span = _number(text, run.start(), run.end(), regions)
        if span is not None:
            yield span
            continue
        pieces = list(_BROKEN.finditer(text, run.start(), run.end()))
        begins = [run.start()] + [match.end() for match in pieces]
        ends = [match.start() for match in pieces] + [run.end()]
        for begin, end in zip(begins, ends):
            span = _number(text, begin, end, regions) if pieces else None
            if span is not None:
                yield span
                continue
            for match in _NORTH_AMERICAN.finditer(text, begin, end):
                span = _number(text, match.start(), match.end(), regions)
                if span is not None:
                    yield span


def _number(text: str, start: int, end: int, regions: Sequence[str]) -> Span | None:
    """Return the span of the phone number that text[start:end] is, without an unmatched bracket."""
    while start < end and text[start] == "(" and ")" not in text[start:end]:
        start += 1
    said = text[start:end]
    digits = "".join(filter(str.isdigit, said))
    if not MIN_DIGITS <= len(digits) <= MAX_DIGITS + 3 or "+" in said[2:] or _DATE.match(said) or _DECIMAL.fullmatch(said):
        return None
    before, after = text[max(0, start - 48) : start], text[end : end + 6]
    if before[-1:].isalnum() or before[-1:] == "_":
        return None
    if (after[:1].isalnum() or after[:1] in ("_", "%")) and not _EXTENSION.match(after):
        return None
    if after[:1] in (".", ",", "-", "/", ":", "=") and after[1:2].isdigit():
        return None
    word = _WORDS.search(before)
    opened = before[-1:] == "(" and before[-2:-1].isalnum()  # a call in a program
    named = word is not None and word["strong"] is not None
    if not named and (opened or (before and before[-1] in _BEFORE and not said.startswith("+"))):
        return None
    if not word and _COUNTED.search(before):
        return None
    if not word and not said.startswith(("+", "(+")) and before[-2:-1].isdigit() and before[-1] in ",:;":
        return None
    return Span(start, end, "phone") if _is_phone(said, digits, word, tuple(regions)) else None


def _is_phone(said: str, digits: str, word: re.Match | None, regions: tuple[str, ...]) -> bool:
    if said.startswith(("+", "(+")):
        # Written in three groups, it may also be a number that is not assigned yet.
        return _exists("+" + _without_trunk_zero(said), None, possible=_GROUPED.fullmatch(said) is not None)
    separated = len(re.findall(r"\d+", said)) > 1
    if digits.startswith(("00", "011")) and (word or separated):
        prefix = 2 if digits.startswith("00") else 3
        if _exists("+" + digits[prefix:], None):
            return True
    if word and len(digits) <= MAX_DIGITS:
        if word["strong"]:
            return True
        return any(_exists(digits, region) for region in regions)
    if _NORTH_AMERICAN.fullmatch(said):
        return _exists(digits, "US")
    if re.fullmatch(r"\d\d(?:[ .-]\d\d)+", said) and len(digits) != 10:  # pairs make a number in France alone
        return False
    if (
        separated
        and len(digits) >= (9 if said.count("-") == 2 else 10)
        and re.match(r"0\d|\(0\d|0\(\d", said)
        and not re.match(r"0\d[:.]\d\d[:.]\d\d\s", said)
    ):
        return any(_exists(digits, region) for region in regions)
    if re.match(r"\((?!(?:19|20)\d\d\))\d{2,5}\)[ .-]{0,2}\d", said) and len(digits) >= 9:
        return any(_exists(digits, region) for region in regions)
    return False


def _without_trunk_zero(said: str) -> str:
    """Return the digits of an international number, without the zero of "+44 (0)20 …"."""
    return "".join(filter(str.isdigit, re.sub(r"\(0\)", "", said)))


@functools.lru_cache(maxsize=1 << 14)
def _exists(number: str, region: str | None, possible: bool = False) -> bool:
    """Return whether the number is in a country's numbering plan; in that of its country code, if `region` is None.

    possible: its length is enough.
    """
    import phonenumbers

    try:
        parsed = phonenumbers.parse(number, region)
        return phonenumbers.is_valid_number(parsed) or (possible and phonenumbers.is_possible_number(parsed))
    except phonenumbers.NumberParseException:
        return False
