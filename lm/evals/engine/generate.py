"""Generate from many prompts with an engine, each until a stop string, an end symbol or its limit.

A sample depends on the prompt, its settings and its seed alone.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from data.chat.harmony import spelled
from data.chat.media.encoding import Kept, Towers, arrays_of
from data.chat.template import opens_thought
from data.chat.thoughts import Thoughts
from data.text.tokenizer import Tokenizer
from lm.errors import UserError
from lm.evals.engine.encoding import Encoding
from lm.infer import not_finite
from lm.infer.engine.answers import ended
from lm.infer.engine.local import LocalEngine
from lm.infer.engine.request import NOT_FINITE, Event, Request, tiles_of
from lm.infer.engine.thought import budget_of
from lm.model.media import Media
from lm.model.transformer import Transformer

SHOWN = 16  # asks with media at a time, which must fit into memory
MARGIN = 8  # tokens; more than the pieces of a character


class Ask(NamedTuple):
    """tokens: the prompt's ids, at least one. stops: strings that end an answer, behind its thought. temperature 0 is greedy.

    media: files of the images and sound that the prompt has tokens for. tiles: number of images and of windows of sound.
    thought: most tokens of the answer's thought, or None.
    """

    tokens: tuple[int, ...]
    stops: tuple[str, ...]
    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int
    media: tuple[Kept, ...] = ()
    tiles: tuple[int, int] = (0, 0)
    thought: int | None = None

    def identity(self) -> list:
        """Return what an answer depends on beside the tokens, for JSON."""
        hashes = [hashlib.sha256(file).hexdigest() for _, file, _ in self.media]
        return [*self[1:6], *([hashes] if hashes else []), *([] if self.thought is None else [{"thought": self.thought}])]


class Answer(NamedTuple):
    """tokens: up to and including the one that completes a stop string, without an end symbol. ended: before the limit."""

    tokens: list[int]
    ended: bool


class Writer:
    """An engine of a model that answers asks. room: bytes for a packed copy of the weights. close: stop its thread."""

    def __init__(self, model: Transformer, encoding: Encoding, room: float):
        self._model, self._encoding = model, encoding
        self._engine = LocalEngine(encoding.tokenizer, room)

    def answers(self, asks: Sequence[Ask], wanted: set[int], keep: Callable[[dict[int, Answer]], None]) -> None:
        """Call keep({number: answer}) with the answer of each wanted ask as it ends. Equal asks are answered once.

        Raises: UserError if the engine cannot go on, as with logits that are not finite.
        """
        numbers: dict[Ask, list[int]] = {}
        for number in sorted(wanted):
            numbers.setdefault(asks[number], []).append(number)
        # Asks with a common prefix start one after the other, so it is read once.
        ordered = sorted(numbers, key=lambda ask: (bool(ask.media), ask.tokens))
        most = SHOWN if any(ask.media for ask in ordered) else len(ordered)
        for begin in range(0, len(ordered), most):
            for ask, answer in self._drawn(ordered[begin : begin + most]):
                keep(dict.fromkeys(numbers[ask], answer))

    def close(self) -> None:
        self._engine.close()

    def _drawn(self, asks: list[Ask]) -> Iterator[tuple[Ask, Answer]]:
        """Yield (ask, answer) as they end."""
        engine = self._engine.using(self._model, len(asks), max(len(ask.tokens) + ask.max_new_tokens for ask in asks))
        tokens: list[list[int]] = [[] for _ in asks]

        def enough(n: int, event: Event) -> bool:
            tokens[n] += event.tokens
            return self._stopped(tokens[n], asks[n], len(event.tokens)) is not None

        for n, event in ended(engine, list(map(self._request, asks)), enough):
            if event.finish == "error":
                raise not_finite.error(self._model, "logits") if event.error == NOT_FINITE else UserError(event.error)
            drawn = list(event.tokens[:-1] if event.finish == "stop" else event.tokens)
            end = stopped(drawn, asks[n], self._encoding.tokenizer)
            yield asks[n], Answer(drawn[:end], end is not None or event.finish == "stop")

    def _request(self, ask: Ask) -> Request:
        return Request(
            ask.tokens,
            ask.max_new_tokens,
            ask.temperature,
            ask.top_p,
            seed=row_seed(ask),
            stop_ids=self._encoding.stop_ids,
            thought=None if ask.thought is None else budget_of(self._encoding.tokenizer, ask.tokens, ask.thought),
            media=tiles_of(arrays_for(ask, self._encoding.towers)) if ask.media else None,
        )

    def _stopped(self, tokens: list[int], ask: Ask, new: int) -> int | None:
        """Return how many tokens complete a stop string, or None. Only the last `new` of them can."""
        near = new + max((len(stop.encode()) for stop in ask.stops), default=0) + MARGIN
        text = self._encoding.tokenizer.decode(tokens[-near:])
        return stopped(tokens, ask, self._encoding.tokenizer) if any(stop and stop in text for stop in ask.stops) else None


def arrays_for(ask: Ask, towers: Towers) -> Media:
    """Return the media of an ask, arrays with one row. Raises: UserError for a file that cannot be read."""
    return Media(*(array[None] if len(array) else None for array in arrays_of(ask.media, towers, "an item's media")))


def text_of(answer: Answer, ask: Ask, tokenizer: Tokenizer) -> str:
    """Return the text behind the thought and before the first stop string; "" if the thought has no end."""
    text = _behind_thought(answer.tokens, ask, tokenizer)
    ends = [at for stop in ask.stops if stop and (at := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text


def _behind_thought(tokens: Sequence[int], ask: Ask, tokenizer: Tokenizer, over: bool = True) -> str:
    begun = opens_thought(tokenizer, ask.tokens)
    return Thoughts(begun).feed(spelled(tokenizer, tokens, begun), over)[1]


def stopped(tokens: list[int], ask: Ask, tokenizer: Tokenizer) -> int | None:
    """Return how many tokens complete a stop string, or None."""

    def complete(n: int) -> bool:
        # Before a thought there may be white space, which ends nothing.
        text = _behind_thought(tokens[:n], ask, tokenizer, over=ask.thought is None)
        return any(stop and stop in text for stop in ask.stops)

    if not any(ask.stops) or not complete(len(tokens)):
        return None
    low, high = 0, len(tokens)  # complete at high, not at low
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if complete(middle) else (middle, high)
    return high


def row_seed(ask: Ask) -> int:
    """Return a number of 31 bits that seeds the ask's samples."""
    identity = json.dumps([ask.tokens, ask.temperature, ask.top_p, ask.seed, *ask.identity()[5:]])
    return int.from_bytes(hashlib.sha256(identity.encode()).digest()[:4]) >> 1
