"""Stages that compare all documents of a corpus: exact duplicates, repeated pieces, near duplicates.

In each unit, such a stage gathers something from the documents that no earlier rule drops (`part`). It finds duplicates among
all parts on disk, and in the indexes of earlier corpora (`find`). Then, as any other stage, it turns them into columns (`run`).
At the end of a run `save_index` makes the index of what stayed.
"""

from collections.abc import Mapping, Sequence
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


class Exact:
    """Whole documents that are equal. Options: normalise, keep. See data/dedup/pieces.py."""

    rewrites, module = False, "data.dedup.exact"
    columns = ("duplicate_of", "duplicate_keep")

    def settings(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings that parts must share to be compared."""
        return asdict(self._unit(options))

    def _unit(self, options: Mapping[str, Any]) -> Unit:
        return Unit("document", **_without(options, "keep"))

    def part(self, folder: Path, options: Mapping[str, Any]) -> exact.Part:
        """Return a context manager with add(texts, numbers, scores)."""
        return exact.Part(folder, self._unit(options))

    def find(self, parts: Sequence[Path], table: Path, options: Mapping[str, Any], old: Sequence[Path]) -> dict[str, int]:
        """Write the table of duplicates; return counts."""
        return exact.find(parts, table, old=old)

    def save_index(self, folder: Path, parts: Sequence[Path], stayed: Path, old: Sequence[Path]) -> None:
        """Write the part of the documents that stayed. stayed: the table of their numbers."""
        exact.save_index(folder, parts, stayed, old=old)

    def run(self, batch: Batch, options: Mapping[str, Any]) -> Columns:
        return _named(exact.columns(options["numbers"], options["table"]), "duplicate_of", options)


class Pieces(Exact):
    """Paragraphs, lines, spans of sentences or windows of words that occur again: all but one are cut out.

    Options: kind, normalise, min_characters, window, keep.
    """

    rewrites = True
    columns = ("duplicate_pieces", "duplicate_characters")

    def _unit(self, options: Mapping[str, Any]) -> Unit:
        return Unit(**_without(options, "keep"))

    def run(self, batch: Batch, options: Mapping[str, Any]) -> Columns:
        texts, columns = exact.cut(batch.texts, options["numbers"], options["table"])
        return {"text": texts} | columns


class Near:
    """Documents with similar sets of n-grams: MinHash-LSH, and verified pairs. Options: those of MinHash, threshold, keep."""

    rewrites, module = False, "data.dedup.near"
    columns = ("near_duplicate_cluster", "near_duplicate_of", "near_duplicate_keep")

    def settings(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings that parts must share to be compared."""
        return asdict(self._minhash(options))

    def _minhash(self, options: Mapping[str, Any]) -> MinHash:
        return MinHash(**_without(options, "keep", "threshold"))

    def part(self, folder: Path, options: Mapping[str, Any]) -> near.Part:
        """Return a context manager with add(texts, numbers, scores)."""
        return near.Part(folder, self._minhash(options))

    def find(self, parts: Sequence[Path], table: Path, options: Mapping[str, Any], old: Sequence[Path]) -> dict[str, int]:
        """Write the table of clusters; return counts."""
        return near.find(parts, table, threshold=options["threshold"], old=old)

    def save_index(self, folder: Path, parts: Sequence[Path], stayed: Path, old: Sequence[Path]) -> None:
        """Write the part of the documents that stayed. stayed: the table of their numbers."""
        near.save_index(folder, parts, stayed)

    def run(self, batch: Batch, options: Mapping[str, Any]) -> Columns:
        return _named(near.columns(options["numbers"], options["table"]), "near_duplicate_of", options)


CORPUS = {"exact_duplicates": Exact(), "repeated_pieces": Pieces(), "near_duplicates": Near()}


def scores(batch: Batch, options: Mapping[str, Any], at: np.ndarray) -> np.ndarray | None:
    """Return the scores of some documents, whose highest stays among duplicates; None: the first stays."""
    return None if options["keep"] == "first" else np.asarray(batch.columns[options["keep"]], np.float64)[at]


def _named(columns: Columns, of: str, options: Mapping[str, Any]) -> Columns:
    """Return the columns and, in a run against earlier corpora, OF_old: the name of the document there that stays, or None."""
    if not options["against"]:
        return columns
    return {**columns, f"{of}_old": names(columns[of], options["against"])}


def _without(options: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in names}
