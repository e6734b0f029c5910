"""The engine's loop: one thread that takes requests, runs compiled steps, and tells each request its tokens."""

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from data.text.tokenizer import Tokenizer
from lm.errors import UserError
from lm.infer.engine.blocks import Blocks
from lm.infer.engine.draw import TOP, Drawn
from lm.infer.engine.request import Event, Handle, Likely, Request
from lm.infer.engine.schedule import Part, Schedule
from lm.infer.engine.sequence import Sequence
from lm.infer.engine.step import Laid, drawn, forward, lay_out, sizes
from lm.infer.engine.weights import weights_of
from lm.model.pages import empty_pages, page_bytes
from lm.model.transformer import Transformer

SHARE = 0.25  # of the free memory that pages may take if their number is not given
LEAST_PAGES = 64


class Full(Exception):
    """The queue is full."""


class Closed(Exception):
    """The engine takes no more requests."""


class Stats(NamedTuple):
    """A snapshot.

    running, waiting: sequences. blocks_used, blocks: pages. The others only grow; prefix_* count tokens of prompts.
    """

    running: int
    waiting: int
    blocks_used: int
    blocks: int
    steps: int
    prompt_tokens: int
    generation_tokens: int
    prefix_queries: int
    prefix_hits: int
    preemptions: int
    drafted: int
    accepted: int
    finished: dict[str, int]


