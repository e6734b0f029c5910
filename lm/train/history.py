"""Read metrics.jsonl back: lines by step, and curves of one metric."""

import json
import math
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from lm.files.untrusted import content

Curve = tuple[np.ndarray, np.ndarray]  # steps, values


def load_metrics(path: str | os.PathLike[str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the training lines (with "loss") and validation lines ("valid_…") of a metrics.jsonl, ascending by step.

    A killed and resumed run leaves a partial line and repeats steps. Lines that are no JSON object with a "step" are skipped.
    Without a file both are empty.
    """
    rows = json_lines(path) if os.path.exists(path) else []
    return by_step(row for row in rows if isinstance(row.get("step"), int | float))


def by_step(rows: Iterable[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the training rows and the validation rows of `load_metrics`, ascending by step.

    Of training rows with the same step the last one is used; validation rows of one step are merged.
    """
    train, valid = dict[int, dict[str, Any]](), dict[int, dict[str, Any]]()
    for row in rows:
        if "loss" in row:
            train[row["step"]] = row
        elif any(key.startswith("valid_") for key in row):
            valid.setdefault(row["step"], {}).update(row)
    return [train[step] for step in sorted(train)], [valid[step] for step in sorted(valid)]


def json_lines(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return the JSON objects of a file, one per line. Other lines, such as one cut off by a kill, are skipped.

    Raises: OSError; UserError if it is a pipe, which might never end.
    """
    found = []
    for line in content(path, most=None).decode(errors="replace").split("\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            found.append(row)
    return found


def column(rows: Sequence[dict[str, Any]], key: str) -> Curve:
    """Return (steps, values) of `key` from the rows where it is a finite number."""
    pairs = [(row["step"], row[key]) for row in rows if isinstance(row.get(key), (int, float)) and math.isfinite(row[key])]
    x, y = np.array(pairs, np.float64).reshape(-1, 2).T
    return x, y
