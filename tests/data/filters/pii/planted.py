"""Personal data of every kind, drawn at random, spaced with noise, and planted into real text.

Card numbers and IBANs have right check digits. Phone numbers are libphonenumber's examples with other last digits.
"""

import ipaddress
import random
import re
import string

from tests.data.filters.pii.cases import luhn_completed

LETTERS = string.ascii_lowercase
WORD = string.ascii_letters + string.digits
UPPER = string.ascii_uppercase + string.digits
HEX = "0123456789abcdef"
# Between groups of digits: plain, typographic (no-break, narrow and thin spaces, hyphens, dashes) and careless.
GAPS = (" ", "-", ".", " - ", "  ", "\u00a0", "\u202f", "\u2009", "\u2010", "\u2011", "\u2013", "\u200b", "\n")

# Of the IBAN registry (SWIFT, release 99): n digits, a capital letters, c both.
IBANS = """AD 8n12c AE 19n AL 8n16c AT 16n AZ 4a20c BA 16n BE 12n BG 4a6n8c BH 4a14c BR 23n1a1c BY 4c4n16c CH 5n12c CR 18n CY
    8n16c CZ 20n DE 18n DK 14n DO 4c20n EE 16n EG 25n ES 20n FI 14n FO 14n FR 10n11c2n GB 4a14n GE 2a16n GI 4a15c GL 14n
    GR 7n16c GT 4c20c HR 17n HU 24n IE 4a14n IL 19n IQ 4a15n IS 22n IT 1a10n12c JO 4a4n18c KW 4a22c KZ 3n13c LB 4n20c LC
    4a24c LI 5n12c LT 16n LU 3n13c LV 4a13c MC 10n11c2n MD 2c18c ME 18n MK 3n10c2n MR 23n MT 4a5n18c MU 4a19n3a NL 4a10n
    NO 11n PK 4a16c PL 24n PS 4a21c PT 21n QA 4a21c RO 4a16c RS 18n SA 2n18c SC 4a20n3a SE 20n SI 15n SK 20n SM 1a10n12c
    TN 20n TR 6n16c UA 6n19c VA 18n VG 4a16n XK 16n""".split()
CARDS = (
    *(
        ("4", 16),
        ("51", 16),
        ("55", 16),
        ("2221", 16),
        ("2720", 16),
        ("34", 15),
        ("37", 15),
        ("6011", 16),
        ("644", 16),
        ("65", 16),
    ),
    *(
        ("3528", 16),
        ("3589", 16),
        ("36", 14),
        ("3001", 14),
        ("38", 14),
        ("62", 16),
        ("6221", 19),
        ("2200", 16),
        ("6759", 16),
        ("50", 16),
    ),
)
PHONE_WORDS = (
    "Tel.",
    "Tel:",
    "phone",
    "Phone:",
    "Telefon",
    "Tél. :",
    "Fax",
    "mobile",
    "тел.",
    "電話",
    "call me at",
    "Mob.:",
    "Cell",
)
LEADS = ("", "", "", "see ", "(", "from ", "- ", "* ", "“", "is: ", "=", ">")
HOSTS = (
    *(
        "gmail.com",
        "yahoo.co.uk",
        "mail.ru",
        "gmx.de",
        "uni-bonn.de",
        "cs.mit.edu",
        "corp.co.jp",
        "a1.b2.io",
        "orange.fr",
        "libero.it",
    ),
    *(
        "tele2.se",
        "wp.pl",
        "example.museum",
        "shop.online",
        "team.dev",
        "x-ray.ai",
        "seznam.cz",
        "bücher.ch",
        "uol.com.br",
        "nic.in",
    ),
)
ATS = ("@",) * 8 + (" (at) ", " [at] ", "(at)", "[at]", " at ", " AT ", " @ ", "\u200b@", "&#64;", "{at}", " <at> ", "＠")
DOTS = (" (dot) ", " [dot] ", "(dot)", "[dot]", " dot ", " DOT ", "{dot}")


