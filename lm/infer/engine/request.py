"""What the engine is asked and what it answers: requests of token ids, events of sampled tokens."""

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from lm.infer.engine.tiles import Tile

FINISHES = ("stop", "length", "cancelled", "timeout", "error")
NOT_FINITE = "the logits are NaN or infinite: check the weights, or try dtype float32"


class Grammar(Protocol):
    """Which tokens may come next. The engine calls it from one thread, in the order of the tokens."""

    def allowed(self) -> np.ndarray:
        """Return bool [V]: the tokens that may come next."""

    def accept(self, token: int) -> None:
        """Advance by a sampled token."""

    def copy(self) -> "Grammar":
        """Return an independent grammar in the same state."""


@dataclasses.dataclass(frozen=True)
class Request:
    """One continuation of a prompt of token ids. Its tokens depend on this request alone, not on its neighbours in a batch.

    Settings apply in this order: logit_bias, penalties, grammar, temperature, top_k, top_p, min_p.

    prompt: ids, not empty. max_new_tokens: at least 1. temperature: 0 is greedy. top_p: in (0, 1]. top_k: 0 is off. min_p:
      tokens less likely than this share of the likeliest one are out; 0 is off. seed: of the sample; token n depends on (seed,
      n).
    presence_penalty, frequency_penalty: subtracted from the logits of sampled tokens (OpenAI's formula). repetition_penalty:
      divides positive logits, and multiplies negative ones, of tokens of the prompt and the sample (Keskar et al. 2019); 1:
      off.
    logit_bias: added to the logits of these ids. stop_ids: each ends the continuation. min_new_tokens: before these, none does.
    logprobs: how many of the likeliest tokens are reported at each place, beside the sampled one; -1: none at all. They are
      natural logarithms of the model's own distribution, before any setting.
    prompt_logprobs: the same for the prompt's tokens; the first has none. tempered: both are at the temperature (1 if that is
      0), still before all other settings.
    adapter: name of a loaded adapter; "": none. user: shares of the queue are fair among users. deadline: seconds from
    submission. told_by_reader: the reader tells observers how it ended, as by a stop string, which only its text shows.
    media: images and sound that the prompt has tokens for, of `lm.infer.engine.tiles.tiles_of`. None: there are none, and such
      tokens are read as any other, because a model drew them or a text spells them.
    """

    prompt: tuple[int, ...]
    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = dataclasses.field(default_factory=dict)
    stop_ids: tuple[int, ...] = ()
    min_new_tokens: int = 0
    logprobs: int = -1
    prompt_logprobs: int = -1
    tempered: bool = False
    adapter: str = ""
    grammar: Grammar | None = None
    user: str = ""
    deadline: float | None = None
    told_by_reader: bool = False
    media: tuple[Tile, ...] | None = ()


class Likely(NamedTuple):
    """Log-probabilities at one place. chosen: of the token there, in nats. top: (id, log-probability), the likeliest first."""

    chosen: float
    top: tuple[tuple[int, float], ...]


class Event(NamedTuple):
    """New tokens of a request, in order. Those of all events of a request add up to its continuation.

    tokens: ids, with the stop id that ended it. likely: one a token if the request asked for it, else empty.
    prompt: in the first event, one a token of the prompt but the first (None), if the request asked for it.
    finish: in the last event, one of FINISHES, else "". error: why, if finish is "error".
    """

    tokens: tuple[int, ...] = ()
    likely: tuple[Likely, ...] = ()
    prompt: tuple[Likely | None, ...] = ()
    finish: str = ""
    error: str = ""


class Gathered:
    """The events of several requests. take(n, event): of request n. answers: wait for all, and return those of each as one."""

    def __init__(self, count: int):
        self._found: list[list[Event]] = [[] for _ in range(count)]
        self._left, self._over = count, threading.Event()

    def take(self, n: int, event: Event) -> None:
        self._found[n].append(event)
        self._left -= bool(event.finish)
        if not self._left:
            self._over.set()

    def answers(self) -> list[Event]:
        if self._found:
            self._over.wait()
        return [_joined(events) for events in self._found]


def _joined(events: Sequence[Event]) -> Event:
    tokens, likely = (tuple(x for event in events for x in getattr(event, name)) for name in ("tokens", "likely"))
    return Event(tokens, likely, events[0].prompt, events[-1].finish, events[-1].error)


class Times(NamedTuple):
    """Seconds of `time.monotonic` of a request; 0 for what has not happened."""

    submitted: float = 0.0
    started: float = 0.0  # its first prompt token was read
    first: float = 0.0  # its first token was sampled
    finished: float = 0.0
    cached: int = 0  # prompt tokens that were found in the prefix cache
    preempted: int = 0  # times


class Handle:
    """A request in the engine. `tell` is called on the engine's thread with each Event; it must return at once."""

    def __init__(self, request: Request, tell: Callable[[Event], None]):
        self.request, self.tell = request, tell
        self.times = Times(submitted=time.monotonic())
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """End the request. Its last event, with finish "cancelled", follows unless it is already over; its blocks are freed."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    def give(self, event: Event) -> None:
        """Tell the listener of an event. Its own fault, as when its event loop is closed, ends the request."""
        try:
            self.tell(event)
        except Exception:
            self.cancel()

    def gone(self, now: float) -> str:
        """Return "cancelled", "timeout" if it is out of time, or ""."""
        if self.cancelled:
            return "cancelled"
        deadline = self.request.deadline
        return "timeout" if deadline is not None and now > self.times.submitted + deadline else ""


class Full(Exception):
    """The queue of the engine is full: ask again later."""


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
