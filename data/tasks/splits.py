"""What is held out: a record is valid or train by what it asks about, never by when it was drawn.

A generator draws endless random records and says of each what it is about, its key. The key alone decides the split, by a
hash that knows neither the seed nor the split. So two generators of any seeds, one of each split, never share a key; and
since the key is a function of the prompt, never a prompt.
"""

import hashlib
import random
from collections.abc import Callable, Iterator

from lm.errors import UserError

SPLITS = ("train", "valid")
SHARE = 10  # one key in so many is held out
PATIENCE = 2000  # draws in a row that bring no new prompt: the task has no more

Draw = Callable[[random.Random], tuple[bool, dict]]  # (held out, the record)


def number(key: str) -> int:
    """A number in [0, 2^64) that depends on the text alone, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")


def held_out(key: str) -> bool:
    return number(key) % SHARE == 0


def records(draw: Draw, split: str, seed: int, valid: int) -> Iterator[dict]:
    """The records of a split: train's are endless, valid's are of at most `valid` different prompts.

    Depends on (draw, split, seed) alone.
    Raises: ValueError for another split; UserError, when the first is asked for, if the task is so small that it has none.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
    if valid < 1:
        raise UserError(f"valid={valid} must be at least 1 example")
    rng = random.Random(f"{split} {seed}")
    return _train(draw, rng) if split == "train" else _valid(draw, rng, valid)


def _train(draw: Draw, rng: random.Random) -> Iterator[dict]:
    missed = 0
    while missed < PATIENCE:
        held, record = draw(rng)
        missed = missed + 1 if held else 0
        if not held:
            yield record
    raise UserError(f"no training example among {PATIENCE} draws: make the task's options less narrow")


def _valid(draw: Draw, rng: random.Random, most: int) -> Iterator[dict]:
    seen: set[str] = set()
    missed = 0
    while len(seen) < most and missed < PATIENCE:
        held, record = draw(rng)
        missed += 1
        prompt = record.get("prompt") or record["text"]
        if held and prompt not in seen:
            missed = 0
            seen.add(prompt)
            yield record
    if not seen:
        raise UserError(f"no held-out example among {PATIENCE} draws: make the task's options less narrow")
