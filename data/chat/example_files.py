"""Encoded examples on disk: written once, read by memory mapping.

A folder workdir/data/<hash of all that the rows depend on>/ holds counts.json, input.json (data/text/fingerprints.py) and, for
each split, one .npy file a column. Sequences of any length lie end to end, so that nothing is padded on disk:
    tokens [S] unsigned, trained [S] bool, and by kind: conversation: segments [S], from 1 in each row; steps: labels [S] bool
    ends: where each sequence ends in them, int64: [N], or [N, 2] of pairs (chosen, rejected) and of labelled (prompt, answer)
    pair: margin [N] float32; labelled: desirable [N] float32
Letters: S tokens in all, N rows.
"""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.chat.example_encoding import Sequenced
from data.text.fingerprints import Damaged, read_record

SPLITS = ("train", "valid")
COLUMNS = ("tokens", "trained", "ends")
OWN_COLUMNS = {"conversation": ("segments",), "pair": ("margin",), "labelled": ("desirable",), "steps": ("labels",)}


class Examples(NamedTuple):
    """Columns by name, as data.chat.example_batches takes them, and what is in counts.json (data/chat/examples.py)."""

    train: dict[str, np.ndarray]
    valid: dict[str, np.ndarray] | None
    counts: dict[str, Any]


@dataclasses.dataclass
class Counts:
    """Of a split. `examples` are those kept, `truncated` among them; `tokens` and `padding` fill the rows' slots."""

    examples: int = 0
    truncated: int = 0
    rows: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    padding: int = 0
    dropped: Counter = dataclasses.field(default_factory=Counter)


class Row(NamedTuple):
    """What is written of a row, or of a pair: its sequences, and its other columns [S] (of them all) or scalars."""

    parts: tuple[Sequenced, ...]
    columns: dict[str, Any] = {}


def write_columns(folder: Path, rows: Iterable[Row], kind: str, T: int, vocab_size: int, counts: Counts) -> None:
    """Writes the columns as they come into plain files, and those as .npy files when their lengths are known."""
    folder.mkdir()
    dtypes: dict[str, Any] = {"tokens": np.uint16 if vocab_size <= 1 << 16 else np.uint32, "trained": bool, "ends": np.int64}
    own = {"segments": np.uint16 if T < 1 << 16 else np.uint32, "labels": bool}
    dtypes |= {name: own.get(name, np.float32) for name in OWN_COLUMNS[kind]}
    parts, slots = 1, T + (kind == "conversation")
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context((folder / f"{name}.raw").open("wb")) for name in dtypes}
        for row in rows:
            parts = len(row.parts)
            ends = counts.tokens + np.cumsum([len(part.ids) for part in row.parts])
            columns = {"tokens": np.concatenate([p.ids for p in row.parts]), "ends": ends, **row.columns}
            columns["trained"] = np.concatenate([p.trained for p in row.parts])
            for name, dtype in dtypes.items():
                files[name].write(np.asarray(columns[name], dtype).tobytes())
            counts.rows += 1
            counts.tokens = int(ends[-1])
            counts.trained_tokens += int(columns["trained"].sum())
            counts.padding += (parts if kind == "pair" else 1) * slots - len(columns["tokens"])
    for name, dtype in dtypes.items():
        raw = folder / f"{name}.raw"
        column = np.memmap(raw, dtype, mode="r") if raw.stat().st_size else np.zeros(0, dtype)
        np.save(folder / f"{name}.npy", column.reshape(-1, parts) if name == "ends" and parts > 1 else column)
        raw.unlink()


def standing(folder: Path) -> Examples | None:
    """What `prepare_examples` wrote there, if it has. Raises: Damaged if a file of it is torn or missing."""
    path = folder / "counts.json"
    counts = read_record(path, "examples", {"kind"})
    if counts is None:
        return None
    if counts["kind"] not in OWN_COLUMNS:
        raise Damaged(path, f"kind {counts['kind']!r} is none of {', '.join(OWN_COLUMNS)}")
    splits = {split: _columns(folder / split, counts) for split in SPLITS}
    return Examples(splits["train"], splits["valid"], counts)


def _columns(folder: Path, counts: dict[str, Any]) -> dict[str, np.ndarray] | None:
    if not counts.get(folder.name, {}).get("rows"):
        return None
    columns = {}
    for name in (*COLUMNS, *OWN_COLUMNS[counts["kind"]]):
        path = folder / f"{name}.npy"
        try:
            columns[name] = np.load(path, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise Damaged(path, error) from None
    return columns