class Engine:
    """Decode requests together.

    model: as `lm.load` or `lm.infer.load.load_onto` returns it. rows: most sequences that run at a time. budget: most tokens of
    a step. pages: their number; 0: from the free memory. page: tokens of a page. cache_dtype: "" or "int8". drafts: most tokens
    that are guessed ahead for a sequence (they change no result). queue: most waiting requests. mesh: the one the model is on.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer | None,
        *,
        rows: int = 32,
        budget: int = 64,
        pages: int = 0,
        page: int = 16,
        cache_dtype: str = "",
        drafts: int = 0,
        queue: int = 1024,
        mesh=None,
    ):
        self.config, self.tokenizer = model.config, tokenizer
        self._mesh, self._queue = mesh, queue
        self._weights, self._version, self._next = weights_of(model), 0, None
        self._sizes = sizes(max(budget, rows * (1 + drafts)))
        count = pages or _affordable(model.config, page, cache_dtype, rows)
        with self._on_mesh():
            self._pages = jax.jit(empty_pages, static_argnums=(0, 1, 2, 3))(self._weights.config, count, page, cache_dtype)
        self._blocks = Blocks(count, page)
        self._schedule = Schedule(self._blocks, rows, self._sizes[-1], drafts)
        most = min(model.config.max_positions, count * page)
        self.max_positions = most
        self._tables_RN = np.zeros((rows, -(-most // page)), np.int32)
        self.observers: list[Callable[[str, dict], None]] = []
        self._arrived: list[Sequence] = []
        self._wake = threading.Condition()
        self._closing = self._broken = False
        self._finished: Counter[str] = Counter()
        self._steps = self._prompt_tokens = self._generated = self._drafted = self._accepted = 0
        self._idle = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request, tell: Callable[[Event], None]) -> Handle:
        """Queue a request; `tell` gets its events. Raises: UserError for a request that cannot be met; Full; Closed."""
        self._check(request)
        handle = Handle(request, tell)
        with self._wake:
            if self._closing:
                raise Closed("the engine is closing")
            if len(self._schedule.waiting) + len(self._arrived) >= self._queue:
                raise Full(f"{self._queue} requests are waiting")
            self._arrived.append(Sequence(handle, self.config, self._version))
            self._wake.notify()
        return handle

    def generate(self, request: Request) -> list[int]:
        """Return the tokens of one request, when it is finished. Raises: UserError if it ends by an error."""
        return self.generate_all([request])[0]

    def generate_all(self, requests) -> list[list[int]]:
        """Return the tokens of each request."""
        found: list[list[int]] = [[] for _ in requests]
        over, left, errors = threading.Event(), [len(found)], []

        def teller(n: int):
            def tell(event: Event) -> None:
                found[n] += event.tokens
                if event.finish:
                    left[0] -= 1
                    if event.finish == "error":
                        errors.append(event.error)
                    if not left[0]:
                        over.set()

            return tell

        for n, request in enumerate(requests):
            self.submit(request, teller(n))
        if found:
            over.wait()
        if errors:
            raise UserError(errors[0])
        return found

    def stats(self) -> Stats:
        s = self._schedule
        return Stats(
            len(s.running),
            len(s.waiting) + len(self._arrived),
            self._blocks.used,
            self._blocks.count,
            self._steps,
            self._prompt_tokens,
            self._generated,
            s.prefix_queries,
            s.prefix_hits,
            s.preemptions,
            self._drafted,
            self._accepted,
            dict(self._finished),
        )

    def swap(self, model: Transformer) -> None:
        """Use newer weights of the same config. Running requests finish with the old ones; others wait for them."""
        if model.config != self.config:
            raise UserError("the newer model has another config, so it cannot take the place of this one")
        fresh = weights_of(model)
        with self._wake:
            self._next = fresh
            self._wake.notify()

    def close(self, drain: float = 0.0) -> None:
        """Take no more requests, wait up to `drain` seconds for those that are here, and cancel the rest."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if drain:
            self._idle.wait(drain)
        with self._wake:
            self._broken = True
            self._wake.notify()
        self._thread.join()

    def _check(self, r: Request) -> None:
        vocab = self.config.vocab_size
        if not r.prompt or min(r.prompt) < 0 or max(r.prompt) >= vocab:
            raise UserError(f"a prompt must not be empty, and its ids must be in 0…{vocab - 1}")
        if r.max_new_tokens < 1:
            raise UserError(f"max_new_tokens={r.max_new_tokens} must be at least 1")
        if len(r.prompt) + r.max_new_tokens > self.max_positions:
            raise UserError(
                f"prompt ({len(r.prompt)} tokens) and max_new_tokens ({r.max_new_tokens}) exceed the "
                f"{self.max_positions} tokens that a sequence may have here"
            )
        number = (float, int, np.floating, np.integer)
        limits = {
            "temperature": 0 <= r.temperature < np.inf,
            "top_p": 0 < r.top_p <= 1,
            "top_k": 0 <= r.top_k < 2**31,
            "min_p": 0 <= r.min_p <= 1,
            "presence_penalty": -np.inf < r.presence_penalty < np.inf,
            "frequency_penalty": -np.inf < r.frequency_penalty < np.inf,
            "repetition_penalty": 0 < r.repetition_penalty < np.inf,
            "logprobs": -1 <= r.logprobs <= TOP,
            "prompt_logprobs": -1 <= r.prompt_logprobs <= TOP,
            "logit_bias": all(0 <= id < vocab and isinstance(b, number) and abs(b) < np.inf for id, b in r.logit_bias.items()),
            "stop_ids": all(0 <= id < vocab for id in r.stop_ids),
        }
        for name, holds in limits.items():
            if not holds:
                raise UserError(f"{name}={getattr(r, name)} is out of range")
        if r.adapter:
            raise UserError(f"no adapter {r.adapter!r} is loaded")

    # The thread.

    def _on_mesh(self):
        return jax.set_mesh(self._mesh) if self._mesh is not None else contextlib.nullcontext()

    def _run(self) -> None:
        with self._on_mesh():
            while True:
                with self._wake:
                    while not (
                        self._arrived or self._schedule.running or len(self._schedule.waiting) or self._next or self._broken
                    ):
                        if self._closing:
                            self._idle.set()
                        self._wake.wait()
                    for sequence in self._arrived:
                        self._schedule.waiting.add(sequence)
                    self._arrived.clear()
                    broken = self._broken
                if broken:
                    return self._end_all("cancelled", "")
                try:
                    self._once()
                except Exception as error:  # a bug, or no memory: nothing of this step can be trusted
                    self._end_all("error", f"{type(error).__name__}: {error}")
                    self._recover()

    def _once(self) -> None:
        self._drop_gone()
        if self._next is not None and not self._schedule.running:
            self._weights, self._next = self._next, None
            self._version += 1
            self._blocks.forget()
            for sequence in self._schedule.waiting:
                sequence.version = self._version
        parts = self._schedule.step(admits=self._next is None)
        if not parts:
            return
        begin = time.monotonic()
        for part in parts:
            times = part.sequence.handle.times
            if not times.started:
                part.sequence.handle.times = times._replace(started=begin, cached=part.begin)
        laid = lay_out(parts, self._blocks.size, self._tables_RN, self._sizes)
        w = self._weights
        self._pages, logits_SV = forward(w.graph, w.params, w.layers, self._pages, laid.tokens_B, laid.table, laid.at_S)
        found = drawn(laid, logits_SV, self._known()) if laid.draws else None
        self._steps += 1
        self._give(parts, laid, found)
        self._notice("step", tokens=sum(len(part.tokens) for part in parts), seconds=time.monotonic() - begin)

    def _known(self) -> int:
        return self.tokenizer.vocab_size if self.tokenizer else self.config.vocab_size

    def _give(self, parts: list[Part], laid: Laid, found: Drawn | None) -> None:
        """Hand each sequence the tokens that were drawn for it."""
        first = 0
        for part in parts:
            sequence, count = part.sequence, len(part.tokens) - part.first_drawn
            here = slice(first, first + count)
            first += count
            self._prompt_tokens += max(0, min(sequence.prompt, part.begin + len(part.tokens)) - part.begin)
            if found is not None and found.lost_S[here].any():
                self._finish(sequence, Event(finish="error", error="the logits are NaN or infinite"))
            elif part.begin + len(part.tokens) - part.drafts < len(sequence.tokens):
                sequence.computed = part.begin + len(part.tokens)
                self._read(sequence, found, here)
                sequence.seal(self._blocks)
            else:
                self._sampled(part, found, here)

    def _read(self, sequence: Sequence, found: Drawn | None, here: slice) -> None:
        """Keep the log-probabilities of prompt tokens that were read."""
        if sequence.request.prompt_logprobs >= 0 and not sequence.sampled:
            sequence.read += [_likely(found, s, sequence.request.prompt_logprobs) for s in range(here.start, here.stop)]

    def _sampled(self, part: Part, found: Drawn, here: slice) -> None:
        """Append the drawn tokens as far as the drafts before them were right."""
        sequence, r = part.sequence, part.sequence.request
        drafts = part.tokens[len(part.tokens) - part.drafts :]
        begin = here.stop - part.drafts - 1
        self._read(sequence, found, slice(here.start, begin))
        prompt = (None, *sequence.read) if r.prompt_logprobs >= 0 and not sequence.sampled else ()
        tokens, likely, finish = [], [], ""
        for n, s in enumerate(range(begin, here.stop)):
            tokens.append(int(found.token_S[s]))
            if r.logprobs >= 0:
                likely.append(_likely(found, s, r.logprobs))
            sequence.computed = len(sequence.tokens)
            finish = sequence.append(tokens[-1])
            if finish or (n < len(drafts) and drafts[n] != tokens[-1]):
                break
        self._generated += len(tokens)
        self._drafted += len(drafts)
        self._accepted += len(tokens) - 1
        if not sequence.handle.times.first:
            sequence.handle.times = sequence.handle.times._replace(first=time.monotonic())
        sequence.seal(self._blocks)
        event = Event(tuple(tokens), tuple(likely), prompt, finish)
        if finish:
            self._finish(sequence, event)
        else:
            self._tell(sequence, event)

    def _drop_gone(self) -> None:
        """End the requests that were cancelled or are out of time."""
        now = time.monotonic()

        def reason(sequence: Sequence) -> str:
            handle = sequence.handle
            if handle.cancelled:
                return "cancelled"
            deadline = handle.request.deadline
            return "timeout" if deadline is not None and now > handle.times.submitted + deadline else ""

        for sequence in list(self._schedule.running):
            if why := reason(sequence):
                self._finish(sequence, Event(finish=why))
        gone = [(sequence, why) for sequence in self._schedule.waiting if (why := reason(sequence))]
        if gone:
            self._schedule.waiting.remove({id(sequence) for sequence, _ in gone})
            for sequence, why in gone:
                self._over(sequence, Event(finish=why))

    def _finish(self, sequence: Sequence, event: Event) -> None:
        self._schedule.finish(sequence)
        self._over(sequence, event)

    def _over(self, sequence: Sequence, event: Event) -> None:
        sequence.handle.times = sequence.handle.times._replace(finished=time.monotonic())
        self._finished[event.finish] += 1
        self._tell(sequence, event)
        self._notice("finished", handle=sequence.handle, finish=event.finish, generated=sequence.sampled)

    def _tell(self, sequence: Sequence, event: Event) -> None:
        try:
            sequence.handle.tell(event)
        except Exception:  # the listener's own fault, as when its event loop is closed
            sequence.handle.cancel()

    def _notice(self, what: str, **values) -> None:
        for observer in self.observers:
            observer(what, values)

    def _end_all(self, finish: str, error: str) -> None:
        for sequence in list(self._schedule.running):
            self._finish(sequence, Event(finish=finish, error=error))
        waiting = list(self._schedule.waiting)
        self._schedule.waiting.remove({id(one) for one in waiting})
        for sequence in waiting:
            self._over(sequence, Event(finish=finish, error=error))

    def _recover(self) -> None:
        """Make the pages anew: a failed step may have taken them."""
        if any(x.is_deleted() for x in jax.tree.leaves(self._pages)):
            first = jax.tree.leaves(self._pages)
            self._pages = jax.tree.map(lambda x: jax.numpy.zeros(x.shape, x.dtype, device=x.sharding), self._pages)
            del first
        self._blocks.forget()


def _likely(found: Drawn, s: int, top: int) -> Likely:
    alternatives = ()
    if top:
        alternatives = tuple((int(id), float(p)) for p, id in zip(found.top[0][s, :top], found.top[1][s, :top]))
    return Likely(float(found.logp_S[s]), alternatives)


def _affordable(config, page: int, dtype: str, rows: int) -> int:
    """Return a number of pages for SHARE of the free memory, at most those that `rows` sequences of full length need."""
    import psutil

    free = psutil.virtual_memory().available
    if jax.default_backend() != "cpu":
        stats = jax.local_devices()[0].memory_stats() or {}
        free = max(0, stats.get("bytes_limit", free) - stats.get("bytes_in_use", 0)) / SHARE * 0.9
    most = rows * -(-config.max_positions // page)
    return int(max(LEAST_PAGES, min(most, SHARE * free // page_bytes(config, page, dtype))))
