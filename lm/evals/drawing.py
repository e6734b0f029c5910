"""Many prompts continued in batches of about the same length, each until a stop string, an end symbol or its limit.

What is drawn after a prompt depends on the prompt, its settings and its seed, not on what else is asked.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax

from lm.evals.likelihood import CACHE, slot_bytes
from lm.infer.sampler import draw
from lm.model.transformer import Transformer

ROWS = 64  # of a batch at most
SHARED = 64  # first tokens at least that are read once for many prompts
CHUNK = 128  # tokens after which stop strings are looked for, at least


class Ask(NamedTuple):
    """tokens: the prompt's ids, one at least. stops: strings that end an answer. temperature 0 is greedy."""

    tokens: tuple[int, ...]
    stops: tuple[str, ...]
    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int


class Answer(NamedTuple):
    """tokens: up to and with the one that completes a stop string, without an end symbol. ended: not by the limit."""

    tokens: list[int]
    ended: bool


class Work(NamedTuple):
    """A batch. asks: the numbers of those that it answers. run: answers them, in that order."""

    asks: list[int]
    run: Callable[[], list[Answer]]


class Writer(NamedTuple):
    """What draws. decode: ids to text. vocab_size: of the tokenizer. stop_ids: end symbols."""

    model: Transformer
    decode: Callable[[Sequence[int]], str]
    vocab_size: int
    stop_ids: tuple[int, ...]


def work(writer: Writer, asks: Sequence[Ask]) -> Iterator[Work]:
    """The batches that answer all asks, to be run in this order or left out, on the mesh that is set.

    What all prompts of the same settings begin with is read once a batch. Asks are together whose settings are the same but for
    the seed, and whose prompts are, behind that, padded to the same width (a power of two); of equal asks one is answered for
    all. Batches are a function of the asks as a set.
    """
    numbers: dict[Ask, list[int]] = {}
    for number, ask in enumerate(asks):
        numbers.setdefault(ask, []).append(number)
    alike: dict[tuple, list[Ask]] = {}
    for ask in sorted(numbers):
        alike.setdefault(ask[1:5], []).append(ask)
    groups: dict[tuple, list[Ask]] = {}
    shared = {settings: _shared(writer.model, some) for settings, some in alike.items()}
    for settings, some in alike.items():
        for ask in some:
            groups.setdefault((_width(len(ask.tokens) - shared[settings]), *settings), []).append(ask)
    for (width, *settings), group in sorted(groups.items()):
        first = shared[tuple(settings)]
        most = _rows(writer.model, first + width, group[0].max_new_tokens)
        for begin in range(0, len(group), most):
            some = group[begin : begin + most]
            times = [len(numbers[ask]) for ask in some]
            run = functools.partial(_answered, writer, some, times, first, width, most)
            yield Work([number for ask in some for number in numbers[ask]], run)


def text_of(answer: Answer, ask: Ask, decode: Callable[[Sequence[int]], str]) -> str:
    """What was written before the first stop string."""
    text = decode(answer.tokens)
    ends = [found for stop in ask.stops if stop and (found := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text


def _answered(writer: Writer, asks: list[Ask], times: list[int], shared: int, width: int, rows: int) -> list[Answer]:
    """Of asks with the same settings and `shared` first tokens, each so many times. Those that reach a stop string leave the
    batch at their chunk's end.

    The chunks that an ask is drawn in are a function of its own width and limit.
    """
    answers: list[Answer | None] = [None] * len(asks)
    so_far: list[list[int]] = [[] for _ in asks]
    first, left = asks[0], asks[0].max_new_tokens
    chunk = max(CHUNK, width) if any(first.stops) else left
    while left:
        due = [n for n, answer in enumerate(answers) if answer is None]
        if not due:
            break
        now = min(chunk, left)
        left -= now
        # Few sizes, so that little compiles: first the batch's own, then powers of two.
        size = -(-len(due) // 8) * 8 if len(due) == len(asks) else 1 << (len(due) - 1).bit_length()
        filled = [*due, *[due[0]] * (min(rows, size) - len(due))]
        drawn = draw(
            writer.model, [[*asks[n].tokens[shared:], *so_far[n]] for n in filled], stop_ids=writer.stop_ids,
            vocab_size=writer.vocab_size, max_new_tokens=now, temperature=first.temperature, top_p=first.top_p,
            width=width, prefix=first.tokens[:shared], rows=[_row(asks[n], len(so_far[n])) for n in filled],
        )  # fmt: skip
        for n, tokens, ended in zip(due, drawn.tokens, drawn.ended):
            so_far[n] += tokens[:-1] if ended else tokens
            end = _stopped(so_far[n], asks[n], writer.decode)
            if end is not None:
                answers[n] = Answer(so_far[n][:end], True)
            elif ended or not left:
                answers[n] = Answer(so_far[n], ended)
    return [answer for answer, n in zip(answers, times) for _ in range(n)]


def _stopped(tokens: list[int], ask: Ask, decode: Callable[[Sequence[int]], str]) -> int | None:
    """How many tokens it takes until a stop string is complete, or None."""

    def complete(n: int) -> bool:
        text = decode(tokens[:n])
        return any(stop and stop in text for stop in ask.stops)

    if not any(ask.stops) or not complete(len(tokens)):
        return None
    low, high = 0, len(tokens)  # complete at high, not at low
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if complete(middle) else (middle, high)
    return high


def _row(ask: Ask, begin: int) -> int:
    """A number of 31 bits that the draws of a chunk depend on."""
    told = json.dumps([ask.tokens, ask.temperature, ask.top_p, ask.seed, begin])
    return int.from_bytes(hashlib.sha256(told.encode()).digest()[:4]) >> 1


def _shared(model: Transformer, asks: Sequence[Ask]) -> int:
    """How many first tokens of all asks, sorted, are the same; 0 if too few to be read apart, or if the model cannot."""
    config, (first, last) = model.config, (asks[0].tokens, asks[-1].tokens)
    if len(asks) == 1 or config.rope.depends_on_length or any(kind.local for kind in config.layer_kinds):
        return 0
    most = min(len(ask.tokens) for ask in asks) - 1
    n = next((n for n, (a, b) in enumerate(zip(first, last)) if a != b), most)
    return min(n, most) if min(n, most) >= SHARED else 0


def _width(length: int) -> int:
    return 1 << (max(16, length) - 1).bit_length()


def _rows(model: Transformer, width: int, new: int) -> int:
    """Rows of a batch whose prompts take `width` slots."""
    config, mesh = model.config, jax.sharding.get_abstract_mesh()
    ways = 1 if mesh.empty else mesh.shape["data"] * mesh.shape["fsdp"] * mesh.shape["expert"]
    if config.rope.depends_on_length and width + new > config.rope.original_positions:
        return 1  # how tokens turn would depend on the longest row
    return ways * max(1, min(ROWS // ways, CACHE // ((width + new) * slot_bytes(config))))
