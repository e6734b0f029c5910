"""The reference window: what exchanges were like, against which live ones are compared.

Its first half fits two models: the shares of languages, and the words that exchanges use. Under them, the second half and live
exchanges get surprises, −log of a smoothed share, which are numbers that a detector can rank. Since the models are fixed before
those are read, surprises of exchangeable exchanges are exchangeable. Other measures need no model, and use the whole window.

A window is a file of measures, without any text.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lm.errors import UserError
from lm.files import saving
from lm.serve.watch.measures import Measures

# Highest values that the scales below tell apart: 2^20 tokens; 12 nats, the entropy of 160,000 equally likely tokens.
LONGEST, MAX_NATS, MAX_SURPRISE = 20.0, 12.0, 8.0
PARTS = 10  # of a PSI: deciles of the reference, as in credit scoring
# Measure -> its number in [0, 1]; feedback is no measure of an exchange, and comes by itself.
SCALES: dict[str, Callable[[float], float]] = {
    "refusal": float,
    "unsafe": float,
    "repetition": float,
    "length": lambda tokens: math.log2(1 + tokens) / LONGEST,
    "prompt_length": lambda tokens: math.log2(1 + tokens) / LONGEST,
    "entropy": lambda nats: nats / MAX_NATS,
}
FITTED = ("language", "prompt_language", "topic")
STREAMS = (*SCALES, *FITTED, "feedback")
RATES = ("refusal", "unsafe", "feedback")  # streams of 0 and 1


class Reference(NamedTuple):
    """rows: the measures of the window. languages, prompt_languages: counts in its first half. words: documents of the first
    half that have a bucket. fitted: exchanges of the first half."""

    rows: tuple[Measures, ...]
    languages: Counter
    prompt_languages: Counter
    words: Counter
    fitted: int

    def values(self, measures: Measures) -> dict[str, float]:
        """Return the number in [0, 1] of each stream to which the measures belong."""
        found = {
            name: min(1.0, scale(value)) for name, scale in SCALES.items() if (value := getattr(measures, name)) is not None
        }
        if measures.language is not None:
            found["language"] = self._surprise(self.languages[measures.language])
        if measures.prompt_language is not None:
            found["prompt_language"] = self._surprise(self.prompt_languages[measures.prompt_language])
        if measures.words:
            found["topic"] = sum(self._surprise(self.words[word]) for word in measures.words) / len(measures.words)
        return found

    def calibration(self) -> dict[str, list[float]]:
        """Return the numbers of the reference by stream: of its second half for fitted streams, of all of it for others."""
        found: dict[str, list[float]] = {name: [] for name in STREAMS}
        for at, row in enumerate(self.rows):
            for name, value in self.values(row).items():
                if at >= self.fitted or name not in FITTED:
                    found[name].append(value)
        return found

    def _surprise(self, count: int) -> float:
        return min(1.0, -math.log((count + 0.5) / (self.fitted + 1)) / MAX_SURPRISE)


def fit(rows: Sequence[Measures]) -> Reference:
    """Return the reference of a window."""
    half = len(rows) // 2
    return Reference(
        rows=tuple(rows),
        languages=Counter(row.language for row in rows[:half] if row.language is not None),
        prompt_languages=Counter(row.prompt_language for row in rows[:half] if row.prompt_language is not None),
        words=Counter(word for row in rows[:half] for word in row.words or ()),
        fitted=half,
    )


def psi(reference: Sequence[float], live: Sequence[float]) -> float | None:
    """Return the population stability index of two samples: Σ (q − p) · ln(q / p) over the deciles of the reference.

    p and q are the shares of the samples in a decile, each with half a count added. If there are at most ten distinct values,
    each is a part of its own. By rule of thumb, under 0.1 is no change and over 0.25 is a large one (Siddiqi, "Credit Risk
    Scorecards", 2006). By chance alone it is about (parts − 1) · (1/n + 1/m) (Yurdakul, "Statistical Properties of Population
    Stability Index", 2018). None: a sample is empty.
    """
    if not len(reference) or not len(live):
        return None
    cuts = np.unique(np.concatenate([reference, live]))
    if len(cuts) > PARTS:
        cuts = np.unique(np.quantile(reference, np.arange(1, PARTS) / PARTS))
    shares = []
    for sample in (reference, live):
        counts = np.bincount(np.searchsorted(cuts, sample), minlength=len(cuts) + 1) + 0.5
        shares.append(counts / counts.sum())
    p, q = shares
    return float(np.sum((q - p) * np.log(q / p)))


def to_json(rows: Sequence[Measures]) -> list[list[Any]]:
    return [[*row[:-1], list(row.words) if row.words else None] for row in rows]


def from_json(rows: Sequence[Sequence[Any]]) -> list[Measures]:
    """Raises: TypeError, ValueError: not rows of this version."""
    return [Measures(*row[:-1], tuple(row[-1]) if row[-1] else None) for row in rows]


def save(path: Path, rows: Sequence[Measures], about: Mapping[str, Any]) -> None:
    saving.write(path, json.dumps({"about": about, "fields": Measures._fields, "rows": to_json(rows)}) + "\n")


def load(path: str | Path) -> Reference:
    """Read a window that `save` wrote. Raises: UserError: it is none."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        if tuple(found["fields"]) != Measures._fields:
            raise ValueError("its measures are those of another version")
        return fit(from_json(found["rows"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: no reference window ({error}); delete it, and a new one is collected") from error
