"""Edits between a text and what a stage made of it, as few numbers as a page needs to show what was cut and put in."""

import collections
import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple


class Edit(NamedTuple):
    """After `kept` equal characters, `removed` characters of the old text go and `added` comes."""

    kept: int
    removed: int
    added: str


_LINES, _WORDS = re.compile(r"[^\n]*\n|[^\n]+"), re.compile(r"\s*\w+|\s*[^\w\s]|\s+")
PAIRS = 200_000  # of equal items that may be looked at one by one; with more, items that are frequent are left out
ALIKE = 0.3  # least share of the shorter side that two runs of lines have in common, to be compared word by word


def edits(before: str, after: str, whole: bool = True) -> list[Edit]:
    """Return the edits that make `after` of `before`. Lines are compared first, then the words of lines that are alike.

    The edits are right, but not always the fewest: difflib leaves out frequent lines and words where they would take too long.

    Args: whole: False if texts were cut at the end; what only `after` has there is then no edit.
    """
    found: list[list] = []
    place = 0  # in `before`, behind the last edit
    for begin, end, added in _joined(_by_lines(before, after)):
        if not whole and end == len(before):
            added = ""
        if end > begin or added:
            found.append([begin - place, end - begin, added])
            place = end
    return [Edit(*one) for one in found]


def limited(some: Iterable[Edit], most: int, inclusive: bool) -> tuple[list[Edit], int]:
    """Return the edits of the first `most` characters, and how many characters they make of these.

    inclusive: whether text that is added at the very end counts: if nothing follows there.
    """
    found, place, length = [], 0, 0
    for kept, removed, added in some:
        if place + kept > most or (place + kept == most and not inclusive):
            break
        found.append(Edit(kept, min(removed, most - place - kept), added))
        place += kept + found[-1].removed
        length += kept + len(added)
    return found, length + most - place


def applied(some: Iterable[Edit], before: str) -> str:
    """Return what the edits make of a text."""
    pieces, place = [], 0
    for kept, removed, added in some:
        pieces += [before[place : place + kept], added]
        place += kept + removed
    return "".join([*pieces, before[place:]])


def _by_lines(before: str, after: str) -> Iterator[tuple[int, int, str]]:
    """Yield (begin, end, what comes instead) of pieces of `before`, in order."""
    old, new = _LINES.findall(before), _LINES.findall(after)
    if (found := _left_out(old, new)) is not None:
        yield from found
        return
    for at, end, some, other in _changed(old, new):
        yield from _by_words(at, before[at:end], "".join(new[some:other]))


def _left_out(old: Sequence[str], new: Sequence[str]) -> list[tuple[int, int, str]] | None:
    """Return the edits if only lines are left out and white space around lines changes; None otherwise.

    Most stages that rewrite do no more, and this looks at a line once, where difflib does many times.
    """
    found, at, place = [], 0, 0  # at: lines of `new` that were met
    for line in old:
        if at < len(new) and line.strip() == new[at].strip():
            found += [(place + begin, place + end, added) for begin, end, added in _trimmed(line, new[at])]
            at += 1
        else:
            found.append((place, place + len(line), ""))
        place += len(line)
    return found if at == len(new) else None


def _trimmed(old: str, new: str) -> Iterator[tuple[int, int, str]]:
    """Yield the edits before and behind what two lines have in common; they are equal but for white space there."""
    if old == new:
        return
    core = new.strip()
    begin, first = (line.index(core) for line in (old, new))
    same = _common(old[:begin], new[:first])
    yield same, begin, new[same:first]
    end, last = begin + len(core), first + len(core)
    same = _common(old[end:][::-1], new[last:][::-1])
    yield end, len(old) - same, new[last : len(new) - same]


def _by_words(at: int, before: str, after: str) -> Iterator[tuple[int, int, str]]:
    old, new = _WORDS.findall(before), _WORDS.findall(after)
    found = []
    for begin, end, some, other in _changed(old, new) if old and new else ():
        added = "".join(new[some:other])
        # Of one long "word", such as a sentence of Chinese, only a part may differ.
        head = _common(before[begin:end], added)
        tail = _common(before[begin + head : end][::-1], added[head:][::-1])
        found.append((begin + head, end - tail, added[head : len(added) - tail]))
    gone = sum(len(before[begin:end].strip()) for begin, end, _ in found)
    if not found or len(before.strip()) - gone < ALIKE * min(len(before), len(after)):
        found = [(0, len(before), after)]
    yield from ((at + begin, at + end, added) for begin, end, added in found)


def _changed(old: Sequence[str], new: Sequence[str]) -> Iterator[tuple[int, int, int, int]]:
    """Yield (begin, end) in characters of the joined `old` and in items of `new`, of what differs."""
    head = _common(old, new)
    tail = _common(old[head:][::-1], new[head:][::-1])
    middle, other = old[head : len(old) - tail], new[head : len(new) - tail]
    starts = [sum(map(len, old[:head]))]
    for item in middle:
        starts.append(starts[-1] + len(item))
    counts = collections.Counter(other)
    many = sum(count * counts[item] for item, count in collections.Counter(middle).items()) > PAIRS
    for kind, a, b, c, d in difflib.SequenceMatcher(None, middle, other, autojunk=many).get_opcodes():
        if kind != "equal":
            yield starts[a], starts[b], head + c, head + d


def _common(one: Sequence, other: Sequence) -> int:
    """Return the length of the common beginning."""
    return next((k for k, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))


def _joined(pieces: Iterable[tuple[int, int, str]]) -> Iterator[tuple[int, int, str]]:
    """Yield pieces with those that touch each other as one."""
    last = None
    for begin, end, added in pieces:
        if last is not None and last[1] == begin:
            last = last[0], end, last[2] + added
        else:
            if last is not None:
                yield last
            last = begin, end, added
    if last is not None:
        yield last
