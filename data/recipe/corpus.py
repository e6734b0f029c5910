"""Stages that compare all documents of a corpus: exact duplicates, repeated pieces, near duplicates.

In each unit, such a stage gathers something from the documents that no earlier rule drops (`part`). It finds duplicates among
all parts on disk, and in the indexes of earlier corpora (`find`). Then, as any other stage, it turns them into columns (`run`).
At the end of a run `save_index` makes the index of what stayed.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from data.dedup import exact, near
from data.dedup.minhash import MinHash
from data.dedup.pieces import Unit
from data.recipe.batch import Batch, Columns
from data.recipe.index import names

TABLE = "found.u64"
Options = Mapping[str, Any]


class Exact:
    """Whole documents that are equal. Options: normalise, keep. See data/dedup/pieces.py."""

    rewrites, module, dedup = False, "data.dedup.exact", exact
    columns = ("duplicate_of", "duplicate_keep")

    def _of(self, options: Options) -> Unit | MinHash:
        return Unit("document", **_without(options, "keep"))

    def settings(self, options: Options) -> dict[str, Any]:
        """Return the settings that parts must share to be compared."""
        return asdict(self._of(options))

    def part(self, folder: Path, options: Options) -> AbstractContextManager[exact.Part | near.Part]:
        """Return a context manager with add(texts, numbers, scores)."""
        return self.dedup.new_part(folder, self._of(options))

    def find(self, parts: Sequence[Path], table: Path, options: Options, old: Sequence[Path]) -> dict[str, int]:
        """Write the table of duplicates; return counts."""
        return exact.find(parts, table, old=old)

    def save_index(self, folder: Path, parts: Sequence[Path], stayed: Path, old: Sequence[Path]) -> None:
        """Write the part of the documents that stayed. stayed: the table of their numbers."""
        exact.save_index(folder, parts, stayed, old=old)

    def run(self, batch: Batch, options: Options) -> Columns:
        return _named(exact.columns(options["numbers"], options["table"]), "duplicate_of", options)


class Pieces(Exact):
    """Paragraphs, lines, spans of sentences or windows of words that occur again: all but one are cut out.

    Options: kind, normalise, min_characters, window, keep.
    """

    rewrites = True
    columns = ("duplicate_pieces", "duplicate_characters")

    def _of(self, options: Options) -> Unit:
        return Unit(**_without(options, "keep"))

    def run(self, batch: Batch, options: Options) -> Columns:
        texts, columns = exact.cut(batch.texts, options["numbers"], options["table"])
        return {"text": texts} | columns


class Near(Exact):
    """Documents with similar sets of n-grams: MinHash-LSH, and verified pairs. Options: those of MinHash, threshold, keep."""

    module, dedup = "data.dedup.near", near
    columns = ("near_duplicate_cluster", "near_duplicate_of", "near_duplicate_keep")

    def _of(self, options: Options) -> MinHash:
        return MinHash(**_without(options, "keep", "threshold"))

    def find(self, parts: Sequence[Path], table: Path, options: Options, old: Sequence[Path]) -> dict[str, int]:
        return near.find(parts, table, threshold=options["threshold"], old=old)

    def save_index(self, folder: Path, parts: Sequence[Path], stayed: Path, old: Sequence[Path]) -> None:
        near.save_index(folder, parts, stayed)

    def run(self, batch: Batch, options: Options) -> Columns:
        return _named(near.columns(options["numbers"], options["table"]), "near_duplicate_of", options)


CORPUS = {"exact_duplicates": Exact(), "repeated_pieces": Pieces(), "near_duplicates": Near()}


def scores(batch: Batch, options: Options, at: np.ndarray) -> np.ndarray | None:
    """Return the scores of some documents, whose highest stays among duplicates; None: the first stays."""
    return None if options["keep"] == "first" else np.asarray(batch.columns[options["keep"]], np.float64)[at]


def _named(columns: Columns, of: str, options: Options) -> Columns:
    """Return the columns and, in a run against earlier corpora, OF_old: the name of the document there that stays, or None."""
    if not options["against"]:
        return columns
    return {**columns, f"{of}_old": names(columns[of], options["against"])}


def _without(options: Options, *names: str) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in names}
