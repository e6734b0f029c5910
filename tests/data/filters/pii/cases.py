"""Hand-written and generated texts with personal data, marked as ⟦kind:…⟧, and texts that only look like it.

Hand-written sets are pairs of files: personal.txt and clean.txt; forms.txt and lookalikes.txt, with the forms of many
countries, brands and providers; letters.txt and figures.txt, as letters, notices and logs have them.

Generated card numbers, IBANs and phone numbers have right check digits and real numbering plans, but belong to nobody: they are
drawn at random or are the example numbers of libphonenumber.
"""

import random
import re
import string
from pathlib import Path

MARK = re.compile(r"⟦(\w+):(.*?)⟧", re.DOTALL)
# Escapes such as \u200b stand for that character. They also keep invented keys from looking real to a scanner of repositories.
HERE = Path(__file__).parent


def unmarked(text: str) -> tuple[str, list[tuple[int, int, str]]]:
    """Return the text without marks, and the (start, end, kind) that they enclosed."""
    pieces, spans, reached, length = [], [], 0, 0
    for match in MARK.finditer(text):
        pieces.append(text[reached : match.start()])
        length += len(pieces[-1])
        spans.append((length, length + len(match[2]), match[1]))
        pieces.append(match[2])
        length += len(match[2])
        reached = match.end()
    return "".join(pieces) + text[reached:], spans


def luhn_completed(prefix: str) -> str:
    """Return the digits with a check digit, found by trial."""
    for digit in "0123456789":
        total = 0
        for place, character in enumerate(reversed(prefix + digit)):
            value = int(character) * (1 + place % 2)
            total += value // 10 + value % 10
        if total % 10 == 0:
            return prefix + digit
    raise AssertionError


def generated(seed: int) -> list[str]:
    """Return marked texts: random cards, IBANs and e-mail addresses, and the example phone numbers of 45 countries."""
    import phonenumbers

    draw = random.Random(seed)
    texts = []
    cards = (
        ("4", 16),
        ("51", 16),
        ("55", 16),
        ("2221", 16),
        ("34", 15),
        ("37", 15),
        ("6011", 16),
        ("65", 16),
        ("3528", 16),
        ("36", 14),
    )
    for prefix, length in cards * 4:
        digits = luhn_completed(prefix + "".join(draw.choices(string.digits, k=length - len(prefix) - 1)))
        sizes = {16: (4, 4, 4, 4), 15: (4, 6, 5), 14: (4, 6, 4)}[length]
        at = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
        said = draw.choice(["", " ", "-", " - ", ".", "\u00a0"]).join(digits[a:b] for a, b in zip(at, at[1:]))
        texts.append(f"He paid with {draw.choice(['card', 'no.', 'number'])} ⟦card:{said}⟧ in May.")
    for country, length in (("DE", 22), ("FR", 27), ("NL", 18), ("PT", 25), ("GR", 27), ("FI", 18), ("CZ", 24), ("HU", 28)) * 4:
        letters = "ABNA" if country == "NL" else ""
        account = letters + "".join(draw.choices(string.digits, k=length - 4 - len(letters)))
        number = int("".join(str(int(c, 36)) for c in account + country + "00"))
        said = f"{country}{98 - number % 97:02d}{account}"
        if draw.random() < 0.5:
            said = " ".join(said[i : i + 4] for i in range(0, length, 4))
        texts.append(f"Pay to ⟦iban:{said}⟧ today.")
    names = ("anna", "b.meier", "chen_li", "d-king", "eva99", "f.o.o", "g+tag")
    hosts = ("gmail.com", "mail.ru", "uni-ulm.de", "corp.co.jp", "a.b.c.org", "web.de", "site.info", "x-y.dev")
    shapes = ("{}@{}", "{} (at) {}", "{}[at]{}", "{} @ {}", "{}@\u200b{}")
    for n in range(60):
        said = draw.choice(shapes).format(draw.choice(names), draw.choice(hosts))
        if n % 4 == 0:
            said = said.replace("@", draw.choice([" at ", " AT "])).replace(".", draw.choice([" dot ", "[dot]"]))
            if " at " in said.lower() and "  " in said:
                said = " ".join(said.split())
        texts.append(f"Write to ⟦email:{said}⟧, please.")
    regions = (
        "US CA GB IE AU NZ DE AT CH FR BE NL LU ES PT IT GR SE NO DK FI PL CZ SK HU RO BG UA RU TR IL AE IN PK BD CN "
        "JP KR TW SG TH VN BR MX ZA"
    ).split()
    kinds = (phonenumbers.PhoneNumberType.FIXED_LINE, phonenumbers.PhoneNumberType.MOBILE)
    for region in regions:
        for kind in kinds:
            number = phonenumbers.example_number_for_type(region, kind)
            form = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.INTERNATIONAL)
            texts.append(f"We are open until five, ⟦phone:{form}⟧ or by mail.")
            form = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.NATIONAL)
            texts.append(f"{draw.choice(['Tel.', 'Phone:', 'Fax', 'Mobile:'])} ⟦phone:{form}⟧")
    return texts


def positives(seed: int = 0) -> list[str]:
    """Return the marked texts of personal.txt, and generated ones."""
    return written("personal.txt") + generated(seed)


def written(name: str) -> list[str]:
    """Return the marked texts of a file, one a line; a marked piece may go over lines."""
    texts, whole = [], ""
    for line in (HERE / name).read_text(encoding="utf-8").splitlines():
        whole += ("\n" if whole else "") + line
        if whole.count("⟦") == whole.count("⟧"):
            texts.append(re.sub(r"\\u([0-9a-f]{4})", lambda match: chr(int(match[1], 16)), whole))
            whole = ""
    return texts


def negatives(name: str = "clean.txt") -> list[str]:
    """Return the texts without personal data of a file, one a line."""
    return (HERE / name).read_text(encoding="utf-8").splitlines()
