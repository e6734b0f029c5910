"""Pairs as one row each: the prompt once, then the chosen and the rejected answer, which do not see one another.

    prompt without its last token | that token, chosen answer | that token, rejected answer | padding

The prompt's last token stands at the head of both answers, because it predicts their first tokens. So a prompt is computed once
instead of twice (prefix sharing, Wang & Hegde 2024, arXiv 2410.20305). Two rows of T tokens become one of at most 2·T.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Sides(NamedTuple):
    """The tokens of a pair's two sequences, int [N], and which of them are trained, bool [N]."""

    chosen: np.ndarray
    rejected: np.ndarray
    chosen_trained: np.ndarray
    rejected_trained: np.ndarray

    def shared(self) -> int:
        """Return the number of tokens that are stored once: the common prefix before any answer, without its last token."""
        untrained = min(int(np.argmax(trained)) for trained in self[2:])
        differ = np.flatnonzero(self.chosen[:untrained] != self.rejected[:untrained])
        return max(0, (int(differ[0]) if len(differ) else untrained) - 1)

    def length(self) -> int:
        """Return the number of tokens of the row."""
        return len(self.chosen) + len(self.rejected) - self.shared()


def filled(pairs: Sequence[Sides | None], length: int) -> dict[str, np.ndarray]:
    """Return a batch of rows of `length` tokens; None gives an empty row.

    `tokens`, `targets`, `segment_ids` (1; 0 is padding), `positions` (from 0 in each sequence), `ends` (the slot before which
    queries see the token: see lm.kernels.attention.Branches) and `rejected` (1 in the rejected answer) are int32 [B, length];
    `weights` float32 [B, length], 1 at the targets of the answers.
    """
    B = len(pairs)
    names = ("tokens", "targets", "segment_ids", "positions", "ends", "rejected")
    batch = {name: np.zeros((B, length), np.int32) for name in names} | {"weights": np.zeros((B, length), np.float32)}
    for b, pair in enumerate(pairs):
        if pair is None:
            continue
        shared, middle, end = pair.shared(), len(pair.chosen), pair.length()
        sides = ((slice(shared, middle), *pair[::2]), (slice(middle, end), *pair[1::2]))
        batch["tokens"][b, :shared], batch["positions"][b, :shared] = pair.chosen[:shared], np.arange(shared)
        for here, tokens, trained in sides:
            targets = slice(here.start, here.stop - 1)
            batch["tokens"][b, here], batch["positions"][b, here] = tokens[shared:], np.arange(shared, len(tokens))
            batch["targets"][b, targets], batch["weights"][b, targets] = tokens[shared + 1 :], trained[shared + 1 :]
        batch["segment_ids"][b, :end] = 1
        batch["rejected"][b, middle:end] = 1
        batch["ends"][b] = length
        batch["ends"][b, shared:middle] = middle
    return batch
