"""Extract the final answer of a text, and compare two answers."""

import re
from fractions import Fraction

_MARKS = re.compile(r"####|\\boxed\s*\{|\banswer(?: is)?:", re.IGNORECASE)
_NUMBER = re.compile(r"[-+]?[$€£]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d*)?(?:[eE][-+]?\d{1,3})?|[-+]?\d+/\d+")
MAX_DIGITS = 100  # characters; longer answers are compared as texts


def final_answer(text: str) -> str:
    """Return the text after the last mark: "####" (GSM8K) or "Answer:" up to the line end, or the content of \\boxed{…}.

    Without a mark, the whole text is the answer. Only the last mark counts, so a list of guesses is no answer. If no text
    follows the mark, the result is "".

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
    """Return whether two answers are equal: as numbers if both are numbers (1,000 = 1000.0 = 1e3, 1/2 = .5), else as texts.

    Texts are compared without extra spaces, an enclosing pair of $ and a final full stop; the comparison is case-sensitive.
    """
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
    if len(text) > MAX_DIGITS or not re.search(r"\d", text) or not _NUMBER.fullmatch(text):
        return None
    try:
        return Fraction(re.sub("[,$€£]", "", text))
    except (ValueError, ZeroDivisionError):
        return None
