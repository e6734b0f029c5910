"""What `data.weights` says: which share of training each source has in which part of a run; and the order of rows it gives.

    web=8,books=1                                       shares of rows, relative to each other; other sources are not read
    temperature=2                                       shares in proportion to tokens^(1/2), of all sources
    epochs: code=2,docs=0.5                             how often each source is read; shares follow from its rows
    DIR/weights.json                                    shares in a file: {"web": 8, "books": 1}
    0: web=8,books=1; 0.8: web=3,books=2,math=5         stages: from which fraction of the steps on

Each stage may have any of these forms.
"""

import bisect
import difflib
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from lm.errors import UserError
from lm.files.untrusted import read_json

MIN = 100  # the integer of the smallest share in a mixture, so that shares are exact within half a percent
MANY_EPOCHS = 4  # repeated as often, tokens are worth nearly as much as new ones (Muennighoff et al. 2023)
CLOSE = 0.02  # relative difference of epochs that is not worth a warning
FORMS = "'code=2,docs=1', 'temperature=2', 'epochs: code=2,docs=0.5', a .json file, or '0: code=2,docs=1; 0.8: docs=1'"


class Rule(NamedTuple):
    """What a stage says. kind: shares or epochs, with a number for each source; temperature, with one number of that name."""

    begin: float  # fraction of the steps, in [0, 1)
    kind: str
    numbers: Mapping[str, float]


class Weights(NamedTuple):
    """The stages of `data.weights`, and the batches of the run that they take their fractions of.

    rules: None: all sources in proportion to their rows.
    """

    rules: Sequence[Rule] | None = None
    steps: int = 0


class Stage(NamedTuple):
    """From batch `begin` on, rows come from the sources in these shares."""

    begin: int
    shares: Mapping[str, float]  # by source; positive, of any sum


class Size(NamedTuple):
    """The training text of a source: packed rows, and the tokens that are targets in them."""

    rows: int
    tokens: int


def parse_weights(text: str | None) -> list[Rule] | None:
    """Return the stages that `data.weights` describes; None for no text: all sources in proportion to their rows.

    Raises: UserError, which names the part that cannot be read and how to write it.
    """
    if not text or not text.strip():
        return None
    rules: list[Rule] = []
    stages = [stage.strip() for stage in text.split(";") if stage.strip()]
    for stage in stages:
        begin, mixture = re.fullmatch(r"(?:([-+.\deE]+)\s*:)?\s*(.*)", stage, re.DOTALL).groups()
        if begin is None and len(stages) > 1:
            raise UserError(f"data.weights: stage {stage!r} does not say where it begins; write it as '0.8: {stage}'")
        fraction = _number(begin, stage) if begin is not None else 0.0
        if not rules and fraction != 0:
            raise UserError(f"data.weights: the first stage begins at {begin}, not at 0; begin the text with '0: …'")
        if not 0 <= fraction < 1 or rules and fraction <= rules[-1].begin:
            raise UserError(
                f"data.weights: stage {stage!r} begins at {begin}; stages begin at ascending fractions of the steps, below 1"
            )
        rules.append(_rule(fraction, mixture))
    return rules


def resolved(text: str | None) -> str | None:
    """Return `data.weights` with the content of its files in place of their names, so that a run's record holds the numbers."""
    if not text or ".json" not in text:
        return text
    rules = parse_weights(text)
    several = len(rules) > 1
    return "; ".join((f"{rule.begin!r}: " if several else "") + _written(rule) for rule in rules)


def stages_of(rules: Sequence[Rule], sizes: Mapping[str, Size], steps: int) -> list[Stage]:
    """Return the shares of each stage, of sum 1, for a run of `steps` batches.

    shares: s_i / Σ s. epochs: s_i = e_i · rows_i. temperature: s_i = tokens_i^(1/T): T = 1 is in proportion to the tokens, and
    a higher T is flatter (Arivazhagan et al. 2019, who use T = 5; mT5, Xue et al. 2021, writes α = 1/T and uses 0.3).

    Args: sizes: of every source. A stage begins at the batch nearest to its fraction of the steps; one without batches is left
    out.
    Raises: UserError for an unknown source.
    """
    stages: list[Stage] = []
    for rule in rules:
        begin = round(rule.begin * steps)
        if stages and stages[-1].begin == begin:
            stages.pop()
        stages.append(Stage(begin, _shares(rule, sizes)))
    return stages