def card(draw: random.Random) -> str:
    """Return a card number of a random brand."""
    prefix, length = draw.choice(CARDS)
    number = luhn_completed(prefix + "".join(draw.choices(string.digits, k=length - len(prefix) - 1)))
    sizes = {14: (4, 6, 4), 15: (4, 6, 5), 16: (4, 4, 4, 4), 19: draw.choice(((4, 4, 4, 4, 3), (6, 13)))}[length]
    return _grouped(number, sizes, draw.choice(("", "", " ", *GAPS)))


def iban(draw: random.Random) -> str:
    """Return an IBAN of a random country."""
    place = 2 * draw.randrange(len(IBANS) // 2)
    account = ""
    for many, kind in re.findall(r"(\d+)([nac])", IBANS[place + 1]):
        letters = {"n": string.digits, "a": string.ascii_uppercase, "c": draw.choice((UPPER, string.digits))}[kind]
        account += "".join(draw.choices(letters, k=int(many)))
    number = int("".join(str(int(c, 36)) for c in account + IBANS[place] + "00"))
    whole = f"{IBANS[place]}{98 - number % 97:02d}{account}"
    said = _grouped(whole, [4] * (len(whole) // 4 + 1), draw.choice(("", "", " ", *GAPS)))
    return said.lower() if draw.random() < 0.2 else said


def phone(draw: random.Random) -> tuple[str, str]:
    """Return a phone number of a random region, and the words before it: national numbers need them."""
    import phonenumbers

    kinds, forms = phonenumbers.PhoneNumberType, phonenumbers.PhoneNumberFormat
    while True:
        kind = draw.choice((kinds.FIXED_LINE, kinds.MOBILE))
        number = phonenumbers.example_number_for_type(draw.choice(sorted(phonenumbers.SUPPORTED_REGIONS)), kind)
        if number is None or len(str(number.national_number)) < 7:
            continue
        last = draw.randrange(1, 1000)
        number.national_number = number.national_number // 1000 * 1000 + last
        if phonenumbers.is_valid_number(number):
            break
    national = draw.random() < 0.4
    said = phonenumbers.format_number(number, forms.NATIONAL if national else draw.choice((forms.INTERNATIONAL, forms.E164)))
    if draw.random() < 0.5:
        gap = draw.choice(GAPS)
        said = re.sub(r"(?<=\w)[ -]+(?=\w)", lambda _: gap, said)
    if not national and draw.random() < 0.15:
        said = "00" + said[1:]
    if draw.random() < 0.05:
        said = said.translate({ord("0") + n: 0xFF10 + n for n in range(10)})
    return said, draw.choice(PHONE_WORDS) + " " if national else draw.choice(LEADS)


def email(draw: random.Random) -> str:
    """Return an e-mail address, plain or spelled against harvesters."""
    first, last = ("".join(draw.choices(LETTERS, k=draw.randint(2, 8))) for _ in range(2))
    local = draw.choice(
        (
            first,
            f"{first}.{last}",
            f"{first[0]}.{last}",
            f"{first}_{last}",
            f"{first}{draw.randint(1, 2010)}",
            f"{first}-{last}",
        )
    )
    local, host, at = local + draw.choice(("", "", "", "+news")), draw.choice(HOSTS), draw.choice(ATS)
    if at.strip().strip("([{<").lower().startswith("at") and draw.random() < 0.6:
        dot = draw.choice(DOTS)
        host = host.replace(".", dot)
    said = local + at + host
    return said.upper() if draw.random() < 0.05 else said


def ip(draw: random.Random) -> str:
    """Return a public IP address, version 4 or 6, plain or defanged."""
    if draw.random() < 0.6:
        while (
            not (address := ipaddress.IPv4Address(draw.getrandbits(32))).is_global
            or address.is_multicast
            or address.is_reserved
        ):
            pass
        return str(address).replace(".", draw.choice((".",) * 6 + ("[.]", "(.)", "[dot]")))
    number = 0x2A << 120 | draw.getrandbits(24) << 96 | (draw.getrandbits(64) if draw.random() < 0.7 else draw.getrandbits(16))
    address = ipaddress.IPv6Address(number)
    said = draw.choice((str(address), address.exploded))
    return said.upper() if draw.random() < 0.3 else said


def ssn(draw: random.Random) -> str:
    """Return a United States social security number."""
    area = draw.choice([n for n in range(1, 900) if n != 666])
    gap = draw.choice(("-", "-", "-", " ", "\u2011", "\u2013"))
    return f"{area:03d}{gap}{draw.randint(1, 99):02d}{gap}{draw.randint(1, 9999):04d}"


def secret(draw: random.Random) -> str:
    """Return a key or token of a random provider."""

    def some(letters: str, many: int) -> str:
        return "".join(draw.choices(letters, k=many))

    return draw.choice(
        (
            lambda: draw.choice(("AKIA", "ASIA")) + some(string.ascii_uppercase + "234567", 16),
            lambda: f"gh{draw.choice('pousr')}_" + some(WORD, 36),
            lambda: "github_pat_" + some(WORD, 22) + "_" + some(WORD, 59),
            lambda: "glpat-" + some(WORD + "_-", 19) + some(WORD, 1),
            lambda: "xoxb-" + some(string.digits, 12) + "-" + some(string.digits, 12) + "-" + some(WORD, 24),
            lambda: draw.choice(("sk", "rk")) + draw.choice(("_live_", "_test_")) + some(WORD, 24),
            lambda: "AIza" + some(WORD + "_-", 34) + some(WORD, 1),
            lambda: "sk-" + some(WORD, 48),
            lambda: "sk-ant-api03-" + some(WORD + "_-", 93) + "AA",
            lambda: "sk-proj-" + some(WORD, 74) + "T3Blbk" + "FJ" + some(WORD, 74),
            lambda: "npm_" + some(WORD, 36),
            lambda: "pypi-AgEIcHlwaS5vcmc" + some(WORD, 130),
            lambda: "hf_" + some(string.ascii_letters, 34),
            lambda: "SG." + some(WORD, 22) + "." + some(WORD, 43),
            lambda: "eyJhbGciOiJIUzI1NiJ9.eyJ" + some(WORD, 30) + "." + some(WORD + "_-", 42) + some(WORD, 1),
            lambda: (
                f"-----BEGIN {draw.choice(('RSA ', 'EC ', '', 'OPENSSH '))}PRIVATE KEY-----\n"
                f"{some(WORD, 64)}\n{some(WORD, 30)}==\n-----END PRIVATE KEY-----"
            ),
        )
    )()


def planted(texts: list[str], many: int, seed: int) -> list[str]:
    """Return `many` marked texts: pieces of `texts` of 200 to 400 characters, each with one item at a space."""
    draw = random.Random(seed)
    plain = {"card": card, "iban": iban, "email": email, "ip": ip, "secret": secret}
    kinds = (*plain, "phone", "phone", "phone", "ssn")
    marked = []
    while len(marked) < many:
        text = draw.choice(texts)
        start = draw.randrange(max(1, len(text) - 400))
        piece = text[start : start + draw.randint(200, 400)]
        spaces = [n for n, c in enumerate(piece) if c in " \n"]
        if not spaces or re.search(r"[⟦⟧@]", piece):
            continue
        place, kind = draw.choice(spaces), draw.choice(kinds)
        if kind == "phone":
            said, lead = phone(draw)
        elif kind == "ssn":
            said, lead = ssn(draw), draw.choice(("SSN ", "Social security number: ", "ssn=", "his SSN is "))
        else:
            said, lead = plain[kind](draw), draw.choice(LEADS)
        after = draw.choice(("", "", ".", ",", ";", ")", "\n", "!", "?")) if lead[:1] != "(" else ")"
        gap = draw.choice(" \n")
        marked.append(f"{piece[:place]}{gap}{lead}⟦{kind}:{said}⟧{after}{piece[place:]}")
    return marked


def _grouped(whole: str, sizes, gap: str) -> str:
    """Return the characters in groups of the given sizes, joined by `gap`."""
    groups, at = [], 0
    for size in sizes:
        groups.append(whole[at : at + size])
        at += size
    return gap.join(group for group in groups if group)
