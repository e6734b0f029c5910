"""Split the records of a task by a hash of their key: the subject of the question, independent of when it was drawn.

A generator draws endless random records, each with a key. The hash of the key decides the split and does not depend on the
seed. So a train and a valid generator with any seeds never share a key. Because the key is a function of the prompt, they never
share a prompt either.
"""

import hashlib
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from lm.errors import UserError

SPLITS = ("train", "valid")
SHARE = 10  # one key in SHARE is held out
PATIENCE = 2000  # a task is exhausted after this many draws without a new prompt

Draw = Callable[[random.Random], tuple[bool, dict]]  # (held out, the record, which may be {} if the other split wants it)


def exercise(task: str, prompt: str, completion: str, rejected: str, **columns: Any) -> dict[str, Any]:
    """Return a record. columns: others, also in place of `answer`, which is the completion by default."""
    named = {"prompt": prompt, "completion": completion, "rejected": rejected, "answer": completion, "task": task}
    return named | columns


def texts(name: str) -> dict[str, Any]:
    """Return the content of data/tasks/NAME.yaml: the wording of a task."""
    return yaml.safe_load((Path(__file__).parent / f"{name}.yaml").read_text(encoding="utf-8"))


def number(key: str) -> int:
    """Return a hash of the text in [0, 2^64), the same on every machine."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")


def held_out(key: str) -> bool:
    return number(key) % SHARE == 0


def records(draw: Draw, split: str, seed: int, valid: int) -> Iterator[dict]:
    """Return the records of a split: train is endless, valid has at most `valid` distinct prompts.

    The records depend only on (draw, split, seed).
    Raises: ValueError for another split. The first `next` raises UserError if the task is so small that the split is empty.
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
        is_held_out, record = draw(rng)
        missed = missed + 1 if is_held_out else 0
        if not is_held_out:
            yield record
    raise UserError(f"no training example among {PATIENCE} draws: make the task's options less narrow")


def _valid(draw: Draw, rng: random.Random, most: int) -> Iterator[dict]:
    seen: set[tuple[str, ...]] = set()
    missed = 0
    while len(seen) < most and missed < PATIENCE:
        is_held_out, record = draw(rng)
        missed += 1
        if not is_held_out:
            continue
        prompt = str(record.get("prompt") or record["text"]), *record.get("images", ()), *record.get("audios", ())
        if prompt not in seen:
            missed = 0
            seen.add(prompt)
            yield record
    if not seen:
        raise UserError(f"no held-out example among {PATIENCE} draws: make the task's options less narrow")
