"""The final answer of a text, and when two answers are the same."""

import re
from fractions import Fraction

_MARKS = re.compile(r"####|\\boxed\s*\{|\banswer(?: is)?:", re.IGNORECASE)
_NUMBER = re.compile(r"[-+]?[$€£]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d*)?(?:[eE][-+]?\d{1,3})?|[-+]?\d+/\d+")
MOST_DIGITS = 100  # characters of what is read as a number; longer ones are texts


def final_answer(text: str) -> str:
    """What follows the last "####" (GSM8K) or "Answer:" on its line, or stands in the last \\boxed{…}; else the whole text.

    The last mark counts, so that no list of guesses is an answer; one that nothing follows gives "".

    >>> final_answer("2 + 2 is 4. #### 4")
    '4'
    """
    marks = list(_MARKS.finditer(text))
    if not marks:
        return text.strip()
    end = marks[-1].end()
    if marks[-1][0].startswith("\\"):
        return _within_braces(text[end:]).strip()
    return text[end:].split("\n", 1)[0].strip()


def _within_braces(text: str) -> str:
    depth = 1
    for i, character in enumerate(text):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if not depth:
            return text[:i]
    return ""  # never closed: no answer


def same_answer(given: str, right: str) -> bool:
    """Whether two answers are equal: as numbers if both are (1,000 = 1000.0 = 1e3, 1/2 = .5), else as texts, of which space
    between words, a pair of $ around and a full stop at the end do not count; case does."""
    given, right = _normalised(given), _normalised(right)
    if given == right:
        return True
    one, other = _number(given), _number(right)
    return one is not None and one == other


def _normalised(answer: str) -> str:
    answer = " ".join(answer.replace("\u2212", "-").split())
    if len(answer) > 2 and answer[0] == answer[-1] == "$":
        answer = answer[1:-1].strip()
    return answer[:-1].rstrip() if re.search(r"[^.]\.$", answer) else answer


def _number(text: str) -> Fraction | None:
    if len(text) > MOST_DIGITS or not re.search(r"\d", text) or not _NUMBER.fullmatch(text):
        return None
    try:
        return Fraction(re.sub("[,$€£]", "", text))
    except (ValueError, ZeroDivisionError):
        return None
