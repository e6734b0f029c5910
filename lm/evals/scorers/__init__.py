"""Scorers of saved answers, a module for each benchmark: score(items, answers) -> (results, samples).

items are the rows of the benchmark's file, answers what a model said, both as dicts. results holds the figures, each mean with
its `…_stderr`, `n` that were scored, `missing` that nothing answers, and `problems`; samples has a record of each scored item.
"""

import math
from collections.abc import Sequence


def mean(name: str, values: Sequence[float]) -> dict[str, float | None]:
    """{name: their mean, name_stderr: sample standard deviation / √n}; None where too few values tell nothing."""
    n = len(values)
    if not n:
        return {name: None, f"{name}_stderr": None}
    middle = sum(values) / n
    squares = sum((value - middle) ** 2 for value in values)
    return {name: middle, f"{name}_stderr": math.sqrt(squares / (n - 1) / n) if n > 1 else None}
