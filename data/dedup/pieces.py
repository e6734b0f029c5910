"""Cut documents into pieces that are compared as wholes, and digest them: documents, paragraphs, lines, sentences, windows."""

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import xxhash

from data.dedup import grams
from data.filters.word_hashes import words
from lm.errors import UserError

SENTENCES = 3  # of a span that C4 compares (Raffel et al. 2020, section 2.2)
WINDOW_WORDS = 50  # of a repeated span (Lee et al. 2021, section 4.1: 50 tokens)
_OTHER_MULTIPLIER = 0xAEF17502108EF2D9  # odd, for the second half of a window's digest (Steele and Vigna 2021)

_BLANK_LINES = re.compile(r"\n[^\S\n]*(?:\n\s*)+")
_LINE_END = re.compile(r"\n")
# End marks with closing quotes and brackets before whitespace, the full-width ones anywhere, and every end of line.
_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’»)\]]*\s+|[。！？]+[”’」』）]*\s*|\s*\n\s*")
_DIGIT, _SYMBOLS = re.compile(r"\d"), re.compile(r"[^\w\s]+")


# What two equal pieces may differ in. "ccnet": also in digits and punctuation (Wenzek et al. 2020, section 3.2).
NORMALISED: dict[str, Callable[[str], str]] = {
    "none": str,
    "whitespace": lambda text: " ".join(text.split()),
    "case": lambda text: " ".join(text.lower().split()),
    "ccnet": lambda text: " ".join(_SYMBOLS.sub("", _DIGIT.sub("0", text.lower())).split()),
}


@dataclasses.dataclass(frozen=True)
class Unit:
    """What is compared. Settings of a part of exact duplicates."""

    kind: str = "document"  # a key of KINDS
    normalise: str = "whitespace"  # a key of NORMALISED; windows compare words, so case and punctuation do not matter to them
    min_characters: int = 1  # of a normalised piece; shorter ones, such as "}" or a heading, are never duplicates
    window: int = WINDOW_WORDS  # words of a window

    def __post_init__(self):
        for name, known in (("kind", KINDS), ("normalise", NORMALISED)):
            if getattr(self, name) not in known:
                raise UserError(f"duplicates: {name}={getattr(self, name)!r}; use one of {', '.join(known)}")
        for name in ("min_characters", "window"):
            if getattr(self, name) < 1:
                raise UserError(f"duplicates: {name}={getattr(self, name)}; use 1 or more")


@dataclasses.dataclass(frozen=True)
class Pieces:
    """The pieces of a batch of texts."""

    digest: np.ndarray  # uint64 [pieces, 2]
    document: np.ndarray  # int64 [pieces], index of the text
    start: np.ndarray  # int64 [pieces], in code points
    end: np.ndarray  # int64 [pieces], behind the piece and the separator that follows it


def pieces(texts: Sequence[str], unit: Unit) -> Pieces:
    """Return the pieces of texts, in order. Two pieces have equal digests if their normalised texts are equal (128 bits)."""
    if unit.kind == "window":
        return _windows(texts, unit.window)
    spans, normalise = KINDS[unit.kind], NORMALISED[unit.normalise]
    digests, places = [], []
    for i, text in enumerate(texts):
        for start, end in spans(text):
            content = normalise(text[start:end].strip())
            if len(content) >= unit.min_characters:
                digests.append(xxhash.xxh3_128_digest(content.encode("utf-8", "surrogatepass")))
                places.append((i, start, end))
    document, start, end = np.array(places, np.int64).reshape(-1, 3).T
    return Pieces(np.frombuffer(b"".join(digests), ">u8").astype(np.uint64).reshape(-1, 2), document, start, end)


def _windows(texts: Sequence[str], size: int) -> Pieces:
    found = words(texts)
    first = np.arange(max(0, len(found.hash) - size + 1))
    document = np.searchsorted(found.offsets, first, side="right") - 1
    inside = first + size <= found.offsets[document + 1]
    digest = [grams.rolling(found.hash, size, multiplier)[inside] for multiplier in (grams.MULTIPLIER, _OTHER_MULTIPLIER)]
    first, document = first[inside], document[inside]
    return Pieces(np.stack(digest, axis=1), document, found.start[first], found.end[first + size - 1])


def _whole(text: str) -> Iterator[tuple[int, int]]:
    yield 0, len(text)


def _between(separator: re.Pattern) -> Callable[[str], Iterator[tuple[int, int]]]:
    """Return a function that yields the spans of a text between separators, each with the separator behind it."""

    def spans(text: str) -> Iterator[tuple[int, int]]:
        begin = 0
        for found in separator.finditer(text):
            yield begin, found.end()
            begin = found.end()
        if begin < len(text):
            yield begin, len(text)

    return spans


def _sentence_spans(text: str) -> Iterator[tuple[int, int]]:
    sentences = [(start, end) for start, end in _between(_SENTENCE_END)(text) if not text[start:end].isspace()]
    for first, last in zip(sentences, sentences[SENTENCES - 1 :]):
        yield first[0], last[1]


KINDS: dict[str, Callable[[str], Iterator[tuple[int, int]]] | None] = {
    "document": _whole,
    "paragraph": _between(_BLANK_LINES),
    "line": _between(_LINE_END),
    "sentences": _sentence_spans,
    "window": None,  # runs of words, hashed for the whole batch at once
}
