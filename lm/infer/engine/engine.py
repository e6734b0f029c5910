"""The engine's loop: one thread that takes requests, runs compiled steps, and tells each request its tokens."""

import atexit
import contextlib
import functools
import logging
import operator
import os
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from data.text.tokenizer import Tokenizer
from lm.cli import fail
from lm.errors import UserError
from lm.infer.engine.adapters import Slots, placed, read_adapter
from lm.infer.engine.answers import ended
from lm.infer.engine.compute import Computer
from lm.infer.engine.drafts import ByModel, ByModule, by_ngrams
from lm.infer.engine.draw import Drawn
from lm.infer.engine.media import Encoder, empty_vectors
from lm.infer.engine.request import Closed, Event, Full, Handle, Request, Stats, check
from lm.infer.engine.room import Capacity, default_pages, give_back, positions_of
from lm.infer.engine.schedule import Drafter, Schedule
from lm.infer.engine.sequence import Blocks, Part, Sequence
from lm.infer.engine.step import Laid, drawing_of, lay_out, placed_vectors, shapes_of, warm_drawings
from lm.infer.engine.weights import weights_of, with_adapters
from lm.infer.load import load_model
from lm.model.media import Vectors
from lm.model.pages import reads_few_pages
from lm.model.transformer import Transformer
from lm.parallel.channel import Channel
from lm.parallel.hosts import from_first
from lm.parallel.mesh import row_ways

LOG = logging.getLogger(__name__)


