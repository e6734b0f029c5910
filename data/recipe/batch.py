"""Consecutive documents as columns, and the words that all rules share."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data.filters.words import Words

# The columns of documents as they are read.
ORIGINS = ("id", "text", "source", "url", "language", "date", "licence", "metadata")
Columns = Mapping[str, Sequence | np.ndarray]


class Batch:
    """N documents. Do not change it: `replaced` returns another one.

    columns: one value a document. Reading gives `id, text, source, url, language, date, licence, metadata` (strings or None;
    metadata is JSON), and every stage adds its own.
    """

    def __init__(self, columns: Columns):
        self.columns: dict[str, Any] = dict(columns)

    def __len__(self) -> int:
        return len(self.columns["text"])

    @property
    def texts(self) -> Sequence[str]:
        return self.columns["text"]

    @functools.cached_property
    def words(self) -> Words:
        return Words(self.texts)

    def replaced(self, columns: Columns) -> "Batch":
        """Return a batch with these columns in addition or instead. The words stay if the texts do."""
        batch = Batch(self.columns | dict(columns))
        if "words" in self.__dict__ and batch.texts is self.texts:
            batch.__dict__["words"] = self.words
        return batch
