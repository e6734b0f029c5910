"""A slow engine with the interface of lm.infer.engine: one request at a time, each token from a whole forward pass.

The model is real. `hold` stops it before the next token, so that tests decide when a request goes on.
"""

import collections
import contextlib
import json
import threading
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lm.errors import UserError
from lm.infer.engine.request import Event, Full, Handle, Likely, Request
from lm.model.transformer import skeleton
from tests.lm.examples import parameters


class Stats(NamedTuple):
    running: int
    waiting: int
    generation_tokens: int
    finished: dict[str, int]


class PlainEngine:
    def __init__(self, config, tokenizer, *, seed=0, name="tiny", queue=64):
        self.config, self.tokenizer, self.name = config, tokenizer, name
        self.max_positions, self.observers, self.adapters = config.max_positions, [], ()
        self._queue, self._most, self._more = collections.deque(), queue, threading.Condition()
        self._rolls: dict[str, int] = {}
        self._running, self._tokens, self._finished = None, 0, collections.Counter()
        self._free = threading.Event()
        self._free.set()
        self._forward = jax.jit(lambda params, tokens: nnx.merge(skeleton(config)[0], params)(tokens)[0])
        self._params = parameters(config, seed, scale=4.0)
        self._closed = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    # The interface.

    def submit(self, request: Request, tell) -> Handle:
        if request.adapter not in ("", *self.adapters):
            raise UserError(f"no adapter {request.adapter!r}")
        handle = Handle(request, tell)
        with self._more:
            if len(self._queue) >= self._most or self._closed:
                raise Full
            self._queue.append((handle, self._params))
            self._more.notify()
        return handle

    def stats(self) -> Stats:
        return Stats(int(self._running is not None), len(self._queue), self._tokens, dict(self._finished))

    def load_adapter(self, name: str, path) -> None:
        try:
            self._rolls[name] = json.loads((Path(path) / "adapter_config.json").read_text())["roll"]
        except (OSError, ValueError, KeyError):
            raise UserError(f"{path} is no adapter") from None
        self.adapters = (*self.adapters, name)

    def unload_adapter(self, name: str) -> None:
        self.adapters = tuple(one for one in self.adapters if one != name)

    def swap(self, path) -> None:
        self._params = parameters(self.config, seed_of(path), scale=4.0)

    def close(self, drain: float = 0.0) -> None:
        with self._more:
            self._closed = True
            self._more.notify()
        self._thread.join(drain or None)

    # For tests.

    @contextlib.contextmanager
    def hold(self):
        """Sample no token within the block."""
        self._free.clear()
        try:
            yield
        finally:
            self._free.set()

    # The work.

    def _work(self) -> None:
        while True:
            with self._more:
                self._more.wait_for(lambda: self._queue or self._closed)
                if not self._queue:
                    return
                self._running = self._queue.popleft()
            handle, params = self._running
            try:
                finish = self._answer(handle, params)
            except Exception as error:
                finish = "error"
                handle.tell(Event(finish=finish, error=f"{type(error).__name__}: {error}"))
            self._finished[finish] += 1
            self._running = None

    def _answer(self, handle: Handle, params) -> str:
        asked, tokens = handle.request, []
        scored: tuple[Likely | None, ...] = ()
        if asked.prompt_logprobs >= 0:
            logps_TV = jax.nn.log_softmax(self._logits(params, asked.prompt, asked.adapter))
            rows = zip(asked.prompt[1:], np.asarray(logps_TV))
            scored = (None, *(_likely(row, i, asked.prompt_logprobs) for i, row in rows))
        while True:
            while not self._free.wait(0.005) and not handle.cancelled:
                pass
            ended = "cancelled" if handle.cancelled else "timeout" if _late(handle) else ""
            if ended:
                handle.tell(Event(finish=ended))
                return ended
            logits_V = self._logits(params, (*asked.prompt, *tokens), asked.adapter)[-1]
            token = _drawn(asked, logits_V, tokens, self.tokenizer.vocab_size)
            if asked.grammar is not None:
                asked.grammar.accept(token)
            likely = (_likely(np.asarray(jax.nn.log_softmax(logits_V)), token, asked.logprobs),) if asked.logprobs >= 0 else ()
            tokens.append(token)
            self._tokens += 1
            stops = token in asked.stop_ids and len(tokens) > asked.min_new_tokens
            finish = "stop" if stops else "length" if len(tokens) == asked.max_new_tokens else ""
            handle.tell(Event((token,), likely, scored, finish))
            scored = ()
            if finish:
                return finish

    def _logits(self, params, ids, adapter: str) -> np.ndarray:
        padded = np.zeros((1, 128 if len(ids) <= 128 else self.max_positions), np.int32)  # what comes later has no effect
        padded[0, : len(ids)] = ids
        logits_TV = np.asarray(self._forward(params, jnp.asarray(padded)))[: len(ids)]
        return np.roll(logits_TV, self._rolls[adapter], axis=-1) if adapter else logits_TV


def seed_of(path) -> int:
    """The seed of the weights at a path: the newest step there."""
    return max(int(folder.name) for folder in (Path(path) / "checkpoints").iterdir())


def _late(handle: Handle) -> bool:
    deadline = handle.request.deadline
    return deadline is not None and time.monotonic() > handle.times.submitted + deadline


def _likely(logps_V: np.ndarray, token: int, count: int) -> Likely:
    best = np.argsort(-logps_V, kind="stable")[:count]
    return Likely(float(logps_V[token]), tuple((int(i), float(logps_V[i])) for i in best))


def _drawn(asked: Request, logits_V: np.ndarray, tokens: list[int], known: int) -> int:
    x = logits_V.astype(np.float64)
    x[known:] = -np.inf
    for i, bias in asked.logit_bias.items():
        x[i] += bias
    counts = np.bincount(tokens, minlength=len(x))
    x -= asked.frequency_penalty * counts + asked.presence_penalty * (counts > 0)
    seen = np.unique([*asked.prompt, *tokens])
    x[seen] = np.where(x[seen] > 0, x[seen] / asked.repetition_penalty, x[seen] * asked.repetition_penalty)
    if asked.grammar is not None:
        x[~asked.grammar.allowed()] = -np.inf
    if len(tokens) < asked.min_new_tokens:
        x[list(asked.stop_ids)] = -np.inf
    if not asked.temperature:
        return int(np.argmax(x))
    x /= asked.temperature
    order = np.argsort(-x, kind="stable")
    p = np.exp(x[order] - x[order[0]])
    p[asked.top_k or len(p) :] = 0
    p /= p.sum()
    p[np.cumsum(p) - p >= asked.top_p] = 0
    p[p < asked.min_p * p[0]] = 0
    draw = np.random.default_rng((asked.seed, len(tokens)))
    return int(draw.choice(order, p=p / p.sum()))
