"""Judge whether documents support or contradict a claim, by rules, in English, without a model.

The same rules (claims.py) split the claim and the documents, and the claim is compared with each clause of the documents:

    supported      the clause has all of the claim's names and numbers, 3 in 4 of its other words, all of its quantifiers
                   ("all", "only"), the same negation, and the same names as subject and object
    contradicted   it has these but the opposite negation; or it has all but a few, and a rival for each of those: another
                   number of the same kind (year, day, percent, of the same noun), another word of an exclusive set (months,
                   colours, east and west, rise and fall) or, for relations with one value (born in, capital of), another name
                   in the same place
    unsupported    neither for any clause. Support by one clause outweighs contradiction by another

Words are compared by their stems and a few synonyms (wording.py). Limits: no world knowledge, no categories ("a dog is an
animal"), no other paraphrases; no inference over two clauses; "may" and "said that" are ignored; different dates and numbers
conflict although both may be true ("published in 1905", "in 1915"). It errs towards "unsupported". Where that matters, ask a
model (claim_judge.py) and compare the two.
"""

import functools
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from lm.evals.factuality import wording
from lm.evals.factuality.claims import VERBS, before_verb, claims
from lm.evals.factuality.wording import stem

Label = Literal["supported", "contradicted", "unsupported", "unknown"]
COVERED = 0.75  # minimum share of the other words to find

_TOKEN = re.compile(r"\d[\d,]*(?:\.\d+)?(?:st|nd|rd|th)?\b|%|[^\W\d_]+(?:['’][^\W\d_]+)*")
_FULL_NAME = re.compile(r"\b[A-Z][\w'’-]+(?: [A-Z][\w'’-]+)+")
_THE = re.compile(r"(?:the|this) (\w+)", re.IGNORECASE)
_RANK = re.compile(r"\b(second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth)[- ](most |\w+est\b)", re.IGNORECASE)
_USA = re.compile(r"\b(?:United States(?: of America)?|U\.S\.A?\.?|USA)(?!\w)")


class Finding(NamedTuple):
    """evidence: the clause that decided."""

    label: Label
    reason: str
    evidence: str = ""


class Word(NamedTuple):
    """key: the stem, or the number. number: its kind, "" for a word. slot: the function word before it. text: the original."""

    key: str
    name: bool
    number: str
    slot: str
    text: str


class Clause(NamedTuple):
    """core: keys of the names without a preposition before them, in order."""

    text: str
    words: tuple[Word, ...]
    negated: bool
    passive: bool
    core: tuple[str, ...]


def entailed(claim: str, documents: Sequence[str]) -> Finding:
    """Return the finding for a claim; for several clauses, the worst of their findings."""
    parts = [_entailed(part, documents) for part in claims(claim) or [claim]]
    return min(parts, key=lambda part: ("contradicted", "unsupported", "supported").index(part.label))


def _entailed(claim: str, documents: Sequence[str]) -> Finding:
    hypothesis, against = read(claim), None
    if not hypothesis.words:
        return Finding("unsupported", "says nothing that can be checked")
    for document in documents:
        for premise in premises(document):
            label, reason = compared(hypothesis, premise)
            if label == "supported":
                return Finding("supported", reason, premise.text)
            if label == "contradicted" and against is None:
                against = Finding("contradicted", reason, premise.text)
    return against or Finding("unsupported", "no clause of the documents says it")


@functools.lru_cache(maxsize=256)
def premises(document: str) -> tuple[Clause, ...]:
    """Return the clauses of a document, with implied names added.

    A last name alone also gets the full name: the only one with that last name, else the one at the start of the document. A
    subject such as "the river" also gets the name at the start, unless it is a person ("the sister").
    """
    stated = claims(document)
    topic = tuple(stem(w.lower()) for w in before_verb(stated[0]).split() if w[0].isupper() and _is_name(w)) if stated else ()
    full: dict[str, set[tuple[str, ...]]] = {}
    for run in _FULL_NAME.findall(document):
        keys = tuple(stem(word.lower()) for word in run.split() if _is_name(word))
        if len(keys) > 1:
            full.setdefault(keys[-1], set()).add(keys)
    found = []
    for claim in stated:
        clause = read(claim)
        there, more = {word.key for word in clause.words}, []
        for word in clause.words:
            known = full.get(word.key, set()) if word.name else set()
            if not any(there.issuperset(keys) for keys in known):
                chosen = next(iter(known)) if len(known) == 1 else topic if topic in known else ()
                more += [Word(key, True, "", word.slot, key) for key in chosen if key not in there]
        subject = _THE.fullmatch(before_verb(claim))
        if subject and subject[1].lower() not in wording.PERSONS:
            more += [Word(key, True, "", "", key) for key in topic if key not in there]
        found.append(clause._replace(words=tuple(dict.fromkeys((*clause.words, *more)))))
    return tuple(found)


def compared(claim: Clause, premise: Clause) -> tuple[Label, str]:
    """Return the label of a claim against one clause, and the reason."""
    there = {word.key for word in premise.words}
    missing = [word for word in claim.words if word.key not in there]
    kept = [word for word in claim.words if word.key in there]
    others = [w for w in claim.words if not (w.name or w.number)]
    found = sum(w.key in there for w in others)
    if not any(_strict(word) for word in missing) and found >= COVERED * len(others):
        if not _same_roles(claim, premise):
            return "unsupported", "the names stand in other roles"
        if claim.negated != premise.negated:
            return "contradicted", "one of both is negated"
        return "supported", "said in the same words"
    if claim.negated or premise.negated or len(kept) < min(2, len(claim.words) - 1) or not any(not w.number for w in kept):
        return "unsupported", ""
    rivals = [(word, _rival(word, claim, premise, kept)) for word in missing]
    without = sum(1 for word, rival in rivals if rival is None and not _strict(word))
    if any(rival is None and _strict(word) for word, rival in rivals) or without > (1 - COVERED) * len(others):
        return "unsupported", ""
    if not any(rival for _, rival in rivals):
        return "unsupported", ""
    word, rival = next((word, rival) for word, rival in rivals if rival)
    return "contradicted", f"{rival} instead of {word.text}"


