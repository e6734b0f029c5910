"""Where a suffix stands in a conversation, in tokens: what GCG needs of a chat template and a tokenizer."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from data.chat.template import encode_chat
from lm.errors import UserError
from lm.evals.redteam.gcg import Place

LIKELY = "Sure, here it is:"  # the answer's begin where a benchmark names none


class InChat(NamedTuple):
    """places: as `gcg` takes them. init: ids of the suffix to begin with. fits: whether other ids, as text, are read as
    themselves in every conversation. text: of ids what `suffix` of lm/evals/redteam/attacks.py appends."""

    places: list[Place]
    init: tuple[int, ...]
    fits: Callable[[Sequence[int]], bool]
    text: Callable[[Sequence[int]], str]


def in_chat(
    tokenizer,
    requests: Sequence[str],
    targets: Sequence[str] = (),
    *,
    init: str = "! ! ! ! ! ! ! ! ! ! ! ! ! ! ! !",
    encode: Callable[[list[dict]], list[int]] | None = None,
) -> InChat:
    """The places of a suffix behind requests, each put as the only message of a user.

    Args:
      targets: how each answer should begin. init: words to begin with.
      encode: of messages the ids after which the model answers; None: by the tokenizer's own template.
    Raises: UserError if the words are not tokens of their own, the same behind every request.
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
        raise UserError(f"gcg: the suffix {init!r} is not read as the same tokens behind every request; begin with another one")
    # A space before the suffix is a token of its own with some tokenizers, and part of the suffix with others.
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
    """How many tokens two rows begin with in common."""
    return next((i for i, (a, b) in enumerate(zip(first, second)) if a != b), min(len(first), len(second)))
