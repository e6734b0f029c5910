"""Files of encoded examples: written once, read by memory mapping.

A folder workdir/data/<hash of all settings that the rows depend on>/ holds counts.json, input.json
(data/text/fingerprints.py) and, per split, one .npy file per column. Sequences are concatenated without padding:
    all kinds: tokens [S] unsigned; trained [S] bool; ends int64, the end of each sequence in these columns: [N], or [N, 2] for
        the kinds pair (chosen, rejected) and labelled (prompt, answer)
    conversation: segments [S], from 1 in each row
    steps: labels [S] bool
    pair: margin [N] float32
    labelled: desirable [N] float32
    conversation with media: those of data/chat/media/rows.py
Letters: S tokens in total, N rows.
"""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.chat.example_encoding import Sequenced
from data.text.fingerprints import Damaged, read_record

SPLITS = ("train", "valid")
COLUMNS = ("tokens", "trained", "ends")
MEDIA_COLUMNS = {  # if counts.json has the number of images of a split
    "media": np.uint8,
    "media_ends": np.int64,
    "media_kinds": np.uint8,
    "media_counts": np.int32,
    "media_rows": np.int64,
}
OWN_COLUMNS = {"conversation": ("segments",), "pair": ("margin",), "labelled": ("desirable",), "steps": ("labels",)}


class Examples(NamedTuple):
    """Columns by name, for data.chat.example_batches, and the content of counts.json (see data/chat/examples.py)."""

    train: dict[str, np.ndarray]
    valid: dict[str, np.ndarray] | None
    counts: dict[str, Any]


@dataclasses.dataclass
class Counts:
    """Counts of a split. `examples`: kept ones, including `truncated`. `tokens` + `padding` = all slots of the rows."""

    examples: int = 0
    truncated: int = 0
    rows: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    padding: int = 0
    dropped: Counter = dataclasses.field(default_factory=Counter)


class Row(NamedTuple):
    """The content of a row or pair: its sequences, and further columns, each [S] over all sequences or a scalar."""

    parts: tuple[Sequenced, ...]
    columns: dict[str, Any] = {}


@contextlib.contextmanager
def appending(folder: Path, dtypes: Mapping[str, Any], parts: int = 1) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Yield a function that appends values to columns by name. At the end, when their length is known, they become .npy files.

    parts: the column `ends` has so many values a row.
    """
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context((folder / f"{name}.raw").open("wb")) for name in dtypes}

        def append(values: Mapping[str, Any]) -> None:
            for name in dtypes.keys() & values.keys():
                files[name].write(np.asarray(values[name], dtypes[name]).tobytes())

        yield append
    for name, dtype in dtypes.items():
        raw = folder / f"{name}.raw"
        column = np.memmap(raw, dtype, mode="r") if raw.stat().st_size else np.zeros(0, dtype)
        np.save(folder / f"{name}.npy", column.reshape(-1, parts) if name == "ends" and parts > 1 else column)
        raw.unlink()


def write_columns(folder: Path, rows: Iterable[Row], kind: str, T: int, vocab_size: int, counts: Counts) -> None:
    """Write the columns of rows of a kind, and count them."""
    folder.mkdir()
    dtypes: dict[str, Any] = {"tokens": np.uint16 if vocab_size <= 1 << 16 else np.uint32, "trained": bool, "ends": np.int64}
    own = {"segments": np.uint16 if T < 1 << 16 else np.uint32, "labels": bool}
    dtypes |= {name: own.get(name, np.float32) for name in OWN_COLUMNS[kind]}
    slots = (2 if kind == "pair" else 1) * T + (kind == "conversation")
    with appending(folder, dtypes, 2 if kind in ("pair", "labelled") else 1) as append:
        for row in rows:
            ends = counts.tokens + np.cumsum([len(part.ids) for part in row.parts])
            tokens, trained = (np.concatenate(parts) for parts in zip(*row.parts))
            append({"tokens": tokens, "trained": trained, "ends": ends, **row.columns})
            counts.rows += 1
            counts.tokens = int(ends[-1])
            counts.trained_tokens += int(trained.sum())
            counts.padding += slots - len(tokens)


def load_examples(folder: Path) -> Examples | None:
    """Load the examples that `prepare_examples` wrote; None if there are none. Raises: Damaged if a file is bad or missing."""
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
    media = MEDIA_COLUMNS if "images" in counts[folder.name] else ()
    for name in (*COLUMNS, *OWN_COLUMNS[counts["kind"]], *media):
        path = folder / f"{name}.npy"
        try:
            columns[name] = np.load(path, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise Damaged(path, error) from None
    return columns
