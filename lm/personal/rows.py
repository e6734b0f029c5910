"""Turn an item into rows of tokens to learn from, and rows into batches.

A note or a file is read as text, an exchange by the chat template with loss on the assistant's turns. A row has at most LONGEST
tokens. Longer items make several, whose gradients are added up before they are clipped, because the item is what is protected.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from data.chat.example_encoding import Encoder
from data.chat.messages import Conversation
from lm.errors import UserError
from lm.personal.items import Item
from lm.personal.speaker import Speaker

LONGEST, SHORTEST = 256, 32
TOKENS = 256  # of a batch


class Row(NamedTuple):
    """tokens, targets: int32 [T]; weights: float32 [T], which add up to 1 over the rows of an item; 0: not learnt."""

    tokens: np.ndarray
    targets: np.ndarray
    weights: np.ndarray


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
    for begin in range(0, len(ids) - 1, LONGEST):
        window = slice(begin + 1, begin + 1 + LONGEST)
        targets = np.asarray(ids[window], np.int32)
        weights = np.asarray(learnt[window], np.float32) / max(1, learnt[1:].sum())
        found.append(Row(np.asarray(ids[begin : begin + len(targets)], np.int32), targets, weights.astype(np.float32)))
    return [row for row in found if row.weights.any()]


def batches(items: Sequence[Sequence[Row]]) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
    """Yield batches of at most TOKENS tokens in the form of lm/train/step.py, and for each row the number of its item.

    Rows of like lengths share a batch. Widths are powers of two. Rows that only fill a batch have weights of 0.
    """
    rows = sorted(((row, n) for n, rows in enumerate(items) for row in rows), key=lambda pair: -len(pair[0].tokens))
    while rows:
        width = max(SHORTEST, 1 << (len(rows[0][0].tokens) - 1).bit_length())
        some, rows = rows[: TOKENS // width], rows[TOKENS // width :]
        shape = (TOKENS // width, width)
        batch = {name: np.zeros(shape, np.int32) for name in ("tokens", "targets", "segment_ids")}
        batch |= {
            "weights": np.zeros(shape, np.float32),
            "positions": np.tile(np.arange(width, dtype=np.int32), (len(batch["tokens"]), 1)),
        }
        owner = np.zeros(shape[0], np.int32)
        for n, (row, of) in enumerate(some):
            count, owner[n] = len(row.tokens), of
            batch["segment_ids"][n, :count] = 1
            for name in Row._fields:
                batch[name][n, :count] = getattr(row, name)
        yield batch, owner
