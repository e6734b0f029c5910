"""The plain twin of data/filters/splitting.py: spaCy's rules as regular expressions."""

import functools
import re
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

from data.filters.characters import ICONS, LETTERS, LOWER, UPPER
from data.filters.splitting import (
    AFTER,
    AFTER_DIGIT,
    BEFORE,
    BEFORE_FULL_STOP,
    CURRENCIES,
    EXCEPTIONS,
    LONGEST_EXCEPTION,
    QUOTES,
)


def _any(texts: Sequence[str]) -> str:
    return "|".join(map(re.escape, sorted(texts, key=len, reverse=True)))


_LONGEST_SUFFIX = max(map(len, AFTER_DIGIT)) + 1
_HOST_CHARACTER = "A-Za-z0-9\u00a1-\uffff"


class _Rules(NamedTuple):
    prefix: re.Pattern
    suffix: re.Pattern
    infix: re.Pattern
    address: re.Pattern


@functools.cache
def _rules() -> _Rules:
    return _Rules(
        prefix=re.compile(rf"\.\.+|\+(?![0-9])|{_any(CURRENCIES)}|[{re.escape(BEFORE)}{ICONS}]"),
        suffix=re.compile(
            rf"(?:……|['’][sS]|(?<=[0-9])(?:{_any(AFTER_DIGIT)})|(?<=[{re.escape(BEFORE_FULL_STOP)}{LOWER}])\."
            rf"|(?<=[{UPPER}][{UPPER}])\.|(?<=°[FfCcKk])\.|[{re.escape(AFTER)}{ICONS}])\Z"
        ),
        infix=re.compile(
            rf"\.\.+|…|[{ICONS}]|(?<=[0-9])[+\-*^](?=[0-9-])|(?<=[{LOWER}{QUOTES}])\.(?=[{UPPER}{QUOTES}])"
            rf"|(?<=[{LETTERS}]),(?=[{LETTERS}])|(?<=[{LETTERS}0-9])(?:-|–|—|--|---|——|~)(?=[{LETTERS}])"
            rf"|(?<=[{LETTERS}0-9])[:<>=/](?=[{LETTERS}])"
        ),
        address=re.compile(
            r"(?:[\w+.-]{2,}://)?(?:\S+@)?(?:"
            r"(?!(?:10|127)\.|169\.254\.|192\.168\.|172\.(?:1[6-9]|2[0-9]|3[01])\.)"  # private networks
            r"(?:[1-9][0-9]?|1[0-9]{2}|2[01][0-9]|22[0-3])(?:\.(?:1?[0-9]{1,2}|2[0-4][0-9]|25[0-5])){2}"
            r"\.(?:[1-9][0-9]?|1[0-9]{2}|2[0-4][0-9]|25[0-4])"
            rf"|(?:[{_HOST_CHARACTER}](?:[{_HOST_CHARACTER}_-]{{0,62}}[{_HOST_CHARACTER}])?\.)+[{LOWER}]{{2,63}}"
            r")(?::[0-9]{2,5})?(?:[/?#]\S*)?"
        ),
    )


def split(chunk: str) -> list[str]:
    """Return the words of a non-empty text without white space; together they are the text."""
    return _joined(_parts(chunk, EXCEPTIONS))


@functools.cache
def cut_exceptions() -> dict[tuple[str, ...], tuple[str, ...]]:
    """Return the words of those exceptions that the rules would cut, by the parts that the rules give."""
    parts = {tuple(_parts(text, {})): words for text, words in EXCEPTIONS.items()}
    return {some: words for some, words in parts.items() if len(some) > 1}


def _parts(chunk: str, exceptions: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the words of a chunk as long as no exception is looked for among them."""
    cuts, begin, end = {0, len(chunk)}, 0, len(chunk)

    def is_exception(begin: int, end: int) -> bool:
        return end - begin <= LONGEST_EXCEPTION and chunk[begin:end] in exceptions

    while begin < end and not is_exception(begin, end):
        prefix = _rules().prefix.match(chunk, begin, end)
        inner = prefix.end() if prefix else begin
        outer = end if is_exception(inner, end) else end - _suffix(chunk[inner:end])
        if is_exception(begin, outer):  # its first mark belongs to it
            inner = begin
        if (begin, end) == (inner, outer):
            break
        cuts |= {inner, outer}
        begin, end = inner, outer
    middle = chunk[begin:end]
    if middle in exceptions:
        cuts.update(accumulate(map(len, exceptions[middle]), initial=begin))
    elif not _rules().address.fullmatch(middle):
        cuts.update(begin + at for match in _rules().infix.finditer(middle) for at in match.span())
    return [chunk[a:b] for a, b in pairwise(sorted(cuts))]


def _suffix(chunk: str) -> int:
    """Return the length of the mark or unit that comes off the end, or 0."""
    if chunk.endswith(".."):
        return len(chunk) - len(chunk.rstrip("."))
    match = _rules().suffix.search(chunk[-_LONGEST_SUFFIX:])
    return len(match[0]) if match else 0


def _joined(parts: Sequence[str]) -> list[str]:
    """Return the parts with the words of exceptions that were cut, such as "):" in "(a):".

    The longest come first, of equal ones the leftmost. As in spaCy, one that overlaps an earlier one is left cut, and its parts
    are lost to later ones too.
    """
    exceptions, free, words = cut_exceptions(), [True] * len(parts), {}
    for size in range(min(len(parts), LONGEST_EXCEPTION), 1, -1):
        for k in range(len(parts) - size + 1):
            if (some := tuple(parts[k : k + size])) in exceptions:
                if free[k] and free[k + size - 1]:
                    words[k] = exceptions[some], size
                free[k : k + size] = [False] * size
    joined, k = [], 0
    while k < len(parts):
        some, size = words.get(k, ((parts[k],), 1))
        joined += some
        k += size
    return joined
