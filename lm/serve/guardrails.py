"""Guardrails: the policies of a constitution, applied to what a server is asked and to what it answers.

    guardrails = Guardrails("constitution.yaml")
    checked = guardrails.check(text, "input")      # checked.text is masked; checked.blocked says why it must not be answered
    stream = guardrails.stream()
    stream.feed("some text")                       # returns the part that may be sent, maybe ""
    stream.end()                                   # returns the rest

An answer is sent late, by the window of the rules that block or mask: a character goes out only when no span that covers it can
still be found. So nothing of a blocked span is ever sent, however the answer is cut into pieces, and streamed and whole answers
are cut and masked alike. Rules that only flag hold nothing back; they read the answer at its end (`flags`).

Spans are taken from the left; of those that begin at one place, a blocking one first, then the longest. A rule reads a folded
text (data/filters/pii/folding.py): full-width forms are plain, characters without width are gone. A rule has a reach: whether a
span begins at place s is settled once s + reach characters are there.
"""

import functools
import re
import string
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.filters.classifier import linear
from data.filters.pii.folding import fold
from data.filters.pii.masking import KINDS, find_pii
from data.filters.words import Words
from lm.align.safety.constitution import Policy, choose, load_constitution
from lm.errors import UserError

MASKED = "[removed]"  # stands for a masked span
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


class Decision(NamedTuple):
    """Why a text was changed or marked. rule: id of the policy. where: input or output. start, end: characters of the text
    before any change. why: a few words, such as the pattern that matches."""

    rule: str
    hazard: str
    where: str
    action: str
    start: int
    end: int
    why: str


class Checked(NamedTuple):
    """A text after all rules. blocked: the decision that stops it, else None; then `text` ends where it was found."""

    text: str
    decisions: tuple[Decision, ...]

    @property
    def blocked(self) -> Decision | None:
        return next((one for one in self.decisions if one.action == "block"), None)


class Guardrails:
    """The rules of a constitution's policies; without policies, nothing is checked. Threads may share it.

    path: of the constitution's file; "" or None: the shipped one, which has no policies. Raises: UserError if it is invalid.
    """

    def __init__(self, path: str | Path | None = None):
        self.constitution = load_constitution(path or None)
        rules = [rule for policy in self.constitution.policies for rule in rules_of(policy)]
        self._rules = {place: [r for r in rules if r.policy.where in (place, "both")] for place in ("input", "output")}

    def check(self, text: str, where: str) -> Checked:
        """Apply all rules for a place, "input" or "output", to a whole text."""
        stream = self.stream(where)
        changed = stream.feed(text, ended=True)
        return Checked(changed, tuple(sorted([*stream.decisions, *self.flags(text, where)], key=lambda one: one.start)))

    def stream(self, where: str = "output") -> "Stream":
        """Return a new stream for one text."""
        return Stream([rule for rule in self._rules[where] if rule.policy.action != "flag"], where)

    def flags(self, text: str, where: str = "output") -> list[Decision]:
        """Return every finding of the rules that only flag, in a whole text."""
        folded, at = fold(text)
        found = []
        for rule in self._rules[where]:
            if rule.policy.action == "flag":
                span, begin = rule.search(folded, 0, True), 0
                while span:
                    found.append(_decision(rule, span, where, at))
                    begin = max(span.end, begin + 1)
                    span = rule.search(folded, begin, True)
        return sorted(found, key=lambda one: (one.start, one.end))

    def refusal(self, decision: Decision, key: str = "") -> str:
        """Return what is said instead of a blocked text: the policy's message, or a refusal of a principle for its hazard."""
        message = next(p.message for p in self.constitution.policies if p.id == decision.rule)
        if message:
            return message
        principle = self.constitution.principle_for(decision.hazard, key)
        return choose(principle.refusals, key).format(hazard=self.constitution.name_of(decision.hazard))


