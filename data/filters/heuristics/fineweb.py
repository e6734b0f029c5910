"""FineWeb's own measures (Penedo et al. 2024, 3.6), defined as in datatrove 0.10.1."""

import numpy as np

from data.filters.characters import SENTENCE_ENDS
from data.filters.heuristics.gopher import duplicates, ratio
from data.filters.words import Words

SHORT_LINE = 30  # characters


def fineweb_quality(words: Words) -> dict[str, np.ndarray]:
    """Return shares [N] of the lines that are not blank, lines being what newlines separate.

    fineweb_ended_lines: lines that end in a mark of SENTENCE_ENDS;  fineweb_short_lines: of at most SHORT_LINE characters
    fineweb_duplicate_characters: characters of lines that occurred before, of all without newlines
    fineweb_newlines: newlines per word
    A document without any line has 0 in all columns.
    """
    found = np.zeros((len(words), 4))
    for n, text in enumerate(words.texts):
        lines = [line for line in text.split("\n") if line and not line.isspace()]
        newlines = text.count("\n")
        if not lines:
            continue
        ended = sum(line[-1] in SENTENCE_ENDS for line in lines)
        short = sum(len(line) <= SHORT_LINE for line in lines)
        found[n] = ended / len(lines), short / len(lines), duplicates(lines, len(text) - newlines)[1], newlines
    names = ("fineweb_ended_lines", "fineweb_short_lines", "fineweb_duplicate_characters")
    return {name: found[:, k] for k, name in enumerate(names)} | {"fineweb_newlines": ratio(found[:, 3], words.words_N)}
