"""C4's rules on lines (Raffel et al. 2020, 2.2), in the order of datatrove 0.10.1 and of TFDS's c4_utils.py.

The two sources disagree on constants: see configs/curate/c4_paper.py and c4_tfds.py.
"""

import re
from collections.abc import Sequence

import numpy as np

from data.filters.words import Words, sums

CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
LONG_LINE = 200  # characters of a line that counts as a paragraph, in mC4


def c4(
    words: Words, *, end_marks: Sequence[str] = (".", "?", "!", '"', "'"), min_words: int = 3, longest_word: int = 1000
) -> tuple[list[str], dict[str, np.ndarray]]:
    """Drop lines that are no prose, and citation marks such as [1]. Returns (texts, columns [N]).

    A line is dropped if it has a word of more than `longest_word` characters, does not end in one of `end_marks` or ends in an
    ellipsis, has fewer than `min_words` words, contains "javascript", or one of POLICY. Without `end_marks`, any end will do.

    c4_sentences: sentences of the lines that stay
    c4_lorem_ipsum, c4_curly_brackets: lines that hold these, of those that no earlier rule dropped
    c4_dropped_lines: share of lines that were dropped
    """
    end_marks = tuple(end_marks)
    sentences_L, state_L = words.sentences_L.copy(), np.zeros(len(words.words_L), np.uint8)
    long_L = words.longest_L > longest_word
    fits_L = (words.chunks_L >= min_words) & ~long_L
    texts, cited, end = [], [], 0
    for text in words.texts:
        lines = list(map(str.strip, text.splitlines()))
        begin, end = end, end + len(lines)
        kept = fits_L[begin:end].tolist()
        low, marks = text.lower(), "{" in text or "[" in text
        phrases = "lorem ipsum" in low or "javascript" in low or any(phrase in low for phrase in POLICY)
        found = [
            _line(line, fits, is_long, end_marks)
            if phrases or (marks and ("[" in line or "{" in line))
            else (_KEPT if fits and _ends(line, end_marks) else _DROPPED, line, False)
            for line, fits, is_long in zip(lines, kept, long_L[begin:end].tolist())
        ]
        if marks:
            cited += [(at, line) for at, (state, line, cites) in enumerate(found, begin) if cites and state == _KEPT]
        state_L[begin:end] = [state for state, _, _ in found]
        texts.append("\n".join(line for state, line, _ in found if state == _KEPT).strip())
    if cited:  # citations held words
        again = Words([line for _, line in cited])
        sentences_L[[at for at, _ in cited]] = sums(again.sentences_L, again.lines_N)
    columns = {"c4_sentences": sums(np.where(state_L == _KEPT, sentences_L, 0), words.lines_N)}
    for name, state in (("c4_lorem_ipsum", _LOREM), ("c4_curly_brackets", _CURLY)):
        columns[name] = sums(state_L == state, words.lines_N)
    dropped = sums(state_L != _KEPT, words.lines_N)
    return texts, columns | {"c4_dropped_lines": dropped / np.maximum(words.lines_N, 1)}


def c4_paragraphs(words: Words) -> dict[str, np.ndarray]:
    """Return {"c4_long_lines": int64 [N]}, the lines of at least LONG_LINE characters. mC4 wants three."""
    counts = [sum(len(line) >= LONG_LINE for line in text.split("\n")) for text in words.texts]
    return {"c4_long_lines": np.array(counts, np.int64)}


_KEPT, _DROPPED, _LOREM, _CURLY = range(4)


def _ends(line: str, end_marks: tuple[str, ...]) -> bool:
    return not end_marks or (line.endswith(end_marks) and not line.endswith("..."))


def _line(line: str, fits: bool, long: bool, end_marks: tuple[str, ...]) -> tuple[int, str, bool]:
    """Return (what becomes of a stripped line, the line without citations, whether there were any)."""
    if long:
        return _DROPPED, line, False
    plain = CITATION.sub("", line) if "[" in line else line
    low, state = plain.lower(), _KEPT
    if not fits or not _ends(plain, end_marks):
        state = _DROPPED
    elif "lorem ipsum" in low:
        state = _LOREM
    elif "{" in plain and "javascript" not in low:
        state = _CURLY
    elif "javascript" in low or any(phrase in low for phrase in POLICY):
        state = _DROPPED
    return state, plain, plain != line