def _strict(word: Word) -> bool:
    """Return whether the claim means something else without the word."""
    return bool(
        word.name or word.number or word.key in wording.QUANTIFIERS or any(word.key in group for group in wording.EXCLUSIVE)
    )


def _rival(word: Word, claim: Clause, premise: Clause, kept: Sequence[Word]) -> str | None:
    """Return the word of the premise that takes the place of a claim's word and excludes it, or None."""
    mine = {w.key for w in claim.words}
    strangers = [w for w in premise.words if w.key not in mine]
    if word.number:
        return next((w.text for w in strangers if w.number == word.number), None)
    if group := next((g for g in wording.EXCLUSIVE if word.key in g), None):
        return next((w.text for w in strangers if w.key in group), None)
    if word.name and any(w.key in wording.ONE_VALUED for w in kept):
        turned = {"", "by"} if claim.passive != premise.passive else {"", "is"}  # slots with the same role
        if word.slot == "" and not claim.passive and any(w.key in wording.SHARED_VALUES for w in kept):
            return None
        return next((w.text for w in strangers if w.name and (w.slot == word.slot or {w.slot, word.slot} == turned)), None)
    return None


def _same_roles(claim: Clause, premise: Clause) -> bool:
    """Return whether the names that are subject and object of both come in the same order. A passive swaps the roles."""
    if claim.passive != premise.passive or not claim.core or not premise.core:
        return True
    order = [premise.core.index(name) for name in claim.core if name in premise.core]
    return bool(order) and order == sorted(order)


def read(text: str) -> Clause:
    """Parse a clause for comparison."""
    plain = _RANK.sub(
        r"\1\2", _USA.sub("USA", text.translate({0x2019: "'", 0x2018: "'"}))
    )  # the secondlargest is not the largest
    tokens = _TOKEN.findall(plain)
    words, core, slot, after = [], [], "", False  # after: a preposition came before, with no verb since
    negated = False
    for at, token in enumerate(tokens):
        lower = token.lower().removesuffix("'s")
        if lower.endswith("n't") or lower in wording.NEGATIONS:
            negated = not negated
        value = _number(tokens, at)
        if value == "":
            continue  # "million" belongs to the number before it
        if value is not None:
            words.append(Word(value, False, _kind(tokens, at), slot, token))
            continue
        if (lower in wording.FUNCTION or lower.endswith("n't")) and not (token == "May" and at):
            slot = "is" if lower in wording.AUXILIARIES else slot if lower in wording.DETERMINERS else lower
            after = lower in wording.PREPOSITIONS or (after and lower not in wording.AUXILIARIES)
            continue
        name = token[0].isupper() and (at > 0 or _is_name(token))
        key = stem(lower)
        words.append(Word(key, name, "", slot, token))
        if name and not after:
            core.append(key)
        if not name:
            slot, after = "", after and lower not in VERBS and not lower.endswith("ed")
    passive = bool(re.search(r"\b(?:was|were|is|are|been|be)\b[^.]*\bby\b", plain))
    return Clause(text, tuple(dict.fromkeys(words)), negated, passive, tuple(dict.fromkeys(core)))


def _is_name(token: str) -> bool:
    return token.lower() not in wording.FUNCTION and token.lower() not in wording.QUANTIFIERS


def _number(tokens: Sequence[str], at: int) -> str | None:
    """Return a number's value as text, None if the token is no number, "" if it multiplies the number before."""
    token = tokens[at].lower()
    if token in wording.MULTIPLES:
        return "" if at and _plain_number(tokens[at - 1]) is not None else None
    value = _plain_number(token)
    if value is None:
        return None
    times = wording.MULTIPLES.get(tokens[at + 1].lower(), 1) if at + 1 < len(tokens) else 1
    return f"{value * times:.12g}"


def _plain_number(token: str) -> float | None:
    digits = re.sub(r"(?:st|nd|rd|th)$", "", token).replace(",", "")
    if re.fullmatch(r"\d+(?:\.\d+)?", digits):
        return float(digits)
    return float(wording.NUMBERS[token.lower()]) if token.lower() in wording.NUMBERS else None


def _kind(tokens: Sequence[str], at: int) -> str:
    """Return what a number counts: year, day, percent, or the noun after it; "number" without a noun."""
    before, after, second = (tokens[n].lower() if 0 <= n < len(tokens) else "" for n in (at - 1, at + 1, at + 2))
    if re.fullmatch(r"1\d{3}|20\d{2}", tokens[at]):
        dated = before in wording.MONTHS or (before and _plain_number(before) is not None)
        if dated or not after or after in wording.FUNCTION:
            return "year"
    if before in wording.MONTHS or after in wording.MONTHS:
        return "day"
    if after in ("%", "percent", "per"):
        return "percent"
    counted = second if after in wording.MULTIPLES else after
    return stem(counted) if counted and counted not in wording.FUNCTION else "number"