def warnings_of(
    rules: Sequence[Rule] | None, sizes: Mapping[str, Size], epochs: Mapping[str, float], steps: int, batch_size: float
) -> list[str]:
    """Return lines on what a run of `steps` reads too often, or not as often as `epochs: …` says.

    epochs: how often each source is read in the run. Weights with stages are not compared with it. batch_size: mean rows of a
    step.
    """
    lines, rows = [], sum(size.rows for name, size in sizes.items() if epochs.get(name))
    if 0 < rows < batch_size:
        lines.append(
            f"a step reads {batch_size:.0f} rows, and the data have {rows:,}, so it repeats them: lower batch_size, or add text"
        )
    if rules and len(rules) == 1 and rules[0].kind == "epochs" and steps:
        needed = sum(times * sizes[name].rows for name, times in rules[0].numbers.items())
        if abs(steps * batch_size / needed - 1) >= CLOSE:
            lines.append(
                f"data.weights: {steps:,} steps read the sources {steps * batch_size / needed:.3g} times as often as it says; "
                f"set steps={round(needed / batch_size)} to read them so"
            )
    for name, times in epochs.items():
        if times > MANY_EPOCHS:
            lines.append(
                f"source {name} is read {times:.1f} times: beyond {MANY_EPOCHS} epochs, repeated text is worth less and less "
                "(Muennighoff et al. 2023); give it a lower share in data.weights, train fewer steps, or add text"
            )
    return lines


def _shares(rule: Rule, sizes: Mapping[str, Size]) -> dict[str, float]:
    numbers = rule.numbers
    if rule.kind == "temperature":
        most = max(size.tokens for size in sizes.values())
        numbers = {name: (size.tokens / most) ** (1 / rule.numbers["temperature"]) for name, size in sizes.items()}
    for name in numbers:
        if name not in sizes:
            near = difflib.get_close_matches(name, sizes, n=1, cutoff=0.0)[0]
            raise UserError(f"data.weights.{name}: no such source with training text; the nearest is {near!r}")
    if rule.kind == "epochs":
        numbers = {name: times * sizes[name].rows for name, times in numbers.items()}
    total = sum(numbers.values())
    return {name: numbers[name] / total for name in sizes if numbers.get(name)}


def _rule(begin: float, text: str) -> Rule:
    if text.endswith(".json"):
        return Rule(begin, "shares", _valid(_read(Path(text))))
    head, colon, rest = text.partition(":")
    if colon and head.strip() != "epochs":
        raise UserError(f"data.weights={text!r}: {head.strip()!r} is neither 'epochs' nor a fraction; forms are {FORMS}")
    kind = "epochs" if colon else "shares"
    pairs = [part.split("=") for part in (rest if colon else text).split(",") if part.strip()]
    if not pairs or any(len(pair) != 2 or not pair[0].strip() for pair in pairs):
        raise UserError(f"data.weights={text!r} must read like {FORMS}")
    numbers = {name.strip(): _number(value, text) for name, value in pairs}
    if len(numbers) < len(pairs):
        raise UserError(f"data.weights={text!r} names a source twice; leave one of the two out")
    if list(numbers) == ["temperature"] and kind == "shares":
        if not numbers["temperature"] > 0:
            raise UserError(f"data.weights={text!r}: a temperature is above 0; 1 is in proportion to the tokens, inf uniform")
        return Rule(begin, "temperature", numbers)
    return Rule(begin, kind, _valid(numbers))


def _valid(numbers: dict[str, float]) -> dict[str, float]:
    for name, number in numbers.items():
        if not (number >= 0 and math.isfinite(number)):
            raise UserError(f"data.weights.{name}={number} must be a finite number, 0 or more")
    if not any(numbers.values()):
        raise UserError("data.weights: every weight is 0; give at least one source a positive weight")
    return numbers