class Stream:
    """One answer on its way out. decisions: what was masked or blocked until now. blocked: the decision that ended it."""

    def __init__(self, rules: Sequence[Rule], where: str):
        self.rules, self.where = rules, where
        self.decisions: list[Decision] = []
        self.blocked: Decision | None = None
        self.reach = max((rule.reach for rule in rules), default=1)
        self._runs = any(rule.policy.pii for rule in rules)
        self._raw = self._folded = ""
        self._at: np.ndarray | None = None  # place in _raw of each character of _folded; None: the same
        self._settled = self._sent = 0  # places in _folded and in _raw

    def feed(self, text: str, ended: bool = False) -> str:
        """Take the next piece of the answer and return what may be sent now. After a block it is always "".

        Work a call: that of the rules on the window and the piece.
        """
        if self.blocked:
            return ""
        if not self.rules:
            return text
        self._take(text)
        frontier = len(self._folded) if ended else max(self._settled, len(self._folded) - self.reach + 1)
        if self._runs and not ended:
            frontier = max(self._settled, settled_run(self._folded, frontier))
        out = []
        while self._settled < frontier:
            span, rule = self._first(ended)
            if span is None or span.start >= frontier:
                self._settled = frontier
                break
            decision = _decision(rule, span, self.where, self._at)
            self.decisions.append(decision)
            out.append(self._raw[self._sent : decision.start])
            self._settled, self._sent = span.end, decision.end
            if rule.policy.action == "block":
                self.blocked = decision
                return "".join(out)
            out.append(MASKED)
        until = len(self._raw)
        if not ended and self._settled < len(self._folded):
            until = max(self._sent, self._settled if self._at is None else int(self._at[self._settled]))
        out.append(self._raw[self._sent : until])
        self._sent = until
        return "".join(out)

    def end(self) -> str:
        """Return the rest of the answer that may be sent."""
        return self.feed("", ended=True)

    def _take(self, text: str) -> None:
        folded, at = fold(text)
        if at is not None and self._at is None:
            self._at = np.arange(len(self._folded))
        if self._at is not None:
            more = np.arange(len(text)) if at is None else at
            self._at = np.concatenate([self._at, more + len(self._raw)])
        self._raw += text
        self._folded += folded

    def _first(self, ended: bool) -> tuple[Span | None, Rule | None]:
        """Return the first span from _settled on, and its rule."""
        found = [(span, rule) for rule in self.rules if (span := rule.search(self._folded, self._settled, ended))]
        order = lambda one: (one[0].start, one[1].policy.action != "block", -one[0].end)  # noqa: E731
        return min(found, key=order, default=(None, None))


def _decision(rule: Rule, span: Span, where: str, at: np.ndarray | None) -> Decision:
    start, end = (span.start, span.end) if at is None else (int(at[span.start]), int(at[span.end - 1]) + 1)
    return Decision(rule.policy.id, rule.policy.hazard, where, rule.policy.action, start, end, span.why)


def rules_of(policy: Policy) -> list[Rule]:
    """Return the rules of a policy. Raises: UserError: an unbounded pattern, an unknown kind or classifier."""
    rules = [_pattern(policy, pattern) for pattern in policy.patterns]
    if policy.pii:
        if strange := sorted(set(policy.pii) - set(KINDS)):
            raise UserError(f"policy {policy.id}: pii: {strange[0]}: there are {', '.join(KINDS)}")
        rules.append(Rule(policy, PII_REACH, functools.partial(_pii, tuple(policy.pii))))
    if policy.classifier:
        rules.append(_stretches(policy))
    return rules


def _pattern(policy: Policy, pattern: str) -> Rule:
    place = f"policy {policy.id}: patterns: {pattern!r}"
    parsed = re._parser.parse(pattern, re.IGNORECASE)  # `re` has no public way to ask
    least, most = parsed.getwidth()
    if not least:
        raise UserError(f"{place} matches an empty text; let it match at least one character")
    if most > LONGEST:
        raise UserError(f"{place} may match more than {LONGEST} characters; bound its repeats, such as .{{0,80}} for .*")
    if {"ASSERT", "ASSERT_NOT", "GROUPREF"} & set(_operations(parsed)):
        raise UserError(f"{place} looks around or back, so no bounded window settles it; write it without (?=, (?!, (?<, \\1")
    compiled = re.compile(pattern, re.IGNORECASE)

    def search(text: str, begin: int, ended: bool) -> Span | None:
        match = compiled.search(text, begin)
        return Span(match.start(), match.end(), f"matches {pattern}") if match else None

    return Rule(policy, most + 1, search)  # one more: \b reads the character after the match


def _operations(node) -> Iterator[str]:
    if isinstance(node, re._parser.SubPattern | list | tuple):
        for part in node:
            yield from _operations(part)
    elif hasattr(node, "name"):  # a constant of the parser, an int with a name
        yield node.name


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


def _stretches(policy: Policy) -> Rule:
    """Return a rule that finds stretches of STRETCH characters, at fixed places, that a classifier calls harmful."""
    model, step = linear.load(policy.classifier), STRETCH // 2
    harm_of = functools.lru_cache(256)(lambda text: 1 - float(linear.scores(Words([text]), model)[0]))

    def search(text: str, begin: int, ended: bool) -> Span | None:
        for start in range(-(-begin // step) * step, len(text) if ended else len(text) - STRETCH + 1, step):
            stretch = text[start : start + STRETCH]
            if stretch.strip() and (harm := harm_of(stretch)) >= policy.threshold:
                why = f"probability of harm {harm:.3f} at least {policy.threshold:g}"
                return Span(start, start + len(stretch), why)
        return None

    return Rule(policy, STRETCH, search)
