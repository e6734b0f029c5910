"""Stages that compare all documents of a corpus: exact duplicates, repeated pieces, near duplicates.

In each unit, such a stage gathers something from the documents that no earlier rule drops (`part`). It finds duplicates among
all parts on disk (`find`). Then, as any other stage, it turns them into columns (`run`).
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from data.dedup import exact, near
from data.dedup.minhash import MinHash
from data.dedup.pieces import Unit
from data.recipe.batch import Batch, Columns

TABLE = "found.u64"
Options = Mapping[str, Any]


class Exact:
    """Whole documents that are equal. Options: normalise, keep. See data/dedup/pieces.py."""

    rewrites, module, dedup = False, "data.dedup.exact", exact
    columns = ("duplicate_of", "duplicate_keep")

    def settings(self, options: Options) -> Unit | MinHash:
        """Return what is compared. Raises: UserError."""
        return Unit("document", **_without(options, "keep"))

    def part(self, folder: Path, options: Options) -> AbstractContextManager[exact.Part | near.Part]:
        """Return a context manager with add(texts, numbers, scores)."""
        return self.dedup.new_part(folder, self.settings(options))

    def find(self, parts: Sequence[Path], table: Path, options: Options) -> dict[str, int]:
        """Write the table of duplicates; return counts."""
        return exact.find(parts, table)

    def run(self, batch: Batch, options: Options) -> Columns:
        return exact.columns(options["numbers"], options["table"])


class Pieces(Exact):
    """Paragraphs, lines, spans of sentences or windows of words that occur again: all but one are cut out.

    Options: kind, normalise, min_characters, window, keep.
    """

    rewrites = True
    columns = ("duplicate_pieces", "duplicate_characters")

    def settings(self, options: Options) -> Unit:
        return Unit(**_without(options, "keep"))

    def run(self, batch: Batch, options: Options) -> Columns:
        texts, columns = exact.cut(batch.texts, options["numbers"], options["table"])
        return {"text": texts} | columns


class Near(Exact):
    """Documents with similar sets of n-grams: MinHash-LSH, and verified pairs. Options: those of MinHash, threshold, keep."""

    module, dedup = "data.dedup.near", near
    columns = ("near_duplicate_cluster", "near_duplicate_of", "near_duplicate_keep")

    def settings(self, options: Options) -> MinHash:
        return MinHash(**_without(options, "keep", "threshold"))

    def find(self, parts: Sequence[Path], table: Path, options: Options) -> dict[str, int]:
        return near.find(parts, table, threshold=options["threshold"])

    def run(self, batch: Batch, options: Options) -> Columns:
        return near.columns(options["numbers"], options["table"])


CORPUS = {"exact_duplicates": Exact(), "repeated_pieces": Pieces(), "near_duplicates": Near()}


def scores(batch: Batch, options: Options, at: np.ndarray) -> np.ndarray | None:
    """Return the scores of some documents, whose highest stays among duplicates; None: the first stays."""
    return None if options["keep"] == "first" else np.asarray(batch.columns[options["keep"]], np.float64)[at]


def _without(options: Options, *names: str) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in names}