class Engine:
    """Decode requests together.

    draft_model: guesses tokens ahead, as many as `capacity` says; `model` itself: its modules do; None: they are guessed by
    n-grams. packed, slots, owned, in_place: see `weights_of`. mesh: the one that the model is on; None: the first device.
    Of a mesh over several processes, each process has an engine, and gives it the same calls in the same order: no deadlines,
    and `cancel` only from `tell`. With a channel only process 0 is asked, and the others `follow`: they compute its steps.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer | None,
        capacity: Capacity = Capacity(),  # noqa: B008 (it is immutable)
        *,
        draft_model: Transformer | None = None,
        packed: str = "",
        slots: Slots | None = None,
        owned: bool = False,
        in_place: bool = False,
        mesh: Mesh | None = None,
        channel: Channel | None = None,
    ):
        if mesh is not None and mesh.size > 1 and packed:
            raise UserError(f"packed={packed} is for one device: leave it empty on a mesh")
        if model.config.recurrent_kinds and (capacity.drafts or draft_model is not None):
            kind = model.config.recurrent_kinds[0]
            raise UserError(f"speculate: model.attention_pattern has {kind} layers, whose state cannot take a guess back")
        self._mesh, self._slots, self.config, self.tokenizer = mesh, slots, model.config, tokenizer
        ahead = draft_model is model
        self._weights_of = functools.partial(weights_of, packed=packed, slots=slots, in_place=in_place, ahead=ahead)
        self._version, known = 0, tokenizer.vocab_size if tokenizer else model.config.vocab_size
        self._rope = model.config.rope if model.config.rope.depends_on_length else None
        with self._on_mesh():
            self._capacity = o = capacity.here()
            weights, ways = self._weights_of(model, owned=owned), row_ways()
            count = o.pages or from_first(lambda: default_pages(model.config, o))
            (rows, snapshots), budget, pages = o.states(ways), -(-o.budget // ways), -(-count // ways)
            apart = range(rows, rows + snapshots) if model.config.recurrent_kinds else None
            self._blocks = [Blocks(pages, o.page, apart) for _ in range(ways)]
            self._shapes = shapes_of(rows * (1 + o.drafts), budget, o.page, reads_few_pages(model.config, o.cache_dtype))
            self._computer = computer = Computer(weights, o, ways * pages, known, slots, channel)
            self._drafter: Drafter = by_ngrams
            if ahead:
                self._drafter = ByModule(lambda: computer.model, weights.config, self._blocks, ways * rows, self._shapes)
            elif draft_model is not None:
                drafting = weights_of(draft_model, packed, owned=owned)
                self._drafter = ByModel(drafting, self.config, self._blocks, ways * rows, self._shapes)
        self._schedule = Schedule(self._blocks, rows, self._shapes.sizes[-1], o.drafts, self._drafter)
        self.max_positions = most = min(positions_of(model.config, o), pages * o.page)
        self._tables_RN = np.zeros((ways * rows, -(-most // o.page)), np.int32)
        self._encoder = Encoder()
        self.observers: list[Callable[[str, dict[str, Any]], None]] = []
        self.reopen: Callable[[str | os.PathLike[str]], Transformer] = load_model
        self._arrived: list[Sequence] = []
        self._wake, self._idle, self._changing = threading.Condition(), threading.Event(), threading.Lock()
        self._closing = self._ending = False
        self._changes: deque[tuple[Callable[[], None], bool]] = deque()
        self._loads, self._finished = Counter[str](), Counter[str]()  # how often an adapter was loaded, a request ended so
        self._counts = dict.fromkeys(("steps", "prompt_tokens", "generation_tokens", "drafts", "drafted", "accepted"), 0)
        self._accepted_at = Counter[int]()
        self._several = channel is not None
        self._thread = threading.Thread(target=self._with_others if self._several else self._run, name="engine", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # a thread inside a compiled program when Python ends would abort the process

    def submit(self, request: Request, tell: Callable[[Event], None]) -> Handle:
        """Queue a request; `tell` gets its events. Raises: UserError for a request that cannot be met; Full; Closed."""
        check(request, self.config, self.max_positions)
        handle = Handle(request, tell)
        with self._wake:
            if self._closing:
                raise Closed("the engine is closing")
            if len(self._schedule.waiting) + len(self._arrived) >= self._capacity.queue:
                raise Full(f"{self._capacity.queue} requests are waiting")
            slot = self._slots.slot.get(request.adapter, -1) if self._slots else -1
            if request.adapter and slot < 0:
                raise UserError(f"no adapter {request.adapter!r} is loaded")
            self._arrived.append(Sequence(handle, self.config, self._rope, self._key(request.adapter), slot))
            self._wake.notify()
        return handle

    def generate(self, request: Request) -> list[int]:
        """Return the tokens of one request, when it is finished. Raises: UserError if it ends by an error."""
        return self.generate_all([request])[0]

    def generate_all(self, requests: Iterable[Request]) -> list[list[int]]:
        """Return the tokens of each request. Raises: UserError if one ends by an error."""
        found = self.answers(requests)
        if errors := [event.error for event in found if event.finish == "error"]:
            raise UserError(errors[0])
        return [list(event.tokens) for event in found]

    def answers(self, requests: Iterable[Request]) -> list[Event]:
        """Return the events of each request as one, when all are finished."""
        return [event for _, event in sorted(ended(self, list(requests)), key=operator.itemgetter(0))]

    def submit_all(self, requests: Iterable[Request], tell: Callable[[int, Handle, Event], None]) -> list[Handle]:
        """Queue requests that arrive at once, so that their steps repeat. tell: gets index, handle and event."""
        handles = list[Handle]()

        def give(n: int, event: Event) -> None:
            tell(n, handles[n], event)

        with self._wake:
            for n, request in enumerate(requests):
                handles.append(self.submit(request, functools.partial(give, n)))
        return handles

    def stats(self) -> Stats:
        s = self._schedule
        return Stats(
            running=len(s.running),
            waiting=len(s.waiting) + len(self._arrived),
            blocks_used=sum(blocks.used for blocks in self._blocks),
            blocks=sum(blocks.count for blocks in self._blocks),
            page=self._blocks[0].size,
            deferred=sum(not one.is_ready for one in tuple(s.waiting)),
            accepted_at=dict(self._accepted_at),
            prefix_queries=s.prefix_queries,
            prefix_hits=s.prefix_hits,
            preemptions=s.preemptions,
            finished=dict(self._finished),
            **self._counts,
        )

    @property
    def held(self) -> tuple[int, int]:
        """Return the bytes of the weights and of the pages."""
        return self._computer.held

    def swap(self, newer: Transformer | str | os.PathLike[str], *, free_first: bool = False) -> None:
        """Use newer weights of the same config: a model, or the path of one, opened as the first was.

        Running requests finish with the old ones, and the others wait for them. Adapters stay as they are.
        free_first: free the old weights before the newer ones are laid out, so that no room is needed for both; if that fails,
        close the engine.
        Raises: UserError if the config differs.
        """
        model = newer if isinstance(newer, Transformer) else self.reopen(newer)
        if model.config != self.config:
            raise UserError("the newer model has another config, so it cannot take the place of this one")
        laid_out = functools.partial(self._weights_of, model, owned=model is not newer)
        fresh = None if free_first else laid_out()

        def change() -> None:
            adapters = self._computer.weights.adapters
            if free_first:
                self._computer.free()
            weights = fresh or laid_out()
            self._computer.use(with_adapters(weights, adapters) if self._slots else weights)
            self._version += 1
            self._forget()
            self._encoder.forget()
            for sequence in self._schedule.waiting:
                sequence.begin_anew(self._key(sequence.request.adapter))

        self._do(change, idle=True)

    def forget(self, free: bool = False) -> None:
        """Forget all known prefixes. free: also free the pages until the next step, if no request runs."""

        def change() -> None:
            self._forget()
            if free and not self._schedule.running:
                self._computer.pages = None

        self._do(change)

    def _forget(self) -> None:
        for blocks in self._blocks:
            blocks.forget()

    @property
    def adapters(self) -> tuple[str, ...]:
        """Return the names of the adapters that requests can choose."""
        return tuple(self._slots.slot) if self._slots else ()

    def load_adapter(self, name: str, path: str | os.PathLike[str]) -> None:
        """Load an adapter beside the others: a folder of PEFT, or a workdir. Raises: UserError if it does not fit."""
        if self._slots is None:
            raise UserError("there is no room for adapters: start with adapters.count")
        found = read_adapter(path, self.config)
        with self._changing:
            slot = self._slots.free(name)
            arrays = placed(self._slots, slot, found, self._computer.weights.adapters)

            def change() -> None:
                self._computer.use(with_adapters(self._computer.weights, arrays))
                self._loads[name] += 1

            self._do(change)
            self._slots.slot[name] = slot

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter. Requests that use it are ended. Raises: UserError if there is none of this name."""
        with self._changing:
            if self._slots is None or name not in self._slots.slot:
                raise UserError(f"no adapter {name!r} is loaded")
            with self._wake:
                slot = self._slots.slot.pop(name)  # from now on no request gets it; the next adapter waits for _changing
            self._do(lambda: self._end_all(Event(finish="error", error=f"{name} was unloaded"), slot))

    def warm(self, adjusts: bool = False) -> None:
        """Compile all steps, or load them from the compile cache. Without it each is compiled when it is first needed.

        adjusts: also what draws from logits that a request's penalties, bias or grammar change.
        """

        def change() -> None:
            self._encoder.warm(self.config, *self._computer.model)
            for B in self._shapes.sizes:
                for S in self._shapes.logits(B):
                    laid = lay_out([], self._shapes._replace(sizes=(B,)), self._tables_RN)
                    laid = laid._replace(at_S=np.zeros(self._shapes.shards * S, np.int32))
                    self._computer.step(laid, warm_drawings(len(laid.at_S), self.config.vocab_size, adjusts))
                    if self.config.vision.num_layers or self.config.audio.num_layers:
                        self._computer.step(laid, [], Vectors(*empty_vectors(len(laid.tokens_B), self.config)))
                    give_back()

        self._do(change)

    def follow(self) -> None:
        """Wait, on another process than 0, until the engine of process 0 is closed."""
        self._thread.join()

    def close(self, drain: float = 0.0) -> None:
        """Take no more requests, wait up to `drain` seconds for those that are here, and cancel the rest."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._idle.wait(drain)
        with self._wake:
            self._ending = True
            self._wake.notify()
        # The garbage collector may run a finalizer on the thread itself. One that follows ends when process 0 says so.
        if threading.current_thread() is not self._thread and not self._computer.follows:
            self._thread.join()
            atexit.unregister(self.close)

    # The thread.

    def _on_mesh(self) -> contextlib.AbstractContextManager[None]:
        return jax.set_mesh(self._mesh) if self._mesh is not None else contextlib.nullcontext()

    def _key(self, adapter: str) -> str:
        """Return what the keys and values of a request depend on beside its tokens."""
        return f"{self._version} {adapter} {self._loads[adapter]}"

    def _do(self, change: Callable[[], None], idle: bool = False) -> None:
        """Call `change` on the engine's thread between two steps, and wait for it. idle: when no sequence runs."""
        over, errors = threading.Event(), list[Exception]()

        def call() -> None:
            try:
                change()
            except Exception as error:
                errors.append(error)
            over.set()

        with self._wake:
            if self._ending:
                raise Closed("the engine is closed")
            self._changes.append((call, idle))
            self._wake.notify()
        over.wait()
        if errors:
            raise errors[0]

    def _run(self) -> None:
        schedule = self._schedule
        with self._on_mesh():
            while True:
                with self._wake:
                    while not (self._arrived or self._changes or self._ending or schedule.running or schedule.waiting):
                        if self._closing:
                            self._idle.set()
                        self._wake.wait()
                    self._take_arrived()
                    ending = self._ending
                try:
                    while self._changes and (ending or not self._changes[0][1] or not schedule.running):
                        self._changes.popleft()[0]()
                    if ending:
                        return self._end_all(Event(finish="cancelled"))
                    self._once()
                except Exception as error:  # a bug, or no memory: nothing of this step can be trusted
                    if self._several:
                        raise
                    LOG.exception("a step failed; its requests are ended")
                    self._end_all(Event(finish="error", error=f"{type(error).__name__}: {error}"))
                    self._forget()
                    self._computer.recover()
                    if isinstance(self._drafter, ByModel | ByModule):
                        self._drafter.recover()

    def _take_arrived(self) -> None:
        with self._wake:
            self._schedule.waiting.extend(self._arrived)
            self._arrived.clear()

    def _once(self) -> None:
        """End the requests that were cancelled or are out of time, and compute a step for the others."""
        schedule, begin = self._schedule, time.monotonic()
        for sequence in [*schedule.running, *schedule.waiting]:
            if finish := sequence.handle.gone(begin):
                self._end(sequence, Event(finish=finish))
        first = schedule.waiting[0] if schedule.waiting else None
        if first is not None and first.shown is not None and not first.is_ready:
            self._encoder.advance(first.shown, *self._computer.model)
        parts = schedule.step(admits=not self._changes)
        if not parts:
            return
        begin = time.monotonic()
        for part in parts:
            times = part.sequence.handle.times
            if not times.started:
                part.sequence.handle.times = times._replace(started=begin, cached=part.begin)
        laid = lay_out(parts, self._shapes, self._tables_RN)
        drawings = [drawing_of(laid, self.config.vocab_size)] if laid.draws else []
        found = self._computer.step(laid, drawings, placed_vectors(parts, laid, self.config))
        self._counts["steps"] += 1
        self._give(parts, laid, found[0] if found else None)
        if isinstance(self._drafter, ByModule):
            assert self._computer.hidden is not None
            self._drafter.note(parts, laid, self._computer.hidden)
        for observer in self.observers:
            observer("step", {"tokens": sum(len(part.tokens) for part in parts), "seconds": time.monotonic() - begin})

    def _with_others(self) -> None:
        """Take requests, or on another process than 0 follow its engine. An error ends all, because some wait for others."""
        try:
            if self._computer.follows:
                with self._on_mesh():
                    return self._computer.follow()
            self._run()
            self._computer.end()
        except Exception as error:
            fail(f"{type(error).__name__}: {error}", 1, traceback.format_exc())

    def _give(self, parts: list[Part], laid: Laid, found: Drawn | None) -> None:
        """Hand each sequence what was drawn for it."""
        number, counts = 0, self._counts
        for part in parts:
            sequence, count = part.sequence, len(part.tokens) - part.first_drawn
            first = laid.draws[number][0] if count else 0
            here, number = slice(first, first + count), number + count
            counts["prompt_tokens"] += max(0, min(sequence.prompt, part.begin + len(part.tokens)) - part.begin)
            event = part.advance(found, here)
            sequence.seal(self._blocks[sequence.shard])
            if event is None:
                continue
            if sequence.request.embeds and event.tokens:
                s = here.stop - 1 - part.drafts
                at = laid.at_S[s] if isinstance(self._drafter, ByModule) else s
                event = event._replace(hidden_D=np.asarray(self._computer.hidden)[at].astype(np.float32))
            counts["generation_tokens"] += len(event.tokens)
            counts["drafts"] += part.drafts > 0
            counts["drafted"] += part.drafts
            self._accepted_at.update(range(len(event.tokens) - 1))
            counts["accepted"] += max(0, len(event.tokens) - 1)
            if not sequence.handle.times.first:
                sequence.handle.times = sequence.handle.times._replace(first=time.monotonic())
            if event.finish:
                self._end(sequence, event)
            else:
                sequence.handle.give(event)

    def _end(self, sequence: Sequence, event: Event) -> None:
        """End a sequence, which runs or waits."""
        self._finished[event.finish] += 1  # first, so that another thread's `stats` never misses a request
        self._schedule.remove(sequence)
        handle = sequence.handle
        handle.times = handle.times._replace(finished=time.monotonic())
        handle.give(event)
        for observer in self.observers:
            observer("finished", {"handle": handle, "finish": event.finish, "generated": sequence.sampled})

    def _end_all(self, event: Event, slot: int | None = None) -> None:
        """End all sequences, running and waiting, or those of an adapter's slot."""
        self._take_arrived()
        for sequence in [*self._schedule.running, *self._schedule.waiting]:
            if slot in (None, sequence.slot):
                self._end(sequence, event)
