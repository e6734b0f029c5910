"""What the engine is asked and what it answers: requests of token ids, with images and sound, and events of sampled tokens.

Media come as tiles, which encoders take: images of the encoder's size, and windows of sound. Settings are checked with this
file, so it does not load JAX.
"""

import dataclasses
import hashlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from lm.config import ModelConfig
from lm.config.towers import NAMES, Media, check_text
from lm.errors import UserError

if TYPE_CHECKING:
    from lm.infer.engine.thought import Budget

FINISHES = ("stop", "length", "cancelled", "timeout", "error")
TOP = 20  # most alternatives that a request can ask for, as in OpenAI's API
NOT_FINITE = "the logits are NaN or infinite: check the weights, or try dtype float32"


class Grammar(Protocol):
    """Which tokens may come next. The engine calls it from one thread, in the order of the tokens."""

    def allowed(self) -> np.ndarray:
        """Return bool [V]: the tokens that may come next."""

    def accept(self, token: int) -> None:
        """Advance by a sampled token."""

    def copy(self) -> "Grammar":
        """Return an independent grammar in the same state."""


class Tile(NamedTuple):
    """name: of its encoder. array: float32, what the encoder takes. digest: of both."""

    name: str
    array: np.ndarray
    digest: bytes


def tiles_of(media: Media | None) -> tuple[Tile, ...]:
    """Return the tiles of one prompt, for Request. media: `lm.model.media.Media` of one row, as for `lm.generate`."""
    found = []
    for name, some in zip(NAMES, media or (), strict=False):
        for array in () if some is None else np.asarray(some, np.float32)[0]:
            digest = hashlib.blake2b(array.tobytes(), digest_size=16, person=name.encode()).digest()
            found.append(Tile(name, array, digest))
    return tuple(found)


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
    adapter: name of a loaded adapter; "": none. deadline: seconds from submission. told_by_reader: the reader tells observers
      how it ended, as by a stop string, which only its text shows.
    thought: budget of the thought that begins the answer; a grammar waits for the end of one that the prompt began. None: its
      tokens are not counted.
    embeds: whether the first event has the hidden state of the prompt's last token.
    media: images and sound that the prompt has tokens for, of `tiles_of`. None: there are none, and such
      tokens are read as any other, because a model drew them or a text spells them. media_end: the first so many tokens have
      them, and later ones are read as any other; 0: all have.
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
    deadline: float | None = None
    told_by_reader: bool = False
    thought: "Budget | None" = None
    embeds: bool = False
    media: tuple[Tile, ...] | None = ()
    media_end: int = 0


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Settings that the requests of a call share.

    temperature: 0 is greedy. top_p: in (0, 1]. top_k: 0 is off. stop_ids: each ends a row. seed: a row's tokens depend only on
    (seed, its number) and its prompt. cache_dtype: "int8" keeps keys and values as integers with a scale for each token and
    head; "": the dtype that the engine chooses.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop_ids: tuple[int, ...] = ()
    seed: int = 0
    cache_dtype: str = ""

    def request(self, prompt: Sequence[int], seed: int) -> Request:
        """Return the request of a row with this seed. Raises: UserError for a cache_dtype that is unknown."""
        if self.cache_dtype not in ("", "int8"):
            raise UserError(f"cache_dtype={self.cache_dtype!r} is neither int8 nor empty")
        settings = self.max_new_tokens, self.temperature, self.top_p, self.top_k
        return Request(tuple(prompt), *settings, seed=seed, stop_ids=self.stop_ids)


