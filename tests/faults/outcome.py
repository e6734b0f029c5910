"""The outcome of a case."""

from typing import NamedTuple


class Skipped(Exception):
    """This machine cannot make the fault. The text says why."""


class Outcome(NamedTuple):
    """seen: in words. wrong: what is not as expected; empty if all is."""

    seen: str
    wrong: list[str]
