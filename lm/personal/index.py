"""Search passages of items: by their words (BM25, in SQLite's FTS5) and by vectors of the model.

The index lives in memory, and is made anew from the items in each process: no file of it is ever written.
"""

import re
import sqlite3
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lm.errors import UserError
from lm.personal.items import Item

PASSAGE = 700  # characters of a passage at most
SHARE = 0.6  # of the best score, below which a passage is left out
ALONE = 1.5  # score from which a passage is found that shares no word with the question
FILLERS = 20  # more passages, of no word that is asked for: else BM25 takes every word of a small store for a common one
FILLER = "\ue000"  # of Unicode's private use, a word for SQLite and none for `words_of`
SPREAD = 0.02  # least standard deviation of cosines: a store of few passages tells little about it
# Words that are in most questions and say little about what is asked.
COMMON = frozenset(
    "a about an and any are as at be been but by can could did do does for from had has have he her him his how i if "
    "in is it its know many me much my not of on or our please say she so some tell than that the their them there "
    "they this to us was we were what when where which who whom whose why will with would you your".split()
)


class Passage(NamedTuple):
    item: Item
    text: str


class Index:
    """passages: all of the store, in the order of its items. vectors_PD: one of each, of unit length; None: words alone."""

    def __init__(self, items: Sequence[Item], vectors_PD: np.ndarray | None = None):
        self.passages = [passage for item in items for passage in passages_of(item)]
        self.vectors_PD = vectors_PD
        self._file = sqlite3.connect(":memory:", check_same_thread=False)
        self._file.execute("PRAGMA temp_store = MEMORY")
        try:
            self._file.execute(
                "CREATE VIRTUAL TABLE passages USING fts5(text, tokenize='porter unicode61 remove_diacritics 2')"
            )
        except sqlite3.OperationalError:
            raise UserError("this Python's SQLite has no full-text search (FTS5): use a Python with it") from None
        texts = [f"{passage.item.name} {passage.text}" for passage in self.passages]
        length = sum(len(re.findall(r"\w+", text)) for text in texts) // max(1, len(texts))  # so that the mean stays
        texts += [" ".join([FILLER] * length)] * FILLERS
        self._file.executemany("INSERT INTO passages (rowid, text) VALUES (?, ?)", enumerate(texts))

    def search(self, question: str, count: int, vector_D: np.ndarray | None = None) -> list[Passage]:
        """Return the best passages, best first. The score of one is that of BM25 plus, with a vector, how many standard
        deviations its cosine lies above the mean of all passages. Passages below SHARE of the best score are left out.
        A passage that alone holds a word of the question comes before all others, because vectors of a small model are noise.
        """
        words = np.zeros(len(self.passages))
        for n, score in self._by_words(question):
            words[n] = score
        scores = words.copy()
        if vector_D is not None and self.vectors_PD is not None and len(scores):
            cosines = self.vectors_PD @ vector_D
            scores += (cosines - cosines.mean()) / max(float(cosines.std()), SPREAD)
        scores[(words == 0) & (scores < ALONE)] = -np.inf
        # The passages that alone hold some word of the question.
        query = "SELECT rowid FROM passages WHERE passages MATCH ? LIMIT 2"
        found = [self._file.execute(query, (f'"{word}"',)).fetchall() for word in words_of(question)]
        only = {rows[0][0] for rows in found if len(rows) == 1}
        order = [n for n in np.argsort(-scores, kind="stable") if np.isfinite(scores[n])]
        best = [n for n in order if n in only or scores[n] >= SHARE * scores[order[0]]]
        return [self.passages[n] for n in sorted(best, key=lambda n: n not in only)[:count]]

    def _by_words(self, question: str) -> list[tuple[int, float]]:
        """Return (passage, score) of those that share a word with the question: −bm25 of SQLite, so more is better."""
        words = words_of(question) or set(re.findall(r"\w+", question.lower()))
        if not words:
            return []
        query = " OR ".join(f'"{word}"' for word in sorted(words))
        return self._file.execute("SELECT rowid, -bm25(passages) FROM passages WHERE passages MATCH ?", (query,)).fetchall()


def words_of(text: str) -> set[str]:
    """Return the words of a text that carry meaning, in lower case."""
    return set(re.findall(r"\w+", text.lower())) - COMMON


def passages_of(item: Item) -> list[Passage]:
    """Split an item at paragraphs, lines, sentences and words, in this order, into passages of at most PASSAGE characters."""
    return [Passage(item, text) for text in _split(item.shown, ("\n\n", "\n", ". ", " "))]


def _split(text: str, marks: Sequence[str]) -> list[str]:
    text = text.strip()
    if len(text) <= PASSAGE:
        return [text] if text else []
    if not marks:
        return [text[n : n + PASSAGE] for n in range(0, len(text), PASSAGE)]
    found: list[str] = []
    for part in text.split(marks[0]):
        for piece in _split(part, marks[1:]):
            if found and len(found[-1]) + len(marks[0]) + len(piece) <= PASSAGE:
                found[-1] += marks[0] + piece
            else:
                found.append(piece)
    return found
