"""Generate with a serving engine (lm/infer/engine/local.py), where it is faster than lm/evals/engine/generate.py.

An answer depends on its ask alone.
"""

import queue
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from lm.errors import UserError
from lm.evals.engine.encoding import Encoding
from lm.evals.engine.generate import Answer, Ask, arrays_for, row_seed, stopped
from lm.infer import not_finite
from lm.infer.engine.engine import Engine
from lm.infer.engine.local import ROWS, LocalEngine
from lm.infer.engine.request import NOT_FINITE, Event, Handle, Request, tiles_of
from lm.model.transformer import Transformer

SHOWN = 8  # requests with media at a time, which must fit into memory
MARGIN = 8  # tokens; more than the pieces of a character


class Served:
    """A serving engine of a model. close: stop its thread."""

    def __init__(self, model: Transformer, encoding: Encoding):
        self._model, self._encoding = model, encoding
        self._engine = LocalEngine(encoding.tokenizer)

    def answers(self, asks: Sequence[Ask], wanted: set[int], keep: Callable[[dict[int, Answer]], None]) -> None:
        """Call keep({number: answer}) with the answer of each wanted ask as it ends. Equal asks are answered once.

        Raises: UserError if the engine cannot go on, as with logits that are not finite.
        """
        numbers: dict[Ask, list[int]] = {}
        for number in sorted(wanted):
            numbers.setdefault(asks[number], []).append(number)
        longest = max(len(ask.tokens) + ask.max_new_tokens for ask in numbers)
        engine = self._engine.using(self._model, len(numbers), longest)
        for ask, answer in self._drawn(engine, list(numbers)):
            keep(dict.fromkeys(numbers[ask], answer))

    def close(self) -> None:
        self._engine.close()

    def _drawn(self, engine: Engine, asks: list[Ask]) -> Iterator[tuple[Ask, Answer]]:
        """Yield (ask, answer) as they end. Asks with a common prefix start one after the other, so it is read once."""
        events: queue.SimpleQueue[tuple[int, Event]] = queue.SimpleQueue()
        tokens: list[list[int]] = [[] for _ in asks]
        handles: list[Handle | None] = [None] * len(asks)
        waiting = deque(sorted(range(len(asks)), key=lambda n: asks[n].tokens))
        open_, most = 0, SHOWN if any(ask.media for ask in asks) else 2 * ROWS

        def submit() -> None:
            n = waiting.popleft()
            ask = asks[n]
            request = Request(
                ask.tokens,
                ask.max_new_tokens,
                ask.temperature,
                ask.top_p,
                seed=row_seed(ask),
                stop_ids=self._encoding.stop_ids,
                media=tiles_of(arrays_for(ask, self._encoding.towers)) if ask.media else None,
            )
            handles[n] = engine.submit(request, lambda event, n=n: events.put((n, event)))

        try:
            while waiting or open_:
                while waiting and open_ < most:
                    submit()
                    open_ += 1
                n, event = events.get()
                if handles[n] is None:  # it is over, and these are the last words of a cancelled request
                    continue
                tokens[n] += event.tokens
                if event.finish == "error":
                    raise not_finite.error(self._model, "logits") if event.error == NOT_FINITE else UserError(event.error)
                if event.finish == "stop":
                    tokens[n].pop()
                end = self._stopped(tokens[n], asks[n], len(event.tokens))
                if end is None and not event.finish:
                    continue
                handles[n].cancel()
                handles[n], open_ = None, open_ - 1
                yield asks[n], Answer(tokens[n][:end], end is not None or event.finish == "stop")
        finally:
            for handle in handles:
                if handle is not None:
                    handle.cancel()

    def _stopped(self, tokens: list[int], ask: Ask, new: int) -> int | None:
        """Return how many tokens complete a stop string, or None. Only the last `new` of them can."""
        near = new + max((len(stop.encode()) for stop in ask.stops), default=0) + MARGIN
        decode = self._encoding.tokenizer.decode
        text = decode(tokens[-near:])
        return stopped(tokens, ask, decode) if any(stop and stop in text for stop in ask.stops) else None
