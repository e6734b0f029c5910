"""The order of rows in a mixture of sources whose shares change during a run: random access to any position.

The shares of a stage become integers p_i, the smallest 100. Among the first k positions of the stage, the first source has
k − ⌊k·(R − p_0)/R⌋ with R = Σ p_i; the remaining ones are divided among the other sources in the same way. So the sources are
interleaved evenly, and the number of rows that each has given is known at every position without a replay. Grain's
`MapDataset.mix` (0.2) places rows in the same way, in one stage.
"""

import bisect
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

MIN = 100  # the integer of the smallest share, so that shares are exact within half a percent


class Stage(NamedTuple):
    """From batch `begin` on, rows come from the sources in these shares."""

    begin: int
    shares: Mapping[str, float]  # by source; positive, of any sum


class Mixture(Sequence):
    """The endless row ids of a mixture. A source goes on in each stage where it stopped in an earlier one.

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
        before, after = self._rows(position), self._rows(position + 1, self._stage(position))
        source = next(i for i, (one, other) in enumerate(zip(before, after)) if one != other)
        return self._streams[source][before[source]]

    def rows(self, position: int) -> dict[str, int]:
        """Return the number of rows that each source gives to the positions before this one."""
        return dict(zip(self._names, self._rows(position)))

    def _stage(self, position: int) -> int:
        return bisect.bisect_right(self._begins, position) - 1

    def _rows(self, position: int, stage: int | None = None) -> list[int]:
        stage = self._stage(position) if stage is None else stage
        return list(map(operator.add, self._before[stage], counts(position - self._begins[stage], self._parts[stage])))


def counts(k: int, parts: Sequence[int]) -> list[int]:
    """Return how many of the first k positions of an even interleaving each source has; parts: its integer share."""
    remaining, found = sum(parts), []
    for part in parts:
        others = k * (remaining - part) // remaining if remaining else 0
        found.append(k - others)
        k, remaining = others, remaining - part
    return found


def _integers(shares: Sequence[float]) -> list[int]:
    least = min(share for share in shares if share > 0)
    return [round(MIN * share / least) for share in shares]  # rounded, because 0.3 / 0.1 * 100 is 299.99...
