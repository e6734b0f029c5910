"""Find pieces of text that occur again in a corpus that is larger than memory, and cut them: all but one stay.

1. `new_part` writes digests of the pieces of documents (data/dedup/pieces.py). Parts are independent.
2. `find` sorts them and writes a table of the pieces to remove.
3. `cut` removes them from texts. For whole documents, `columns` says which to keep.

With Unit("window") these are the repeated spans of Lee et al. (2021), "Deduplicating training data makes language models
better": every run of at least `window` words that occurs again is covered by windows that occur again. They use suffix arrays;
sorted windows mark the same words, and their disk is bounded by 40 bytes a word instead of a machine's memory.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from data.dedup import tables
from data.dedup.parts import check_numbers, check_settings, kept_instead, ranks, writing
from data.dedup.pieces import Unit, pieces
from lm.errors import UserError

# Columns: digest (two), rank, number, span: start · 2^32 + end.
_PIECES, _WIDTH = "pieces.u64", 5
_LOW = np.uint64(0xFFFFFFFF)


class Part:
    """Takes the pieces of documents. Make it with `new_part`."""

    def __init__(self, rows: tables.Sorter, unit: Unit):
        self._rows, self._unit = rows, unit

    def add(self, texts: Sequence[str], numbers: Sequence[int], scores: Sequence[float] | None = None) -> None:
        """Add documents.

        Args:
          numbers: unique in the whole corpus; in [0, 2^61).
          scores: of several equal pieces, the one in the document with the highest score stays; None: the one with the lowest
            number.
        """
        numbers, rank, found = check_numbers(numbers, len(texts)), ranks(scores, len(texts)), pieces(texts, self._unit)
        if len(found.end) and found.end.max() > int(_LOW):
            raise UserError("a document has over 2^32 characters; split it")
        span = found.start.astype(np.uint64) << np.uint64(32) | found.end.astype(np.uint64)
        self._rows.add(np.column_stack([found.digest, rank[found.document], numbers[found.document], span]))


@contextlib.contextmanager
def new_part(folder: Path, unit: Unit) -> Iterator[Part]:
    """Yield a Part, which is complete in `folder` at the end of the block. Disk: 40 bytes a piece."""
    with writing(folder, asdict(unit)) as temporary, tables.Sorter(temporary, _WIDTH) as rows:
        yield Part(rows, unit)
        tables.write(folder / _PIECES, rows.sorted())


def find(parts: Sequence[Path], into: Path) -> dict[str, int]:
    """Write the pieces to remove: a table of uint64 [n, 3], sorted: (number, span, number of the document whose piece stays).

    The piece that stays is that of the best score, else of the lowest number, else the first one. Equal pieces of one document
    count too.

    Args: parts: folders that `new_part` wrote, in any order. into: the table. Temporary files are made beside it.
    Returns: counts: pieces, removed (pieces).
    Raises: UserError: a part is missing or incomplete, or parts have different units.
    """
    check_settings(parts, "exact")
    into, counts = Path(into), {"pieces": 0, "removed": 0}
    with tables.scratch(into) as temporary, tables.Sorter(temporary, 3) as removed:
        carried = None
        for block in tables.merged([Path(part) / _PIECES for part in parts], _WIDTH, temporary):
            begins, kept = tables.first_of_groups(block[:, :2], block[:, 3], carried)
            carried = block[-1, :2], kept[-1]
            removed.add(np.stack([block[:, 3], block[:, 4], kept], axis=1)[~begins])
            counts["pieces"] += len(block)
            counts["removed"] += int((~begins).sum())
        tables.write(into, removed.sorted())
    return counts


def cut(texts: Sequence[str], numbers: Sequence[int], removed: Path) -> tuple[list[str], dict[str, np.ndarray]]:
    """Return the texts without the pieces that `find` wants removed, and columns.

    What is left of a changed text has no whitespace at its ends; it may be empty. Other texts are returned as they are.

    duplicate_pieces: int64, pieces removed. duplicate_characters: int64, characters of them, overlaps counted once.
    """
    table, numbers = tables.read(removed, 3), check_numbers(numbers, len(texts))
    begins, ends = (tables.lower_bound(table, numbers + np.uint64(i)) for i in (0, 1))
    left, characters = list(texts), np.zeros(len(texts), np.int64)
    for i in np.flatnonzero(begins < ends):
        spans = np.asarray(table[begins[i] : ends[i], 1])
        stays, at = [], 0
        for start, end in zip((spans >> np.uint64(32)).tolist(), (spans & _LOW).tolist()):
            if start > at:
                stays.append(texts[i][at:start])
            characters[i] += max(0, end - max(at, start))
            at = max(at, end)
        left[i] = "".join([*stays, texts[i][at:]]).strip()
    return left, {"duplicate_pieces": ends - begins, "duplicate_characters": characters}


def columns(numbers: Sequence[int], removed: Path) -> dict[str, np.ndarray]:
    """Return what `find` decided about whole documents.

    duplicate_of: int64, the document that stays in its place, which may be itself. duplicate_keep: bool.
    """
    numbers = check_numbers(numbers, len(numbers))
    kept = kept_instead(numbers, removed, 2)
    return {"duplicate_of": kept, "duplicate_keep": kept == numbers.astype(np.int64)}
