"""Rows of the batches of a run: the same in each, or fewer at first (batch-size warm-up, Brown et al. 2020, appendix B).

`batch_warmup="500: 8; 2000: 16"` with batch_size=32: batches 0 … 499 have 8 rows, 500 … 1,999 have 16, later ones 32. Steps
are counted, not fractions of the run, so a run that is made longer has read the same rows.
"""

import bisect
import math
import re
from typing import NamedTuple

from lm.errors import UserError


class Sizes(NamedTuple):
    """The rows of each batch. Stage i has batches of rows[i] from batch ends[i − 1] to ends[i]; the last stage never ends."""

    ends: tuple[int, ...]
    rows: tuple[int, ...]

    def of(self, n: int) -> int:
        """Return the rows of batch n."""
        return self.rows[bisect.bisect_right(self.ends, n)]

    def start(self, n: int) -> int:
        """Return the rows of all batches before n: the position of batch n's first row in the stream."""
        begins = (0, *self.ends)
        return sum(max(0, min(n, end) - begin) * rows for begin, end, rows in zip(begins, (*self.ends, n), self.rows))

    def batches(self, rows: int) -> int:
        """Return how many batches hold at least so many rows."""
        for begin, end, size in zip((0, *self.ends), (*self.ends, math.inf), self.rows):
            if self.start(begin) + (end - begin) * size >= rows:
                return begin + max(0, math.ceil((rows - self.start(begin)) / size))


def constant(rows: int) -> Sizes:
    """Return the sizes of batches that all have `rows` rows."""
    return Sizes((), (rows,))


def parse_sizes(text: str | None, batch_size: int) -> Sizes:
    """Return the sizes that `batch_warmup` describes. Raises UserError, which names the part that cannot be read."""
    ends, rows = [], []
    for stage in filter(None, (part.strip() for part in (text or "").split(";"))):
        match = re.fullmatch(r"(\d+)\s*:\s*(\d+)", stage)
        if match is None:
            raise UserError(f"batch_warmup: {stage!r} is not STEP: ROWS; write it as '500: 8; 2000: 16', rows until a step")
        end, size = map(int, match.groups())
        if end <= (ends[-1] if ends else 0) or not (rows[-1] if rows else 0) < size < batch_size:
            raise UserError(f"batch_warmup: {stage!r}: steps and rows must ascend, and rows stay below batch_size={batch_size}")
        ends.append(end)
        rows.append(size)
    return Sizes(tuple(ends), (*rows, batch_size))
