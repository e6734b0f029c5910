"""Gopher's measures of quality and repetition (Rae et al. 2021, A.1.1), defined as in datatrove 0.10.1."""

from collections.abc import Sequence

import numpy as np

from data.filters.compiled.chunks import BULLET, ELLIPSIS
from data.filters.heuristics import ngrams
from data.filters.words import LETTER, STOP_WORDS, SYMBOL, Words, sums

TOP_GRAMS, DUPLICATE_GRAMS = (2, 3, 4), (5, 6, 7, 8, 9, 10)


def gopher_quality(words: Words) -> dict[str, np.ndarray]:
    """Return the measures of quality, [N] each.

    gopher_words: words that are not symbols;  gopher_mean_word_length: their mean length in characters (0 without words)
    gopher_hash_ratio, gopher_ellipsis_ratio: number signs and ellipses per word
    gopher_bullet_lines, gopher_ellipsis_lines: shares of lines that begin with a bullet or end with an ellipsis
    gopher_letter_words: share of words with a letter
    gopher_stop_words: how many of STOP_WORDS occur, in lower case
    """
    texts = words.texts
    plain_W = (words.flags_W & SYMBOL) == 0
    plain_N = sums(plain_W, words.words_N)
    characters_N = sums(np.where(plain_W, words.size_W, 0), words.words_N)
    bullets, ends = (sums((words.flags_L & flag) != 0, words.lines_N) for flag in (BULLET, ELLIPSIS))
    stops = sum((words.count(256 << k) > 0).astype(np.int64) for k in range(len(STOP_WORDS)))
    return {
        "gopher_words": plain_N,
        "gopher_mean_word_length": ratio(characters_N, plain_N),
        "gopher_hash_ratio": ratio([text.count("#") for text in texts], words.words_N),
        "gopher_ellipsis_ratio": ratio([text.count("...") + text.count("…") for text in texts], words.words_N),
        "gopher_bullet_lines": ratio(bullets, words.lines_N),
        "gopher_ellipsis_lines": ratio(ends, words.lines_N),
        "gopher_letter_words": ratio(words.count(LETTER), words.words_N),
        "gopher_stop_words": stops,
    }


def gopher_repetition(words: Words) -> dict[str, np.ndarray]:
    """Return the measures of repetition, shares [N] each.

    gopher_duplicate_lines, gopher_duplicate_paragraphs: of lines and paragraphs, those that occurred before in the document
    gopher_duplicate_line_characters, gopher_duplicate_paragraph_characters: their characters, of all
    gopher_top_2_gram … 4: characters of the most frequent n-gram
    gopher_duplicate_5_grams … 10: characters of n-grams that occurred before
    """
    N = len(words)
    counted = {"line": np.zeros((N, 2)), "paragraph": np.zeros((N, 2))}
    for n, text in enumerate(words.texts):
        # As re.split("\n+", text), which keeps an empty part before and behind.
        lines = [*filter(None, text.split("\n")), *[""] * (text.startswith("\n") + text.endswith("\n"))]
        counted["line"][n] = duplicates(lines, len(text))
        if "\n\n" in text:
            # As re.split("\n{2,}", text.strip()).
            parts = [part.lstrip("\n") for part in text.strip().split("\n\n")]
            counted["paragraph"][n] = duplicates([*filter(None, parts)] or parts, len(text))
    columns = {}
    for name, shares in counted.items():
        columns |= {f"gopher_duplicate_{name}s": shares[:, 0], f"gopher_duplicate_{name}_characters": shares[:, 1]}
    top, duplicate = ngrams.characters(words, DUPLICATE_GRAMS[-1])
    columns |= {f"gopher_top_{n}_gram": ratio(top[n - 2], words.characters_N) for n in TOP_GRAMS}
    columns |= {f"gopher_duplicate_{n}_grams": ratio(duplicate[n - 2], words.characters_N) for n in DUPLICATE_GRAMS}
    return columns


def duplicates(parts: Sequence[str], characters: int) -> tuple[float, float]:
    """Return the share of the parts that occurred before, and of the document's characters in them."""
    distinct = set(parts)
    if len(distinct) == len(parts) or not characters:
        return 0.0, 0.0
    repeated = sum(map(len, parts)) - sum(map(len, distinct))
    return (len(parts) - len(distinct)) / len(parts), repeated / characters


def ratio(part, whole) -> np.ndarray:
    """Return part/whole as float64 [N], and 0 where whole is 0."""
    whole = np.asarray(whole)
    return np.where(whole > 0, np.asarray(part) / np.maximum(whole, 1), 0.0)
