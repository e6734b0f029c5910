"""What parts of exact and of near duplicates have in common: numbers and ranks of documents, and settings."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.dedup import tables
from lm.errors import UserError
from lm.files import saving

SETTINGS = "settings.json"  # of a part; it is there if the part is complete
NUMBERS = 1 << 61  # documents have numbers below it


def ranks(scores: Sequence[float] | None, count: int) -> np.ndarray:
    """Return uint64 [count]: the lower the rank, the better the document.

    scores: higher is better, nan is worst; None: all documents are equally good, so that the first one stays.
    """
    score = np.zeros(count) if scores is None else np.asarray(scores, np.float64) + 0.0  # -0.0 becomes 0.0
    if score.shape != (count,):
        raise UserError(f"{count} documents have scores of shape {score.shape}; give one score a document")
    bits = np.where(np.isnan(score), -np.inf, score).view(np.uint64)
    sign = np.uint64(1 << 63)
    return ~np.where(bits & sign, ~bits, bits | sign)  # floats in descending order


def check_numbers(numbers: Sequence[int], count: int) -> np.ndarray:
    """Return numbers as uint64 [count]. Raises: UserError if there are not as many, or one is not in [0, 2^61)."""
    numbers = np.asarray(numbers)
    if numbers.shape != (count,) or (
        count and (numbers.dtype.kind not in "iu" or numbers.min() < 0 or numbers.max() >= NUMBERS)
    ):
        raise UserError(f"{count} documents need one number each, in [0, 2^61); got {numbers.dtype} {numbers.shape}")
    return numbers.astype(np.uint64)


@contextlib.contextmanager
def writing(folder: Path, settings: Mapping[str, Any]) -> Iterator[Path]:
    """Yield a folder for temporary files while a part is written; the part is complete if the block ends without an error."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SETTINGS).unlink(missing_ok=True)
    with tables.scratch(folder / "part") as temporary:
        yield temporary
    saving.write_json(folder / SETTINGS, settings)


def check_settings(parts: Sequence[Path], kind: str) -> None:
    """Raise UserError if a folder holds no complete part of exact or near duplicates, or two have other SETTINGS."""
    found: dict[str, Path] = {}
    for part in map(Path, parts):
        if not (part / SETTINGS).exists():
            raise UserError(f"{part}: no complete part of {kind} duplicates; make it again with data.dedup.{kind}.new_part")
        found.setdefault((part / SETTINGS).read_text(), part)
    if len(found) > 1:
        one, other = list(found.values())[:2]
        raise UserError(f"{one} and {other} have different settings of {kind} duplicates; make both with the same")


def kept_instead(numbers: np.ndarray, table: Path, column: int) -> np.ndarray:
    """Return int64 [n]: for each document a column of a table of duplicates, uint64 [rows, 3]; its number if it has no row."""
    rows = tables.read(table, 3)
    row, found = tables.find(rows, numbers)
    return np.where(found, rows[row, column] if len(rows) else numbers, numbers).astype(np.int64)
