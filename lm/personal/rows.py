"""Turn an item into rows of tokens to learn from.

A note or a file is read as text, an exchange by the chat template with loss on the assistant's turns. A row has WIDTHS tokens;
longer items make several, whose gradients are added up before they are clipped, because the item is what is protected.
"""

from typing import NamedTuple

import numpy as np

from data.chat.conversations import Conversation
from data.chat.example_encoding import Encoder
from lm.errors import UserError
from lm.personal.items import Item
from lm.personal.speaker import Speaker

WIDTHS = (32, 64, 128, 256)


class Row(NamedTuple):
    """tokens, targets: int32 [T]; weights: float32 [T], 0 for padding and for what is not learnt."""

    tokens: np.ndarray
    targets: np.ndarray
    weights: np.ndarray

    def batch(self) -> dict[str, np.ndarray]:
        """Return the batch of this one row, in the form of lm/train/step.py."""
        positions = np.arange(len(self.tokens), dtype=np.int32)
        segments = np.ones_like(self.tokens)
        columns = {"tokens": self.tokens, "targets": self.targets, "weights": self.weights}
        return {name: x[None] for name, x in (columns | {"positions": positions, "segment_ids": segments}).items()}


def rows_of(speaker: Speaker, item: Item) -> list[Row]:
    """Return the rows of an item; at least one has a weight above 0. Raises UserError if the template refuses an exchange."""
    tokenizer = speaker.tokenizer
    if item.messages:
        ids, learnt = Encoder(tokenizer, speaker.template).conversation(Conversation(list(item.messages)))
        if not learnt.any():
            learnt = np.ones(len(ids), bool)
    else:
        ids = np.asarray([*tokenizer.prompt_ids(item.text), *tokenizer.stop_ids[:1]], np.int32)
        learnt = np.ones(len(ids), bool)
    if len(ids) < 2:
        raise UserError(f"item {item.id} has no tokens: forget it")
    found = []
    for begin in range(0, len(ids) - 1, WIDTHS[-1]):
        inputs, targets = ids[begin : begin + WIDTHS[-1]], ids[begin + 1 : begin + 1 + WIDTHS[-1]]
        count = len(targets)
        width = next(width for width in WIDTHS if width >= count)
        row = Row(np.zeros(width, np.int32), np.zeros(width, np.int32), np.zeros(width, np.float32))
        row.tokens[:count], row.targets[:count] = inputs[:count], targets
        row.weights[:count] = learnt[begin + 1 : begin + 1 + count]
        found.append(row)
    return [row for row in found if row.weights.any()]
