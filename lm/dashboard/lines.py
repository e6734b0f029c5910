"""Read lines of metrics.jsonl into arrays, one a metric. Arrow reads the usual lines; all others are read one by one."""

import json
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json

from lm.reports.run_metrics import is_number, row_of
from lm.train.history import Curve

MOST_KEYS = 400  # metrics of a run; more are left out
LONGEST_KEY = 200  # characters
MOST_CELLS = 4_000_000  # values that Arrow makes of the lines of one read
KEY = re.compile(rb'"([^"\\\x00-\x1f]{1,200})":')
LIMIT = 1e30  # as in lm/reports/run_metrics.py: larger numbers are taken as not finite


@dataclass
class Columns:
    """curves: metric -> (steps, values), a value that is not finite as NaN. damaged: lines that cannot be read.

    not_finite: steps of training lines whose loss or gradient norm is not finite. null: how many training lines at the end are
    such. trained: how many training lines there are. last: the last two of them.
    """

    curves: dict[str, Curve] = field(default_factory=dict)
    damaged: int = 0
    not_finite: list[float] = field(default_factory=list)
    null: int = 0
    trained: int = 0
    last: list[dict[str, Any]] = field(default_factory=list)


def columns(data: bytes, known: Collection[str]) -> Columns:
    """Return what whole lines hold. known: the metrics of earlier lines of the file.

    Each numeric key of a line that has a step is a metric. Lines that are no JSON object with a step are counted as damaged.
    """
    return _fast(data, known) or slow(data, known)


def slow(data: bytes, known: Collection[str]) -> Columns:
    """Return the same as `columns`, line by line."""
    found, pairs, room = Columns(), {}, MOST_KEYS - len(known)
    for line in data.split(b"\n"):
        if not line.strip():
            continue
        if (row := row_of(line)) is None:
            found.damaged += 1
            continue
        step = row["step"]
        for key, value in row.items():
            if key == "step" or not (value is None or isinstance(value, int | float)) or isinstance(value, bool):
                continue
            if key not in pairs:
                if key not in known and (room <= 0 or len(key) > LONGEST_KEY):
                    continue
                room -= key not in known
                pairs[key] = ([], [])
            pairs[key][0].append(step)
            pairs[key][1].append(value if is_number(value) else np.nan)
        if "loss" in row:
            finite = is_number(row["loss"]) and (row.get("grad_norm", 0) == 0 or is_number(row["grad_norm"]))
            found.null = 0 if finite else found.null + 1
            found.not_finite += [] if finite else [step]
            found.trained += 1
            found.last = [*found.last[-1:], row]
    found.curves = {key: (np.array(x, np.float64), np.array(y, np.float64)) for key, (x, y) in pairs.items()}
    return found


def _fast(data: bytes, known: Collection[str]) -> Columns | None:
    """Return the same by Arrow, which is several times as fast; None if a line is not flat or not finite.

    The schema is given, so that a hostile file cannot ask for more columns than MOST_KEYS, or for more than MOST_CELLS values.
    """
    if len(data) < 4096 or b"null" in data or b"[" in data or b"\n\n" in data or data.count(b"{") != data.count(b"\n"):
        return None
    count = data.count(b"\n")
    if count * len(known) > MOST_CELLS:
        return None
    table = _table(data, known)
    if table is None:
        new = {key.decode("utf-8", "replace") for key in set(KEY.findall(data))} - {"step"} - set(known)
        if not new or len(known) + len(new) > MOST_KEYS or count * (len(known) + len(new)) > MOST_CELLS:
            return None
        table = _table(data, [*known, *sorted(new)])
    if table is None or len(table) != count:
        return None
    steps, here = _array(table["step"])
    if not (here.all() and (np.abs(steps) < LIMIT).all()):
        return None
    found = Columns()
    for name in table.column_names[1:]:
        values, here = _array(table[name])
        if here.any():
            if not (np.abs(values[here]) < LIMIT).all():
                return None
            found.curves[name] = (steps[here], values[here])
    if "loss" in found.curves:
        found.trained = len(found.curves["loss"][0])
        rows = [row for row in map(json.loads, data.rstrip(b"\n").rsplit(b"\n", 8)[-8:]) if "loss" in row]
        found.last = rows[-2:]
    return found


def _table(data: bytes, keys: Collection[str]) -> pa.Table | None:
    """Return the lines with these keys and "step" as columns of float64; None if a line has another key or is damaged."""
    schema = pa.schema([(name, pa.float64()) for name in ("step", *(key for key in keys if key != "step"))])
    try:
        return pyarrow.json.read_json(
            pa.BufferReader(data),
            read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=len(data) + 1),
            parse_options=pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error"),
        )
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None


def _array(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Return (values, whether a line has one). Arrow's own function for it would load pandas."""
    chunk = column.chunk(0)
    valid, data = chunk.buffers()
    here = np.ones(len(chunk), bool)
    if valid is not None:
        bits = np.unpackbits(np.frombuffer(valid, np.uint8), bitorder="little")
        here = bits[chunk.offset : chunk.offset + len(chunk)].astype(bool)
    return np.frombuffer(data, np.float64)[chunk.offset : chunk.offset + len(chunk)], here
