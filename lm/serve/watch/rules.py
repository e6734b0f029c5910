"""Rules of guardrails: find spans in a text that grows, so that no later text changes what was found.

A rule reads a folded text (data/filters/pii/folding.py): full-width forms are plain, characters without width are gone. A rule
has a reach: whether a span begins at place s is settled once s + reach characters are there.
"""

import functools
import re
import string
from collections.abc import Callable, Iterator
from typing import NamedTuple

from data.filters.classifier import linear
from data.filters.pii.masking import KINDS, find_pii
from data.filters.words import Words
from lm.align.safety.constitution import Policy
from lm.errors import UserError

LONGEST = 1000  # characters that a pattern may match
PII_REACH = 320  # characters: an e-mail address has at most 254, and context decides about numbers
KEY = string.ascii_letters + string.digits + "+/=._~-"  # characters of keys and tokens
PII_RUN = 8192  # of them in a row are held until their end
STRETCH = 400  # characters that a classifier reads at a time; each stretch begins half of that after the one before


class Span(NamedTuple):
    """Characters start … end − 1 of the folded text. why: a few words."""

    start: int
    end: int
    why: str


class Rule(NamedTuple):
    """search(text, begin, ended): the first span that begins at `begin` or later, or None; ended: nothing will follow."""

    policy: Policy
    reach: int
    search: Callable[[str, int, bool], Span | None]


def rules_of(policy: Policy) -> list[Rule]:
    """Return the rules of a policy. Raises: UserError: an unbounded pattern, an unknown kind or classifier."""
    rules = [_pattern(policy, pattern) for pattern in policy.patterns]
    if policy.pii:
        if strange := sorted(set(policy.pii) - set(KINDS)):
            raise UserError(f"policy {policy.id}: pii: {strange[0]}: there are {', '.join(KINDS)}")
        rules.append(Rule(policy, PII_REACH, functools.partial(_pii, policy.pii)))
    if policy.classifier:
        model = linear.load(policy.classifier)
        rules.append(Rule(policy, STRETCH, _Stretches(model, policy.threshold).search))
    return rules


def _pattern(policy: Policy, pattern: str) -> Rule:
    place = f"policy {policy.id}: patterns: {pattern!r}"
    least, most = _width(pattern)
    if not least:
        raise UserError(f"{place} matches an empty text; let it match at least one character")
    if most > LONGEST:
        raise UserError(f"{place} may match more than {LONGEST} characters; bound its repeats, such as .{{0,80}} for .*")
    if any(name in ("ASSERT", "ASSERT_NOT", "GROUPREF") for name in _operations(pattern)):
        raise UserError(f"{place} looks around or back, so no bounded window settles it; write it without (?=, (?!, (?<, \\1")
    compiled = re.compile(pattern, re.IGNORECASE)

    def search(text: str, begin: int, ended: bool) -> Span | None:
        match = compiled.search(text, begin)
        return Span(match.start(), match.end(), f"matches {pattern}") if match else None

    return Rule(policy, most + 1, search)  # one more: \b reads the character after the match


def _width(pattern: str) -> tuple[int, int]:
    return re._parser.parse(pattern, re.IGNORECASE).getwidth()  # `re` has no public way to ask


def _operations(pattern: str) -> Iterator[str]:
    def walk(node) -> Iterator[str]:
        if isinstance(node, re._parser.SubPattern | list | tuple):
            for part in node:
                yield from walk(part)
        elif hasattr(node, "name"):  # a constant of the parser, an int with a name
            yield node.name

    return walk(re._parser.parse(pattern, re.IGNORECASE))


def _pii(kinds: tuple[str, ...], text: str, begin: int, ended: bool) -> Span | None:
    before = max(0, begin - PII_REACH)
    for span in find_pii(text[before:], kinds):
        if before + span.start >= begin:
            return Span(before + span.start, before + span.end, f"is personal data: {span.kind}")
    return None


def settled_run(text: str, end: int) -> int:
    """Return `end`, or the begin of the run of KEY characters around it if that run reaches the end of the text: it may still
    turn out to be a secret. The run goes back at most PII_RUN characters."""
    if text[end:].strip(KEY):
        return end
    return max(end - PII_RUN, len(text[:end].rstrip(KEY)))


class _Stretches:
    """Finds stretches of STRETCH characters, at fixed places, that a classifier calls harmful."""

    def __init__(self, model: linear.Model, threshold: float):
        self.model, self.threshold = model, threshold
        self.harm = functools.lru_cache(256)(self._harm)

    def _harm(self, text: str) -> float:
        return 1 - float(linear.scores(Words([text]), self.model)[0])

    def search(self, text: str, begin: int, ended: bool) -> Span | None:
        step = STRETCH // 2
        for start in range(-(-begin // step) * step, len(text) if ended else len(text) - STRETCH + 1, step):
            stretch = text[start : start + STRETCH]
            if stretch.strip() and (harm := self.harm(stretch)) >= self.threshold:
                return Span(start, start + len(stretch), f"probability of harm {harm:.3f} at least {self.threshold:g}")
        return None
