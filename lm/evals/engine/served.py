"""Generate with the serving engine (lm/infer/engine), which on a CPU is faster than lm/evals/engine/generate.py: its products
read packed matrices, all cores share them, and a row that ends makes room for the next.

An answer depends on its ask alone. The sampler draws other random numbers, so samples differ, and greedy answers do not.
"""

import dataclasses
import math
import queue
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
import psutil
from flax import nnx

from data.text.tokenizer import Tokenizer
from lm.errors import UserError
from lm.evals.engine.generate import Answer, Ask, row_seed, stopped
from lm.infer import not_finite
from lm.infer.engine.engine import Engine
from lm.infer.engine.request import Event, Handle, Request
from lm.infer.engine.room import affordable
from lm.kernels.cpu.registered import compiled
from lm.model.transformer import Transformer, skeleton

ROWS = 64  # that are decoded together
PAGE = 16
LEAST = 1 << 24  # parameters; the steps of a smaller model take less time than their dispatch
MARGIN = 8  # tokens; more than the pieces of a character
NO_MESH = jax.sharding.Mesh(np.empty((), object), ())
SHARE = 0.5  # of the free memory, for a packed copy of the weights


def pays(model: Transformer) -> bool:
    """Return whether the serving engine is faster here and its copy of the weights fits."""
    if jax.process_count() > 1 or not (compiled("products") and compiled("attention")):
        return False
    leaves = jax.tree.leaves(nnx.split(model)[1])
    size = sum(x.size for x in leaves)
    return size >= LEAST and 4 * size < SHARE * psutil.virtual_memory().available


class Served:
    """A serving engine of a model; it starts when it is first needed. close: stop its thread."""

    def __init__(self, model: Transformer, tokenizer: Tokenizer, stop_ids: Sequence[int]):
        self._model, self._tokenizer, self._stop_ids = model, tokenizer, tuple(stop_ids)
        self._engine: Engine | None = None
        self._shape = (0, 0)

    def answers(self, asks: Sequence[Ask], wanted: set[int], keep: Callable[[dict[int, Answer]], None]) -> None:
        """Call keep({number: answer}) with the answer of each wanted ask as it ends. Equal asks are answered once.

        Raises: UserError if the engine cannot go on, as with logits that are not finite.
        """
        numbers: dict[Ask, list[int]] = {}
        for number in sorted(wanted):
            numbers.setdefault(asks[number], []).append(number)
        longest = max(len(ask.tokens) + ask.max_new_tokens for ask in numbers)
        engine = self._opened(_power(min(ROWS, len(numbers))), _power(math.ceil(longest / PAGE)))
        for ask, answer in self._drawn(engine, list(numbers)):
            keep(dict.fromkeys(numbers[ask], answer))

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _drawn(self, engine: Engine, asks: list[Ask]) -> Iterator[tuple[Ask, Answer]]:
        """Yield (ask, answer) as they end. Asks with a common prefix start one after the other, so it is read once."""
        events: queue.SimpleQueue[tuple[int, Event]] = queue.SimpleQueue()
        tokens: list[list[int]] = [[] for _ in asks]
        handles: list[Handle | None] = [None] * len(asks)
        waiting = deque(sorted(range(len(asks)), key=lambda n: asks[n].tokens))
        open_ = 0

        def submit() -> None:
            n = waiting.popleft()
            ask = asks[n]
            request = Request(
                ask.tokens, ask.max_new_tokens, ask.temperature, ask.top_p, seed=row_seed(ask), stop_ids=self._stop_ids
            )
            handles[n] = engine.submit(request, lambda event, n=n: events.put((n, event)))

        try:
            while waiting or open_:
                while waiting and open_ < 2 * ROWS:
                    submit()
                    open_ += 1
                n, event = events.get()
                if handles[n] is None:  # it is over, and these are the last words of a cancelled request
                    continue
                tokens[n] += event.tokens
                if event.finish == "error":
                    faulty = not_finite.parameters(nnx.split(self._model)[1])
                    raise not_finite.error(self._model, "logits") if faulty else UserError(event.error)
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
        text = self._tokenizer.decode(tokens[-near:])
        return stopped(tokens, ask, self._tokenizer.decode) if any(stop and stop in text for stop in ask.stops) else None

    def _opened(self, rows: int, pages: int) -> Engine:
        """Return an engine with so many rows and pages for each at least: the one that is here, or a new one."""
        if self._engine is None or rows > self._shape[0] or pages > self._shape[1]:
            self.close()
            self._shape = rows, pages = max(rows, self._shape[0]), max(pages, self._shape[1])
            model = _on_one_device(self._model, jax.local_devices()[0])
            with jax.set_mesh(NO_MESH):
                self._engine = Engine(
                    model,
                    self._tokenizer,
                    rows=rows,
                    budget=ROWS,
                    pages=max(pages, min(rows * pages, _power(affordable(model.config, PAGE, "", rows)) // 2)),
                    page=PAGE,
                    packed=self._model.config.dtype,
                    queue=4 * ROWS,
                )
        return self._engine


def _power(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _on_one_device(model: Transformer, device) -> Transformer:
    """Return the model with its parameters on one device, in their dtypes; without a copy of those that are there whole."""

    def moved(x: jax.Array) -> jax.Array:
        there = next((shard.data for shard in x.addressable_shards if shard.device == device), None)
        return there if there is not None and there.shape == x.shape else jax.device_put(np.asarray(x), device)

    config = dataclasses.replace(model.config, dtype="float32")  # of activations, as in open_engine
    return nnx.merge(skeleton(config)[0], jax.tree.map(moved, nnx.split(model)[1]))
