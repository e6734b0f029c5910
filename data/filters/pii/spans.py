"""The piece of a text that a finder reports."""

from typing import NamedTuple


class Span(NamedTuple):
    """Characters start … end − 1 of a text are of a kind: email, phone, ip, card, iban, ssn or secret."""

    start: int
    end: int
    kind: str
