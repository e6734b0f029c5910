"""Stages that compare all documents of a corpus: exact duplicates, repeated pieces, near duplicates.

In each unit, such a stage gathers something from the documents that no earlier rule drops (`part`). It finds duplicates among
all parts on disk (`find`). Then, as any other stage, it turns them into columns (`run`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.recipe.batch import Batch, Columns

TABLE = "found.u64"


class Exact:
    """Whole documents that are equal. Options: normalise, keep. See data/dedup/pieces.py."""

    rewrites, module = False, "data.dedup.exact"
    columns = ("duplicate_of", "duplicate_keep")
    kind: str | None = "document"

    def part(self, folder: Path, options: Mapping[str, Any]):
        """Return a context manager with add(texts, numbers, scores)."""
        from data.dedup.exact import Part
        from data.dedup.pieces import Unit

        return Part(folder, Unit(**{"kind": self.kind} if self.kind else {}, **_without(options, "keep")))

    def find(self, parts: Sequence[Path], table: Path, options: Mapping[str, Any]) -> dict[str, int]:
        """Write the table of duplicates; return counts."""
        from data.dedup import exact

        return exact.find(parts, table)

    def run(self, batch: Batch, options: Mapping[str, Any]) -> Columns:
        from data.dedup import exact

        return exact.columns(options["numbers"], options["table"])


class Pieces(Exact):
    """Paragraphs, lines, spans of sentences or windows of words that occur again: all but one are cut out.

    Options: kind, normalise, min_characters, window, keep.
    """

    rewrites, kind = True, None
    columns = ("duplicate_pieces", "duplicate_characters")

    def run(self, batch: Batch, options: Mapping[str, Any]) -> Columns:
        from data.dedup import exact

        texts, columns = exact.cut(batch.texts, options["numbers"], options["table"])
        return {"text": texts} | columns


class Near:
    """Documents with similar sets of n-grams: MinHash-LSH, and verified pairs. Options: those of MinHash, threshold, keep."""

    rewrites, module = False, "data.dedup.near"
    columns = ("near_duplicate_cluster", "near_duplicate_of", "near_duplicate_keep")

    def part(self, folder: Path, options: Mapping[str, Any]):
        """Return a context manager with add(texts, numbers, scores)."""
        from data.dedup.minhash import MinHash
        from data.dedup.near import Part

        return Part(folder, MinHash(**_without(options, "keep", "threshold")))

    def find(self, parts: Sequence[Path], table: Path, options: Mapping[str, Any]) -> dict[str, int]:
        """Write the table of clusters; return counts."""
        from data.dedup import near

        return near.find(parts, table, threshold=options["threshold"])

    def run(self, batch: Batch, options: Mapping[str, Any]) -> Columns:
        from data.dedup import near

        return near.columns(options["numbers"], options["table"])


CORPUS = {"exact_duplicates": Exact(), "repeated_pieces": Pieces(), "near_duplicates": Near()}


def scores(batch: Batch, options: Mapping[str, Any], at: np.ndarray) -> np.ndarray | None:
    """Return the scores of some documents, whose highest stays among duplicates; None: the first stays."""
    return None if options["keep"] == "first" else np.asarray(batch.columns[options["keep"]], np.float64)[at]


def _without(options: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in names}
