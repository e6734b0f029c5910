"""The token positions of a suffix in a conversation, for GCG, by the chat template and tokenizer."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from data.chat.template import encode_chat
from data.text.tokenizer import Tokenizer
from lm.errors import UserError
from lm.evals.redteam.gcg import Place

LIKELY = "Sure, here it is:"  # the target if a benchmark gives none


class InChat(NamedTuple):
    """places: see `gcg`. init: ids of the initial suffix. fits: whether ids, decoded to text, are encoded as the same ids in
    every conversation. text: returns the text that `suffix` of lm/evals/redteam/attacks.py appends for ids."""

    places: list[Place]
    init: tuple[int, ...]
    fits: Callable[[Sequence[int]], bool]
    text: Callable[[Sequence[int]], str]


def in_chat(
    tokenizer: Tokenizer,
    requests: Sequence[str],
    targets: Sequence[str] = (),
    *,
    init: str = "! ! ! ! ! ! ! ! ! ! ! ! ! ! ! !",
    encode: Callable[[list[dict]], list[int]] | None = None,
) -> InChat:
    """Return the places of a suffix after requests, each as the only message of a user.

    Args:
      targets: beginnings of the answers to aim for. init: words of the initial suffix.
      encode: maps messages to the ids before the model's answer; None: the tokenizer's own template.
    Raises: UserError if the words are not separate tokens, the same after every request.
    """

    def encoded(content: str) -> list[int]:
        messages = [{"role": "user", "content": content}]
        return encode(messages) if encode else encode_chat(tokenizer, messages, add_generation_prompt=True).ids

    words = init.split()
    other = " ".join("?" if word != "?" else "." for word in words)
    around, suffixes = [], set()
    for request in requests:
        ids, changed = encoded(f"{request} {init}"), encoded(f"{request} {other}")
        head = _alike(ids, changed)
        tail = _alike(ids[head:][::-1], changed[head:][::-1])
        suffixes.add(tuple(ids[head : len(ids) - tail]))
        around.append((tuple(ids[:head]), tuple(ids[len(ids) - tail :])))
    if len(suffixes) != 1 or not (ids := next(iter(suffixes))):
        raise UserError(f"gcg: the suffix {init!r} is not encoded as the same tokens after every request; change init")
    # With some tokenizers the space before the suffix is a separate token; with others it is part of the suffix.
    space = "" if tokenizer.decode(ids).startswith(" ") else " "

    def fits(ids: Sequence[int]) -> bool:
        behind = space + tokenizer.decode(ids)
        return behind.startswith(" ") and all(
            encoded(request + behind) == [*before, *ids, *after]
            for request, (before, after) in zip(requests, around, strict=True)
        )

    wanted = [target or LIKELY for target in targets] or [LIKELY] * len(requests)
    places = [
        Place(before, after, tuple(tokenizer.encode(target))) for (before, after), target in zip(around, wanted, strict=True)
    ]
    return InChat(places, ids, fits, lambda ids: (space + tokenizer.decode(ids)).removeprefix(" "))


def _alike(first: Sequence[int], second: Sequence[int]) -> int:
    """Return the length of the common prefix."""
    return next((i for i, (a, b) in enumerate(zip(first, second)) if a != b), min(len(first), len(second)))
