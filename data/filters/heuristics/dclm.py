"""DCLM-Baseline's rules on lines (Li et al. 2024, appendix; constants of its code), which go back to RefinedWeb."""

import re

import numpy as np

from data.filters.heuristics.gopher import ratio
from data.filters.words import PUNCTUATION, Words

MAX_UPPERCASE, MIN_WORDS = 0.5, 2
PHRASE_WORDS = 10  # the phrases of buttons are removed from lines of at most so many words
_COUNTER = re.compile(
    r"\W*\d[,.\d]*[kmb]?\s+(?:likes|shares|comments|retweets|reposts|quotes|bookmarks|upvotes|downvotes|downloads|views|followers)\W*\Z"
)
_PHRASES = (
    re.compile(r"\s?items in cart", re.IGNORECASE),
    re.compile(r"\s?Read more\.\.\.\Z", re.IGNORECASE),
    re.compile(r"\ASign-in\s?", re.IGNORECASE),
)
_MANY_NEWLINES = re.compile(r"\n{3,}")


def dclm_lines(words: Words) -> tuple[list[str], dict[str, np.ndarray]]:
    """Drop lines of capitals, digits, counters ("3 likes") and single words, and buttons' words. Returns (texts, columns).

    Empty lines stay, two at most.
    dclm_removed_words: float64 [N], share of the words (without punctuation) that this removed; 1 for an empty document.
    """
    texts = []
    for text in words.texts:
        lines = (line for line in _MANY_NEWLINES.sub("\n\n", text).split("\n") if _stays(line))
        texts.append("\n".join(line for line in map(_without_phrases, lines) if line is not None).strip())
    before, after = (some.words_N - some.count(PUNCTUATION) for some in (words, Words(texts)))
    return texts, {"dclm_removed_words": 1.0 - ratio(after, before)}


def _stays(line: str) -> bool:
    if not line:
        return True
    if sum(map(str.isupper, line)) / len(line) > MAX_UPPERCASE or line.isdigit():
        return False
    return len(line.split(None, MIN_WORDS)) >= MIN_WORDS and not (len(line) < 100 and _COUNTER.match(line.lower()))


def _without_phrases(line: str) -> str | None:
    """Return the line without phrases of buttons, or None if nothing else was in it."""
    low = line.lower()
    if "items in cart" not in low and not low.endswith("read more...") and not low.startswith("sign-in"):
        return line
    for phrase in _PHRASES:
        if len(line.split()) <= PHRASE_WORDS:
            line = phrase.sub("", line)
    return line if line.strip() else None
