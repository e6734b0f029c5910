"""A curve in bounded memory: the lowest, highest and mean value of each stretch of lines.

While a curve is short, a stretch is one line, and nothing is lost. A curve that outgrows its memory joins its stretches two by
two. So a spike stays visible however long a run is, and what was drawn stays where it was when lines are appended.
"""

import numpy as np

MOST = 2048  # stretches; a power of two
END, LOW, HIGH, SUM, COUNT, ROWS = range(6)  # last step; lowest, highest, sum and count of finite values; lines
EMPTY = np.array([0.0, np.inf, -np.inf, 0.0, 0.0, 0.0])


class Series:
    """The values of one metric by step, as at most MOST stretches of `size` lines."""

    def __init__(self):
        self.size = 1
        self._count = 0
        self._table = np.empty((16, 6))

    @property
    def stretches(self) -> np.ndarray:
        """The stretches [n, 6], in the order of their steps."""
        return self._table[: self._count]

    def extend(self, steps: np.ndarray, values: np.ndarray) -> None:
        """Append values; NaN is not finite. Steps that go back replace the stretches from there on."""
        if not len(steps):
            return
        back = np.flatnonzero(np.diff(steps) < 0) + 1
        for part_steps, part_values in zip(np.split(steps, back), np.split(values, back)):
            self._cut(part_steps[0])
            self._append(part_steps, part_values)

    def curve(self, points: int, low: float = -np.inf, high: float = np.inf) -> dict[str, np.ndarray]:
        """Return {"x", "y", "low", "high"} with at most `points` points between two steps, and one beyond on either side.

        x: the last step of each stretch. y: its mean, NaN if no value is finite.
        """
        found = self.stretches
        begin = max(0, int(np.searchsorted(found[:, END], low)) - 1)
        end = int(np.searchsorted(found[:, END], high, side="right")) + 1
        found = found[begin:end]
        while len(found) > max(points, 2):
            found = joined(found)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = found[:, SUM] / found[:, COUNT]
        nothing = found[:, COUNT] == 0
        limits = [np.where(nothing, np.nan, found[:, column]) for column in (LOW, HIGH)]
        return {"x": found[:, END], "y": np.where(nothing, np.nan, mean), "low": limits[0], "high": limits[1]}

    def _cut(self, step: float) -> None:
        """Forget the stretches that end at `step` or later; one of several lines keeps its earlier ones only as a whole."""
        while self._count and self._table[self._count - 1, END] > step:
            self._count -= 1

    def _append(self, steps: np.ndarray, values: np.ndarray) -> None:
        finite = np.isfinite(values)
        rows = np.stack(
            [
                steps,
                np.where(finite, values, np.inf),
                np.where(finite, values, -np.inf),
                np.where(finite, values, 0.0),
                finite.astype(np.float64),
                np.ones(len(steps)),
            ],
            axis=1,
        )
        room = int(self.size - self._table[self._count - 1, ROWS]) if self._count and self.size > 1 else 0
        if room > 0:
            last = np.concatenate([self._table[self._count - 1 : self._count], rows[:room]])
            self._table[self._count - 1] = reduced(last, len(last))[0]
            rows = rows[room:]
        new = reduced(rows, self.size)
        while self._count + len(new) > MOST:
            whole = np.concatenate([self.stretches, new])
            self.size *= 2
            new, self._count = joined(whole), 0
        needed = self._count + len(new)
        if needed > len(self._table):
            grown = np.empty((min(MOST, max(needed, 2 * len(self._table))), 6))
            grown[: self._count] = self.stretches
            self._table = grown
        self._table[self._count : needed] = new
        self._count = needed


def joined(stretches: np.ndarray) -> np.ndarray:
    """Return the stretches [n, 6] joined two by two."""
    return reduced(stretches, 2)


def reduced(rows: np.ndarray, size: int) -> np.ndarray:
    """Return rows [n, 6] joined `size` by `size`; the last ones may be fewer."""
    if size == 1 or not len(rows):
        return rows
    missing = -len(rows) % size
    if missing:
        filler = np.repeat(EMPTY[None], missing, axis=0)
        filler[:, END] = rows[-1, END]
        rows = np.concatenate([rows, filler])
    groups = rows.reshape(-1, size, 6)
    found = groups.sum(axis=1)
    found[:, END] = groups[:, -1, END]
    found[:, LOW] = groups[:, :, LOW].min(axis=1)
    found[:, HIGH] = groups[:, :, HIGH].max(axis=1)
    return found


def rounded(values: np.ndarray, digits: int = 5) -> list[float | None]:
    """Return numbers with `digits` significant digits, whole ones in full, and None for those that are not finite."""
    finite = np.isfinite(values)
    safe = np.where(finite, values, 0.0)
    size = np.floor(np.log10(np.maximum(np.abs(safe), 1e-300)))
    places = np.clip(digits - 1 - size, -300, 300)
    with np.errstate(over="ignore", invalid="ignore"):
        up, down = 10.0 ** np.maximum(places, 0), 10.0 ** np.maximum(-places, 0)
        short = np.where(np.isfinite(up), np.round(safe * up / down) / up * down, safe)
    short = np.where((safe == np.round(safe)) & (np.abs(safe) < 1e15) | ~np.isfinite(short), safe, short)
    return [
        (int(x) if x.is_integer() and abs(x) < 1e15 else x) if ok else None for x, ok in zip(short.tolist(), finite.tolist())
    ]