def check(r: Request, config: ModelConfig, positions: int) -> None:
    """Raise UserError if the request cannot be met, whatever its adapter. positions: most tokens of a sequence."""
    vocab = config.vocab_size
    if not r.prompt or min(r.prompt) < 0 or max(r.prompt) >= vocab:
        raise UserError(f"a prompt must not be empty, and its ids must be in 0…{vocab - 1}")
    if r.max_new_tokens < 1:
        raise UserError(f"max_new_tokens={r.max_new_tokens} must be at least 1")
    if len(r.prompt) + r.max_new_tokens > positions:
        raise UserError(
            f"prompt ({len(r.prompt)} tokens) and max_new_tokens ({r.max_new_tokens}) exceed the {positions} tokens "
            "that a sequence may have here"
        )
    if r.media is not None:
        _check_tiles(r.prompt[: r.media_end or None], r.media, config)
    limits = {
        "temperature": 0 <= r.temperature < np.inf,
        "top_p": 0 < r.top_p <= 1,
        "top_k": 0 <= r.top_k < 2**31,
        "min_p": 0 <= r.min_p <= 1,
        "presence_penalty": abs(r.presence_penalty) < np.inf,
        "frequency_penalty": abs(r.frequency_penalty) < np.inf,
        "repetition_penalty": 0 < r.repetition_penalty < np.inf,
        "logprobs": -1 <= r.logprobs <= TOP,
        "prompt_logprobs": -1 <= r.prompt_logprobs <= TOP,
        "logit_bias": all(
            0 <= id < vocab and isinstance(bias, int | float) and abs(bias) < np.inf for id, bias in r.logit_bias.items()
        ),
        "stop_ids": all(0 <= id < vocab for id in r.stop_ids),
    }
    for name, holds in limits.items():
        if not holds:
            raise UserError(f"{name}={getattr(r, name)} is out of range")


def _check_tiles(prompt: Sequence[int], tiles: Sequence[Tile], config: ModelConfig) -> None:
    """Raise UserError if the model lacks an encoder for a tile, or if the prompt has more or fewer tokens than vectors."""
    for name in NAMES:
        section, some = getattr(config, name), [tile for tile in tiles if tile.name == name]
        if not section.num_layers:
            if some:
                raise UserError(f"a request with media for model.{name}, which this model does not have: leave them out")
            continue
        if not some:
            check_text(prompt, name, config)
            continue
        if wrong := next((tile.array.shape for tile in some if tile.array.shape != section.shape), None):
            raise UserError(f"media of shape {wrong}: model.{name} takes {section.shape}")
        places, vectors = prompt.count(section.token_id), len(some) * section.tokens
        if places != vectors:
            raise UserError(
                f"a prompt with {places} tokens {section.token_id} for the {vectors} vectors of model.{name}: give as many"
            )


class Likely(NamedTuple):
    """Log-probabilities at one place. chosen: of the token there, in nats. top: (id, log-probability), the likeliest first."""

    chosen: float
    top: tuple[tuple[int, float], ...]


class Event(NamedTuple):
    """New tokens of a request, in order. Those of all events of a request add up to its continuation.

    tokens: ids, with the stop id that ended it. likely: one a token if the request asked for it, else empty.
    prompt: in the first event, one a token of the prompt but the first (None), if the request asked for it.
    finish: in the last event, one of FINISHES, else "". error: why, if finish is "error". hidden_D: float32, if the request
    asked for it.
    """

    tokens: tuple[int, ...] = ()
    likely: tuple[Likely, ...] = ()
    prompt: tuple[Likely | None, ...] = ()
    finish: str = ""
    error: str = ""
    hidden_D: np.ndarray | None = None


def joined(events: Sequence[Event]) -> Event:
    """Return the events of a request as one."""
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

    def give(self, event: Event) -> None:
        """Tell the listener of an event. Its own fault, as when its event loop is closed, ends the request."""
        try:
            self.tell(event)
        except Exception:
            self.cancel()

    def gone(self, now: float) -> str:
        """Return "cancelled", "timeout" if it is out of time, or ""."""
        if self._cancelled.is_set():
            return "cancelled"
        deadline = self.request.deadline
        return "timeout" if deadline is not None and now > self.times.submitted + deadline else ""


class Full(Exception):
    """The queue of the engine is full: ask again later."""


class Closed(Exception):
    """The engine takes no more requests."""


class Stats(NamedTuple):
    """A snapshot.

    running, waiting: sequences. deferred: those that wait for an encoder. blocks_used, blocks: pages of `page` tokens. The
    others only grow; prefix_* count tokens of prompts, drafts guesses, accepted_at those that were right up to each place.
    """

    running: int
    waiting: int
    deferred: int
    blocks_used: int
    blocks: int
    page: int
    steps: int
    prompt_tokens: int
    generation_tokens: int
    prefix_queries: int
    prefix_hits: int
    preemptions: int
    drafts: int
    drafted: int
    accepted: int
    accepted_at: dict[int, int]
    finished: dict[str, int]
