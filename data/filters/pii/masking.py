"""Find all kinds of personal data in texts, count them, and mask them."""

import bisect
from collections.abc import Callable, Sequence

import numpy as np

from data.filters.pii.emails import find_emails
from data.filters.pii.folding import Span, decode_entities, fold
from data.filters.pii.ips import find_ips
from data.filters.pii.numbers import find_cards, find_ibans, find_ssns
from data.filters.pii.phones import REGIONS, find_phones, has_long_number
from data.filters.pii.secrets import find_secrets
from lm.errors import UserError

# In this order of precedence: where two spans overlap, that of the earlier kind stays, and of one kind the first, longest one.
KINDS = ("secret", "email", "iban", "card", "ip", "ssn", "phone")
_NUMBERS = frozenset(("card", "ssn", "phone"))  # they have seven digits or more
STYLES = ("placeholder", "same_length", "fineweb")

# The replacements of FineWeb, used in turn (datatrove 0.10.1, PIIFormatter): reserved names, and addresses that did not answer.
FINEWEB = {
    "email": ("email@example.com", "firstname.lastname@example.org"),
    "ip": ("22.214.171.124", "126.96.36.199", "188.8.131.52", "184.108.40.206", "220.127.116.11", "18.104.22.168"),
}


def find_pii(
    text: str, kinds: Sequence[str] = KINDS, public_ips_only: bool = True, regions: Sequence[str] = REGIONS
) -> list[Span]:
    """Return the spans of personal data in a text, in order and without overlap. Indices count characters of `text`.

    Args:
        kinds: those to find, of `KINDS`.
        public_ips_only: leave IP addresses of private networks and of documentation.
        regions: countries (ISO 3166 codes) whose phone numbers are found without a country code.

    Raises:
        UserError: there is no such kind.
    """
    if unknown := set(kinds).difference(KINDS):
        raise UserError(f"kinds: {min(unknown)}: there are {', '.join(KINDS)}")
    decoded, places = decode_entities(text)
    folded, at = fold(decoded)
    finders: dict[str, Callable] = {
        "secret": find_secrets,
        "email": find_emails,
        "iban": find_ibans,
        "card": find_cards,
        "ip": lambda folded: find_ips(folded, public_ips_only),
        "ssn": find_ssns,
        "phone": lambda folded: find_phones(folded, regions),
    }
    numbers = not _NUMBERS.isdisjoint(kinds) and has_long_number(folded)
    taken: list[Span] = []
    for kind in KINDS:
        if kind in kinds and (numbers or kind not in _NUMBERS):
            found = sorted(finders[kind](folded), key=lambda span: (span.start, -span.end))
            if found:
                taken = _merged(taken, found)
    if at is not None:
        taken = [Span(int(at[span.start]), int(at[span.end - 1]) + 1, span.kind) for span in taken]
    if places is not None:
        taken = [Span(int(places[span.start]), int(places[span.end]), span.kind) for span in taken]
    return taken


def mask_pii(
    texts: Sequence[str],
    style: str = "placeholder",
    kinds: Sequence[str] = KINDS,
    public_ips_only: bool = True,
    regions: Sequence[str] = REGIONS,
) -> tuple[list[str], dict[str, np.ndarray]]:
    """Return the texts with masked personal data, and counts. Outside the spans of `find_pii` no character changes.

    Args:
        style: placeholder: `<EMAIL>`, `<PHONE>` …; same_length: each letter becomes x and each digit 0, so the text keeps
            its length and layout; fineweb: e-mail and IP addresses become those that FineWeb has, other kinds placeholders.
        kinds, public_ips_only, regions: as in `find_pii`.

    Returns:
        The new texts, and int32 columns [documents]: pii_email … for each of `kinds`, and pii_characters, the number of masked
        characters.
    """
    if style not in STYLES:
        raise UserError(f"style: {style}: there are {', '.join(STYLES)}")
    columns = {f"pii_{kind}": np.zeros(len(texts), np.int32) for kind in KINDS if kind in kinds}
    columns["pii_characters"] = np.zeros(len(texts), np.int32)
    masked = []
    for number, text in enumerate(texts):
        spans = find_pii(text, kinds, public_ips_only, regions)
        for span in spans:
            columns[f"pii_{span.kind}"][number] += 1
            columns["pii_characters"][number] += span.end - span.start
        masked.append(replace_spans(text, spans, style) if spans else text)
    return masked, columns


def replace_spans(text: str, spans: Sequence[Span], style: str = "placeholder") -> str:
    """Return the text with a mask in place of each span. The spans are in order and do not overlap."""
    pieces, reached, used = [], 0, dict.fromkeys(KINDS, 0)
    for start, end, kind in spans:
        pieces += text[reached:start], _mask(text[start:end], kind, style, used[kind])
        reached = end
        used[kind] += 1
    return "".join((*pieces, text[reached:]))


def _mask(said: str, kind: str, style: str, number: int) -> str:
    if style == "same_length":
        return "".join("0" if c.isdigit() else "x" if c.isalpha() else c for c in said)
    if style == "fineweb" and kind in FINEWEB:
        return FINEWEB[kind][number % len(FINEWEB[kind])]
    return f"<{kind.upper()}>"


def _merged(taken: list[Span], found: list[Span]) -> list[Span]:
    """Return both lists as one in order, without those of `found` that overlap one of `taken` or an earlier one of `found`."""
    merged, reached = list(taken), 0
    for span in found:
        before = bisect.bisect_left(taken, (span.end,))  # those of `taken` that begin before the end
        if span.start >= max(reached, taken[before - 1].end if before else 0):
            merged.append(span)
            reached = span.end
    return sorted(merged)
