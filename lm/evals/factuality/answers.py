"""Compare short answers, and detect abstentions."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from lm.evals.judges.refusals import is_refusal

Verdict = Literal["correct", "incorrect", "abstained"]

# Beginnings of an abstention. The text is in lower case and "don't" has a plain apostrophe.
_KNOW = (
    r"(?:do not|don't|did not|didn't) (?:\w+ly )?(?:know|recall|remember|have (?:\w+ ){0,2}(?:information|knowledge|idea|data))"
)
_ABSTAINS = re.compile(
    rf"\b(?:i|we) (?:\w+ly |just )?{_KNOW}"
    r"|\b(?:i|we)(?: a|')(?:m|re) (?:\w+ly )?(?:not (?:sure|certain|aware|familiar)|unsure|uncertain|unaware|unable to)"
    r"|\b(?:can't|cannot|can not|could not|couldn't|unable to) (?:be )?(?:answer|say\b|tell\b|determin|find|verif|confirm)"
    r"|\bno idea\b|\bthere is (?:no|not enough|insufficient) (?:\w+ )?(?:information|answer|evidence)"
    r"|\b(?:it|this|that|the answer)(?: is|'s) (?:not known|unknown|unclear)"
    r"|^(?:the answer is )?(?:unknown|unanswerable|not known|no answer|n/a|not sure|unsure)\W*$"
)
# After these words an abstention goes on to guess, unless the rest matches _NO_GUESS.
_TURN = re.compile(r"\b(?:but|however|although|though|perhaps|maybe|probably|my (?:best )?guess|i (?:think|believe|guess))\b")
_NO_GUESS = re.compile(r"^\W*(?:i|i'm|we|you|if|please|sorry|thank|there|feel)\b")
_HEDGES = re.compile(r"\b(?:not|no|never|neither|nor|or)\b|n't\b")
OPENING = 160  # characters in which an abstention must begin


def normal(text: str) -> str:
    """Normalise an answer as SQuAD does (Rajpurkar et al. 2016): lower case, no punctuation, no articles, single spaces.

    As in TriviaQA, other scripts' quotation marks are punctuation and underscores are spaces. So 3.5 becomes 35, a known flaw
    of the benchmarks. An answer of only articles and punctuation stays as it is.
    """
    plain = unicodedata.normalize("NFC", text).lower().replace("_", " ")
    letters = "".join(c for c in plain if not (unicodedata.category(c).startswith("P") or c in "$+<=>^`|~´"))
    return " ".join(re.sub(r"\b(?:a|an|the)\b", " ", letters).split()) or " ".join(plain.split())


def f1(answer: str, aliases: Sequence[str]) -> float:
    """Return the best F1 of the words of normal(answer) with those of an alias (SQuAD)."""
    best, words = 0.0, normal(answer).split()
    for alias in aliases:
        right = normal(alias).split()
        common = sum((Counter(words) & Counter(right)).values())
        best = max(best, 2 * common / (len(words) + len(right)) if common else 0.0)
    return best


def abstains(answer: str, phrase: str = "") -> bool:
    """Return whether an answer abstains: by `phrase`, by the rules above, by a refusal, or because it is empty.

    An answer that goes on to guess ("I'm not sure, but I think it is Rome") does not abstain.
    """
    return not answer.strip() or guess(answer, phrase) == ""


def guess(answer: str, phrase: str = "") -> str | None:
    """Return the guess after an abstention, "" without a guess; None if the answer does not abstain."""
    plain = " ".join(answer.translate({0x2019: "'", 0x2018: "'"}).lower().split())
    stated = normal(phrase) if phrase else ""
    if stated and re.match(rf"{re.escape(stated)}(?!\w)", normal(plain)):
        begin = 0
    elif match := _ABSTAINS.search(plain[:OPENING]):
        begin = match.end()
    elif is_refusal(answer):
        begin = 0
    else:
        return None
    turn = _TURN.search(plain, begin)
    rest = plain[turn.end() :].strip(" ,.:;!") if turn else ""
    return "" if not rest or _NO_GUESS.match(rest) and not _TURN.match(rest) or _ABSTAINS.search(rest) else rest


def judged(answer: str, aliases: Sequence[str], phrase: str = "", match: Literal["exact", "contains"] = "exact") -> Verdict:
    """Return whether an answer is one of the aliases, abstains, or is wrong. Without aliases, any answer is wrong.

    "contains" also accepts an alias as whole words inside a longer answer, unless the answer denies it or offers a choice ("not
    Paris", "Paris or Rome").
    """
    text, rights = normal(answer), [normal(alias) for alias in aliases]
    if text and text in rights:
        return "correct"
    rest = guess(answer, phrase)
    if rest == "" or not answer.strip():
        return "abstained"
    if match == "contains" or rest:
        words = f" {normal(rest or answer)} "
        for right in filter(None, rights):
            if f" {right} " in words and not _HEDGES.search((rest or answer).lower().replace(right, "")):
                return "correct"
    return "incorrect"
