"""Guardrails: the policies of a constitution, applied to what a server is asked and to what it answers.

    guardrails = open_guardrails("constitution.yaml")
    checked = guardrails.check_input(text)         # checked.text is masked; checked.blocked says why it must not be answered
    stream = guardrails.output()
    stream.feed("some text")                       # returns the part that may be sent, maybe ""
    stream.end()                                   # returns the rest

An answer is sent late, by the window of the rules that block or mask: a character goes out only when no span that covers it can
still be found. So nothing of a blocked span is ever sent, however the answer is cut into pieces, and streamed and whole answers
are cut and masked alike. Rules that only flag hold nothing back; they read the answer at its end (`flags`).

Spans are taken from the left; of those that begin at one place, a blocking one first, then the longest.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.filters.pii.folding import fold
from lm.align.safety.constitution import Constitution, choose, load_constitution
from lm.serve.watch.rules import Rule, Span, rules_of, settled_run

MASKED = "[removed]"  # stands for a masked span


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
    """The rules of a constitution's policies; without policies, nothing is checked. Threads may share it."""

    def __init__(self, constitution: Constitution):
        self.constitution = constitution
        rules = [rule for policy in constitution.policies for rule in rules_of(policy)]
        self._rules = {place: [r for r in rules if r.policy.where in (place, "both")] for place in ("input", "output")}

    def check_input(self, text: str) -> Checked:
        """Apply all rules for input to a whole text."""
        return self._whole(text, "input")

    def check_output(self, text: str) -> Checked:
        """Apply all rules for output to a whole answer."""
        return self._whole(text, "output")

    def output(self) -> "Stream":
        """Return a new stream for one answer."""
        return Stream(self._enforcing("output"))

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

    def _enforcing(self, where: str) -> list[Rule]:
        return [rule for rule in self._rules[where] if rule.policy.action != "flag"]

    def _whole(self, text: str, where: str) -> Checked:
        stream = Stream(self._enforcing(where), where)
        changed = stream.feed(text, ended=True)
        return Checked(changed, tuple(sorted([*stream.decisions, *self.flags(text, where)], key=lambda one: one.start)))


class Stream:
    """One answer on its way out. decisions: what was masked or blocked until now. blocked: the decision that ended it."""

    def __init__(self, rules: Sequence[Rule], where: str = "output"):
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
        until = len(self._raw) if ended else max(self._sent, _raw_place(self._settled, self._at, len(self._raw)))
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


def open_guardrails(path: str | Path | None = None) -> Guardrails:
    """Return the guardrails of a constitution file; "" or None: the shipped one, which has no policies.

    Raises: UserError: the file or one of its policies is invalid.
    """
    return Guardrails(load_constitution(path or None))


def _decision(rule: Rule, span: Span, where: str, at: np.ndarray | None) -> Decision:
    start, end = (span.start, span.end) if at is None else (int(at[span.start]), int(at[span.end - 1]) + 1)
    return Decision(rule.policy.id, rule.policy.hazard, where, rule.policy.action, start, end, span.why)


def _raw_place(place: int, at: np.ndarray | None, length: int) -> int:
    if at is None:
        return place
    return int(at[place]) if place < len(at) else length
