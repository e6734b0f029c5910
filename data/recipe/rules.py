"""Thresholds: which measured documents a recipe drops, and for which reason."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from data.recipe.batch import Columns
from lm.errors import UserError


class Rule(NamedTuple):
    """A document stays if least ≤ value ≤ most, or, with `allowed`, if the value is one of these. NaN and None stay."""

    column: str
    least: float = -math.inf
    most: float = math.inf
    allowed: tuple[str, ...] = ()

    def drops(self, values: Sequence | np.ndarray) -> np.ndarray:
        """Return bool [N]."""
        if self.allowed:
            return np.array([value is not None and value not in self.allowed for value in values], bool)
        values = np.asarray(values, np.float64)
        return (values < self.least) | (values > self.most)

    def told(self) -> str:
        """Return the rule as a condition for staying, such as "50 ≤ gopher_words ≤ 100000"."""
        if self.allowed:
            return f"{self.column} in {', '.join(self.allowed)}"
        low = f"{self.least:g} ≤ " if self.least > -math.inf else ""
        return f"{low}{self.column}" + (f" ≤ {self.most:g}" if self.most < math.inf else "")

    def described(self) -> dict[str, object]:
        """Return {"column", "told", "bounds": the finite ones} for manifest and report."""
        bounds = [bound for bound in (self.least, self.most) if math.isfinite(bound)]
        return {"column": self.column, "told": self.told(), "bounds": bounds}


def parse(rules: Mapping[str, Sequence]) -> list[Rule]:
    """Return the rules of a config: column -> (least, most), or a tuple of allowed strings; an empty tuple is no rule.

    Raises: UserError names the key.
    """
    found = []
    for column, bounds in rules.items():
        if isinstance(bounds, str) or not isinstance(bounds, Sequence):
            raise UserError(
                f"rules.{column}={bounds!r}: give (least, most), such as (0.0, 0.3), or allowed values, such as ('en',)"
            )
        if not bounds:
            continue
        if all(isinstance(value, str) for value in bounds):
            found.append(Rule(column, allowed=tuple(bounds)))
        elif len(bounds) == 2 and all(isinstance(value, int | float) and value == value for value in bounds):
            if bounds[0] > bounds[1]:
                raise UserError(f"rules.{column}={tuple(bounds)}: the least value is above the most")
            found.append(Rule(column, float(bounds[0]), float(bounds[1])))
        else:
            raise UserError(f"rules.{column}={tuple(bounds)!r}: give two numbers (least, most), or allowed strings")
    return found


def reasons(rules: Sequence[Rule], columns: Columns, documents: int) -> np.ndarray:
    """Return int64 [N]: the index of the first rule that drops each document, or −1 if it stays."""
    found = np.full(documents, -1)
    for k in range(len(rules) - 1, -1, -1):
        found[rules[k].drops(columns[rules[k].column])] = k
    return found