def _number(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"data.weights={where!r}: {text.strip()!r} is no number; forms are {FORMS}") from None


def _read(path: Path) -> dict[str, float]:
    try:
        shares = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f'data.weights={path} is no JSON file ({error}); it must read like {{"code": 2, "docs": 1}}') from None
    numbers = isinstance(shares, dict) and all(isinstance(x, int | float) and not isinstance(x, bool) for x in shares.values())
    if not numbers or not shares:
        raise UserError(f'data.weights={path} must hold a number for each source, such as {{"code": 2, "docs": 1}}')
    return {name: float(number) for name, number in shares.items()}


def _written(rule: Rule) -> str:
    pairs = ",".join(f"{name}={number!r}" for name, number in rule.numbers.items())
    return f"epochs: {pairs}" if rule.kind == "epochs" else pairs


class Mixture(Sequence):
    """The endless row ids of a mixture: random access to any position. A source goes on where it stopped in an earlier stage.

    The shares of a stage become integers p_i, the smallest 100. Among the first k positions of the stage, the first source
    has k − ⌊k·(R − p_0)/R⌋ with R = Σ p_i; the remaining ones are divided among the other sources in the same way. So the
    sources are interleaved evenly, and the number of rows that each has given is known at every position without a replay.
    Grain's `MapDataset.mix` (0.2) places rows in the same way, in one stage.

    Args:
        streams: source -> its endless row ids, such as one permutation an epoch.
        stages: the first begins at batch 0, and each begins after the one before. Every source is in `streams`.
        start: returns the rows of all batches before one.
    """

    def __init__(self, streams: Mapping[str, Sequence[int]], stages: Sequence[Stage], start: Callable[[int], int]):
        if [stage.begin for stage in stages] != sorted({stage.begin for stage in stages}) or stages[0].begin:
            raise ValueError(f"stages must begin at batch 0 and ascend: {[stage.begin for stage in stages]}")
        self._names = [name for name in streams if any(name in stage.shares for stage in stages)]
        self._streams = [streams[name] for name in self._names]
        for stream in self._streams:
            stream[0]  # the first access initialises Grain's statistics, which is not thread-safe
        self._begins = [start(stage.begin) for stage in stages]
        self._parts = [_integers([stage.shares.get(name, 0) for name in self._names]) for stage in stages]
        self._before = [[0] * len(self._names)]  # rows that each source has given before the stage
        for parts, begin, end in zip(self._parts, self._begins, self._begins[1:]):
            self._before.append(list(map(operator.add, self._before[-1], counts(end - begin, parts))))

    def __len__(self) -> int:
        raise TypeError("a mixture is endless")

    def __getitem__(self, position: int) -> int:
        stage = self._stage(position)
        before, after = self._rows(position, stage), self._rows(position + 1, stage)
        source = next(i for i, rows in enumerate(before) if after[i] > rows)
        return self._streams[source][before[source]]

    def rows(self, position: int) -> dict[str, int]:
        """Return the number of rows that each source gives to the positions before this one."""
        return dict(zip(self._names, self._rows(position, self._stage(position))))

    def _stage(self, position: int) -> int:
        return bisect.bisect_right(self._begins, position) - 1

    def _rows(self, position: int, stage: int) -> list[int]:
        return list(map(operator.add, self._before[stage], counts(position - self._begins[stage], self._parts[stage])))


def counts(k: int, parts: Sequence[int]) -> list[int]:
    """Return how many of the first k positions of an even interleaving each source has; parts: its integer share."""
    remaining, rows = sum(parts), []
    for part in parts:
        others = k * (remaining - part) // remaining if remaining else 0
        rows.append(k - others)
        k, remaining = others, remaining - part
    return rows


def _integers(shares: Sequence[float]) -> list[int]:
    least = min(share for share in shares if share > 0)
    return [round(MIN * share / least) for share in shares]  # rounded, because 0.3 / 0.1 * 100 is 299.99...
