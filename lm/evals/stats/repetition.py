"""Repetition within a text.

Words are lower-case runs of letters and digits, or single marks. They are not tokens, so models with different tokenizers can
be compared.
"""

import re
from collections.abc import Sequence

_UNSPACED = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"  # scripts whose characters count as words
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+|[^\w\s]")


def split_words(text: str) -> list[str]:
    """Return the words of a text.

    >>> split_words("It's 猫が.")
    ['it', "'", 's', '猫', 'が', '.']
    """
    return _WORD.findall(text.lower())


def repetition(words: Sequence[str]) -> float | None:
    """Return the share of 4-grams that occurred before, seq-rep-4; None if there are fewer than four words.

    Welleck et al. 2020, "Neural Text Generation with Unlikelihood Training", section 6.
    """
    grams = list(zip(words, words[1:], words[2:], words[3:], strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else None
