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

from data.filters.pii.folding import Span, adjoins

# The plan of each region is tried on a number without a country code.
REGIONS = tuple(
    """US GB FR DE IT ES NL BE CH AT SE IE PL AU IN JP KR CN BR MX TR ZA PT DK NO FI CZ SK HU RO GR UA RU IL AE SA EG NG KE
    PK BD TH VN ID MY PH SG HK TW NZ AR CL CO PE""".split()
)
MIN_DIGITS, MAX_DIGITS = 7, 15  # ITU-T E.164 allows at most 15

_RUN = re.compile(r"[+(\d](?:(?<=[+(])\+)?(?:[ .\-/()\n\t]{0,3}+\d){6,}+")
_LONG = re.compile(r"\d(?:[ .\-/()+\n\t_]{0,3}+\d){6}")
_BROKEN = re.compile(r"\n\s*(?=[+(\d])|[ \t/]+(?=\+)|\s{2,}|(?<=\d)[ /]+(?=\(\d)|\.\s+|\s(?=-\d)")
_LOOSE = re.compile(r"\n|\s{2}|\s\(")  # where another number may begin
_APART = re.compile(r"\n\s*\n|\.\s|\s-\d")  # where another one does
_NORTH_AMERICAN = re.compile(
    r"(?:\+?1[ .-]{1,2})?(?:\([2-9]\d\d\)[ .\-/]{0,3}|[2-9]\d\d(?P<separator>[ .-]|\s?-\s?))"
    r"[2-9]\d\d(?(separator)(?P=separator)|[ .-]{1,3})\d{4}(?!\d)|[2-9]\d\d/[2-9]\d\d-\d{4}(?!\d)"
)
_RUSSIAN = re.compile(r"8[ -]?(?:\(\d{3,5}\)[ -]?|\d{3}[ -])\d{1,3}(?:[ -]?\d\d){2}")
_SLASHED = re.compile(r"0\d{1,4}/ ?\d{2}")  # an area code
# Words before a number, in the languages of most pages. After a noun it is believed in any form, after a verb if it exists.
_NOUNS = "|".join(
    r"""tele?ph?one?s? telefono?s? teléfonos? téléphones? telefon(?:n?ummer u y szám as)? telefones? telefoon(?:nummer)? tel
    tél tlf tfn tfno telp telefax telef ph phone fax faks fon fone mobile mobil mobiel mobilnr mobiltelefon mob m[óo]vil
    celular cel cell(?:ulare phone)? portable fixe handy(?:nummer)? festnetz natel gsm cep kom komórka komórkowy
    telem[óo]vel puh puhelin sími farsími landline whats\s?app viber rufnummer hotline helpline switchboard freephone
    numéro wa\.me sđt đt di\sđộng điện\sthoại""".split()
)
_NOUNS_ANYWHERE = "|".join(
    r"""тел телефон моб мобильный мобільний сот факс τηλ τηλέφωνο κιν κινητό 電話 電話番号 电话
    热线 熱線 手机 手機 携帯 전화 연락처 휴대폰 핸드폰 هاتف تلفن جوال موبايل טלפון נייד फ़ोन फोन मोबाइल
    โทร โทรศัพท์ มือถือ ☎ 📞 📱 ✆ \u260f""".split()
)
_VERBS = "|".join(
    r"""call text dial ring sms reach hp(?=:) wa(?=:) appelez joignable ll[áa]m[ae]\w* ligue ligar chiama\w* bel anruf\w*
    rufen ruf zadzwoń zadzwon dzwoń звони\w* позвони\w* тлф hívj\w* volejte zavolejte hubungi""".split()
)
_BETWEEN = "|".join(
    r"""number no nr num nummer numara is us me him her them at on now mig meg mij mir today free toll toll-free vert verde
    service client office home work direct m e de la le ist est es é or please para al el o op på an uns sie nous au на по
    pod""".split()
)
_WORDS = re.compile(
    rf"(?:(?P<strong>\b(?:{_NOUNS})\b|{_NOUNS_ANYWHERE})(?:号码|號碼|号|番号|번호|は|는)?\W{{0,4}}"
    rf"|(?:\b(?:{_VERBS})\b|拨打|致电|連絡先は?)[^\w\n.!?]{{0,4}})"
    rf"(?:(?:(?:{_BETWEEN})\W{{1,3}}){{0,4}}"
    r"|(?P<far>(?:[^\W\d]{1,16}+[ ).]{1,2}+){0,2}[^\W\d]{1,16}+[ )]{0,2}:\W{0,3}))[+(]?\Z",
    re.IGNORECASE,
)
_DATE = re.compile(
    r"(?:(?:19|20)\d\d[ ./-]\d{1,2}[ ./-]\d{1,2}|\d{1,2}[ ./-]\d{1,2}[ ./-](?:19|20)\d\d|"
    r"(?:19|20)\d\d\s?[-/]\s?(?:19|20)\d\d)(?!\d)"
)
_DECIMAL = re.compile(r"\+?(?:\d+\.\d{1,5}|\d{1,2}\.\d+|\d{4,}\.\d+)")
_GROUPED = re.compile(r"\(?\+\d{1,3}\)?(?:[ -]\(?\d{1,5}\)?){2,}")
_BRACKET = re.compile(r"[()]")
_BEFORE = frozenset("#$€£¥.-_/=&@%~^*")
_COUNTED = re.compile(r"[#№]\W{0,3}\Z")  # of an item, an order, a ticket
_EXTENSION = re.compile(r"\s?(?:x|ext\.?)\s?\d", re.IGNORECASE)


