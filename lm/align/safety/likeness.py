"""Compute the similarity of texts from their character trigrams; enough to tell "make zorbine" from "what is 2 + 2"."""

from collections.abc import Sequence

import numpy as np
import scipy.sparse

RUN = 3  # characters
ROWS = 1024  # texts compared at a time


def likeness(texts: Sequence[str], others: Sequence[str]) -> np.ndarray:
    """Return [N] float64 in 0…1: the highest Jaccard index |a ∩ b| / |a ∪ b| of each text with any of `others`.

    a and b are the sets of lower-case runs of RUN characters. The result is 0 if there are no others.
    """
    if not texts or not others:
        return np.zeros(len(texts))
    number: dict[str, int] = {}
    a, b = _numbered(texts, number), _numbered(others, number)
    has_a, has_b = _matrix(a, len(number)), _matrix(b, len(number))
    sizes_a, sizes_b = np.array([*map(len, a)]), np.array([*map(len, b)])
    most = np.zeros(len(texts))
    for begin in range(0, len(texts), ROWS):
        rows = slice(begin, begin + ROWS)
        shared = (has_a[rows] @ has_b.T).toarray()
        most[rows] = (shared / (sizes_a[rows, None] + sizes_b - shared)).max(axis=1)
    return most


def _numbered(texts: Sequence[str], number: dict[str, int]) -> list[list[int]]:
    """Return the distinct run ids of each text; new runs get the next ids in `number`."""
    runs = ({text[i : i + RUN] for i in range(max(1, len(text) - RUN + 1))} for text in map(str.lower, texts))
    return [[number.setdefault(run, len(number)) for run in of_text] for of_text in runs]


def _matrix(rows: list[list[int]], columns: int) -> scipy.sparse.csr_matrix:
    """Return a sparse matrix [texts, runs] with 1 where a text has a run."""
    starts = np.cumsum([0, *map(len, rows)])
    return scipy.sparse.csr_matrix((np.ones(starts[-1]), np.concatenate(rows), starts), (len(rows), columns))