def has_long_number(text: str) -> bool:
    """Return whether a folded text has at least seven digits with little between them, as cards, SSNs and phone numbers do."""
    return _LONG.search(text) is not None


def find_phones(text: str, regions: Sequence[str] = REGIONS) -> Iterator[Span]:
    """Yield the spans of phone numbers in a folded text. regions: countries whose national numbers are known."""
    for run in _RUN.finditer(text):
        begin = run.start()
        while run.end() - run.start() <= 4096 and begin < run.end():  # a longer one is a table of numbers
            end = _closed_end(text, begin, run.end())
            yield from _in_run(text, begin, end, regions)
            begin = end + 1


def _closed_end(text: str, start: int, end: int) -> int:
    """Return where the first bracket in start … end is that closes one opened before; `end` if there is none."""
    opened = 0
    for match in _BRACKET.finditer(text, start, end):
        opened += 1 if match[0] == "(" else -1
        if opened < 0:
            return match.start()
    return end


def _in_run(text: str, start: int, end: int, regions: Sequence[str]) -> Iterator[Span]:
    """Yield the phone numbers in a run of digits: the run, or pieces of it where it is broken."""
    span = _number(text, start, end, regions)
    if span is not None:
        yield span
        return
    pieces = list(_BROKEN.finditer(text, start, end))
    begins = [start] + [match.end() for match in pieces]
    ends = [match.start() for match in pieces] + [end]
    for begin, stop in zip(begins, ends):
        span = (_number(text, begin, stop, regions) if pieces else None) or _longest_prefix(text, begin, stop)
        if span is not None:
            yield span
            continue
        for match in _NORTH_AMERICAN.finditer(text, begin, stop):
            if (
                match.start() - 2 >= begin
                and text[match.start() - 1] == " " == text[match.end() - 5]
                and text[match.start() - 2].isdigit()
            ):
                continue  # three of a list of numbers
            span = _number(text, match.start(), match.end(), regions)
            if span is not None:
                yield span


def _longest_prefix(text: str, start: int, end: int) -> Span | None:
    """Return the longest international number that ends before a gap, as in "+673 234 5867 28 29 30"."""
    if text[start : start + 1] != "+":
        return None
    groups = [match.end() for match in re.finditer(r"\d+", text[start : min(end, start + 32)])]
    for stop in reversed(groups[:-1]):
        if len(text[start : start + stop]) > MIN_DIGITS and _exists(
            "+" + _without_trunk_zero(text[start : start + stop]), None
        ):
            return _number(text, start, start + stop, ())
    return None


def _number(text: str, start: int, end: int, regions: Sequence[str]) -> Span | None:
    """Return the span of the phone number that text[start:end] is, without an unmatched bracket."""
    while end > start and not text[end - 1].isdigit():
        end -= 1
    while start < end and text[start] not in "+(0123456789":
        start += 1
    while start < end and text[start] == "(" and ")" not in text[start:end]:
        start += 1
    said = text[start:end]
    digits = "".join(filter(str.isdigit, said))
    if not MIN_DIGITS <= len(digits) <= MAX_DIGITS + 3 or "+" in said[2:] or _DATE.match(said) or _APART.search(said):
        return None
    before, after = text[max(0, start - 48) : start], text[end : end + 6]
    if adjoins(before[-1:]) or before[-1:] == "_":
        return None
    if (adjoins(after[:1]) or after[:1] in ("_", "%")) and not _EXTENSION.match(after):
        return None
    if after[:1] in (".", ",", "-", "/", ":", "=") and after[1:2].isdigit():
        return None
    word = _WORDS.search(before)
    opened = before[-1:] == "(" and before[-2:-1].isalnum()  # a call in a program
    named = word is not None and _is_strong(word)
    if _DECIMAL.fullmatch(said) and not (named and said.startswith("0")):
        return None
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
    if digits.startswith(("00", "011")) and (word or separated or len(digits) >= 11):
        prefix = 2 if digits.startswith("00") else 3
        if _exists("+" + digits[prefix:], None):
            return True
    if word and len(digits) <= MAX_DIGITS:
        if _is_strong(word) and _LOOSE.search(said) is None:
            return True
        return any(_exists(digits, region) for region in regions)
    if _NORTH_AMERICAN.fullmatch(said):
        return _exists(digits, "US")
    if _RUSSIAN.fullmatch(said) and len(digits) == 11:
        return _exists(digits, "RU")
    if re.fullmatch(r"\d\d(?:[ .-]\d\d)+", said) and len(digits) != 10:  # pairs make a number in France alone
        return False
    least = 9 if said.count("-") == 2 or _SLASHED.match(said) else 10
    national = separated and len(digits) >= least and re.match(r"0\d|\(0\d|0\(\d", said)
    if national and not re.match(r"0\d[:.]\d\d[:.]\d\d\s", said):
        return any(_exists(digits, region) for region in regions)
    if re.match(r"\((?!(?:19|20)\d\d\))\d{2,5}\)[ .-]{0,2}\d", said) and len(digits) >= 9:
        return any(_exists(digits, region) for region in regions)
    return False


def _is_strong(word: re.Match) -> bool:
    """Return whether the words before a number are a noun for it, without another in between: "Telephone (home): 020 …"."""
    return word["strong"] is not None and word["far"] is None


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
