"""From an API request to requests of the engine, and from its events to the choices of an answer: their text and tokens.

Text comes piece by piece: whole characters, nothing of a stop string, and the place of each token.
"""

import bisect
import codecs
import contextlib
import functools
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from data.chat.harmony import Channels
from data.chat.messages import Messages
from data.chat.thoughts import OPEN, Thoughts
from data.text.tokenizer import Tokenizer
from lm.infer.engine.request import Event, Likely, Request
from lm.serve.api.protocol import ApiError, ChatRequest, Sampled
from lm.serve.api.service import Service, timed_out
from lm.serve.api.tools import Call, overlap

if TYPE_CHECKING:
    from lm.serve.seen import Seen

MIN = -9999.0  # nats, instead of −∞, which is not JSON


class Plan(NamedTuple):
    """What an API request comes to. head: id, created and model of the answer. requests: one a continuation. stream: arguments
    of their TextStreams. seen: the request as lm.serve.monitor sees it; None: it does not. begun: the prompt opens a thought.
    """

    head: dict[str, Any]
    requests: list[Request]
    stream: dict[str, Any]
    prompt_tokens: int
    seen: "Seen | None"
    begun: bool = False


@contextlib.contextmanager
def seen_by(service: Service, messages: Messages, id: str, user: str, adapter: str, choices: int) -> "Iterator[Seen | None]":
    """Yield the request as the monitor sees it, and end it there if the block fails."""
    seen = None
    if service.watch:
        seen = service.watch.on_request(messages, id=id, user=user, adapter=adapter, choices=choices)
    try:
        yield seen
    except BaseException:
        for n in range(choices if seen else 0):
            seen.on_finished("error", n)
        raise


def seed_of(seed: int | None, choice: int) -> int:
    """Return the seed of a continuation: the given one for the first, others of it for the rest; None: a random one."""
    if seed is None:
        return uuid.uuid4().int % 2**32
    return seed % 2**32 if choice == 0 else int(np.random.SeedSequence((seed % 2**64, choice)).generate_state(1)[0])


def settings_of(service: Service, body: Sampled, stop_ids: Sequence[int]) -> dict[str, Any]:
    """Return the fields of Request that all kinds of completions share. Raises: ApiError."""
    V = service.engine.config.vocab_size
    bias = {}
    for key, value in body.logit_bias.items():
        if not key.isascii() or not key.isdecimal() or len(key) > 10 or int(key) >= V:
            raise ApiError(400, f"logit_bias: {key[:50]!r} is no token id, which are 0…{V - 1}", param="logit_bias")
        bias[int(key)] = value
    same = ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
    defaults = service.sampling if isinstance(body, ChatRequest) else {}
    unsaid = {name: value for name, value in defaults.items() if name not in body.model_fields_set}
    sampling = {name: unsaid.get(name, getattr(body, name)) for name in same}
    return sampling | {
        "top_k": max(0, sampling["top_k"]),
        "logit_bias": bias,
        "stop_ids": () if body.ignore_eos else tuple(dict.fromkeys((*stop_ids, *body.stop_token_ids))),
        "min_new_tokens": body.min_tokens,
        "adapter": service.adapter_of(body.model),
    }


class Token(NamedTuple):
    """begin: where the token begins in the text, in characters. A token that begins inside a character has its place."""

    id: int
    likely: Likely | None
    begin: int


class Piece(NamedTuple):
    text: str = ""
    tokens: tuple[Token, ...] = ()


class TextStream:
    """The text of one continuation. The pieces add up to the same text and tokens, however the tokens are fed.

    stops: strings that end the text; the earliest one counts. keep_stop: it stays in the text. least: a stop string does not
    begin in the text of so many first tokens. spelled: bytes of control symbols that are text here. outlet(text, over): what
    text passes before a client sees it, such as a guardrail; returns (text that may be shown now, whether the answer ends).
    channels: spells the tokens of an answer in harmony.

    Attributes: count, tokens that the continuation has, up to the one that completed a stop string. stopped: by a stop string.
    blocked: by the outlet. If the outlet changes the text, no token is shown from there on.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stops: Sequence[str] = (),
        *,
        keep_stop: bool = False,
        least: int = 0,
        spelled: Mapping[int, bytes] | None = None,
        outlet: Callable[[str, bool], tuple[str, bool]] | None = None,
        channels: Channels | None = None,
    ):
        self._tokenizer, self._stops, self._keep_stop, self._least = tokenizer, stops, keep_stop, least
        self._spelled, self._outlet, self._channels = spelled or {}, outlet, channels
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._longest = max(map(len, stops), default=0)
        self._pending = ""  # text that may still become part of a stop string
        self._passed = 0  # characters that went on, and
        self._shown = 0  # that the outlet let pass
        self._waiting = ""  # text in the outlet
        self._changed = False  # by the outlet: then tokens no longer belong to the text
        self._from = 0  # where a stop string may begin
        self._tokens: deque[Token] = deque()
        self.count, self.stopped, self.blocked = 0, False, False

    def feed(
        self, ids: Sequence[int], likely: Sequence[Likely] = (), *, over: bool = False, hidden: Collection[int] = ()
    ) -> Piece:
        """Return the text that is complete after these tokens, and its tokens. over: no more follow. hidden: without text."""
        for n, i in enumerate(ids):
            if self.stopped or self.blocked:
                break
            self.count += 1
            self._tokens.append(Token(i, likely[n] if likely else None, self._passed + len(self._pending)))
            spelling = b""
            if i not in hidden:
                spelling = self._channels.feed(i) if self._channels else self._spelled.get(i) or bytes_of(self._tokenizer, i)
            self._add(self._decoder.decode(spelling))
            if self.count <= self._least:
                self._from = self._passed + len(self._pending)
        if over and not self.stopped and not self.blocked:
            ending = self._channels.over() if self._channels and hidden else b""
            self._add(self._decoder.decode(ending, final=True))
        return self._released(over)

    def _add(self, text: str) -> None:
        old = len(self._pending)
        self._pending += text
        if not self._stops or not text:
            return
        begin = max(0, old - self._longest + 1, self._from - self._passed)
        found = [(place, len(stop)) for stop in self._stops if (place := self._pending.find(stop, begin)) >= 0]
        if found:
            place, length = min(found)
            self._pending, self.stopped = self._pending[: place + length * self._keep_stop], True

    def _released(self, over: bool) -> Piece:
        over = over or self.stopped
        held = overlap(self._pending, self._stops) if self._stops and not over else 0
        text = self._pending[: len(self._pending) - held]
        self._pending = self._pending[len(text) :]
        self._passed += len(text)
        if self._outlet is not None:
            self._waiting += text
            text, self.blocked = self._outlet(text, over)
            self._changed |= not self._waiting.startswith(text)
            self._waiting = self._waiting[len(text) :]
        self._shown += len(text)
        whole = over and not self.stopped and not self.blocked
        tokens = []
        while self._tokens and not self._changed and (whole or self._tokens[0].begin < self._shown):
            tokens.append(self._tokens.popleft())
        return Piece(text, tuple(tokens))


def bytes_of(tokenizer: Tokenizer, i: int) -> bytes:
    """Return the bytes of a token within a text; none for rows of the model that the tokenizer does not have."""
    return tokenizer.decode_bytes([i]) if i < tokenizer.vocab_size else b""


def spelling(tokenizer: Tokenizer, names: Mapping[int, str], i: int) -> tuple[str, bytes]:
    """Return (text, bytes) of one token. names: control symbols by id. Bytes that are no text are written "bytes:\\x…"."""
    raw = bytes_of(tokenizer, i)
    if not raw:
        raw = names.get(i, f"<{i}>").encode()
    try:
        return raw.decode(), raw
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw), raw


class Choice:
    """One continuation: its text so far, tokens, and why it ended (OpenAI's finish reasons, "" before).

    thought, said: the texts of the thought, and of the answer without tool calls. count: sampled tokens. cached: prompt tokens
    that were in the prefix cache.
    """

    def __init__(self, service: Service, plan: Plan, n: int):
        self.request, self.finish = plan.requests[n], ""
        self._plan, self._n = plan, n
        self.calls: list[Call] = []
        self.cached = self.count = 0
        self.prompt: tuple[Likely | None, ...] = ()
        self.text, self.said, self.thought = "", "", ""
        self._thoughts: Thoughts | None = None  # None: no thought has begun
        self._is_plain, self._start = False, ""  # whether none can begin any more; the text before that is known
        self.tokens: list[Token] = []
        outlet = functools.partial(plan.seen.pass_on, n) if plan.seen else None
        channels = Channels(service.tokenizer) if plan.begun and service.tokenizer.is_harmony else None
        self._stream = TextStream(service.tokenizer, **plan.stream, outlet=outlet, channels=channels)

    def close(self, finish: str) -> None:
        """Tell the monitor how the continuation ended. Only the first call counts."""
        if self._plan.seen:
            self._plan.seen.on_finished(finish, self._n, self.count, self._plan.prompt_tokens)

    def feed(self, event: Event) -> Piece:
        """Return what the event adds. Raises: ApiError if the engine could not go on."""
        self.prompt = self.prompt or event.prompt
        ended = event.finish == "stop" and event.tokens and event.tokens[-1] in self.request.stop_ids
        hidden = self.request.stop_ids if ended else ()
        piece = self._stream.feed(event.tokens, event.likely, over=bool(event.finish), hidden=hidden)
        if self._plan.seen:
            self._plan.seen.on_tokens(self._n, event.likely, self._stream.count - self.count)
        self.count = self._stream.count
        if self._stream.blocked:
            self.finish = "content_filter"
        elif self._stream.stopped or event.finish == "stop":
            self.finish = "stop"
        elif event.finish == "length":
            self.finish = "length"
        elif event.finish == "timeout":
            raise timed_out()
        elif event.finish:
            raise ApiError(500, event.error or "the request was cancelled", code=event.finish)
        form = self.request.grammar
        if self.finish and form is not None and form.error:
            raise ApiError(400, f"{form.param}: {form.error}", param=form.param, code="invalid_grammar")
        if self.finish:
            self.close(self.finish)
        self.text += piece.text
        self.tokens += piece.tokens
        return piece

    def divided(self, text: str) -> tuple[str, str]:
        """Return what is new of (thought, answer) after more text of the continuation."""
        if self._is_plain:
            return "", text
        if self._thoughts is None:
            self._start = text = self._start + text
            start = text.lstrip()[: len(OPEN)]
            if not self._plan.begun and not (start and OPEN.startswith(start)):
                self._is_plain = bool(start or self.finish)
                return "", text if self._is_plain else ""
            self._thoughts = Thoughts(self._plan.begun)
        thought, answer = self._thoughts.feed(text, over=bool(self.finish))
        self.thought += thought
        return thought, answer

    @property
    def reasoning(self) -> int:
        """Return the number of tokens of the thought, with its marks."""
        return bisect.bisect_left(self.tokens, self._thoughts.end, key=lambda token: token.begin) if self._thoughts else 0

    def logprob(self) -> float:
        """Return the mean log-probability of the tokens, for best_of."""
        chosen = [token.likely.chosen for token in self.tokens if token.likely]
        return sum(chosen) / max(1, len(chosen))


async def pieces(service: Service, plan: Plan, choices: Sequence[Choice]) -> AsyncIterator[tuple[int, Piece]]:
    """Yield (−1, an empty piece) when all requests are in the queue, then (number of a choice, its next piece).

    Ends when all choices have ended. Raises: ApiError.
    """
    if plan.seen and plan.seen.blocked:
        yield -1, Piece()
        for n, choice in enumerate(choices):
            choice.text, choice.finish = plan.seen.refusal, "content_filter"
            yield n, Piece(choice.text)
        return
    finish, left = "cancelled", set(range(len(choices)))
    try:
        async with service.run(plan.requests) as run:
            yield -1, Piece()
            while left:
                n, event = await run.next()
                if n not in left:
                    continue
                choice = choices[n]
                piece = choice.feed(event)
                choice.cached = run.handles[n].times.cached
                if choice.finish:
                    left.discard(n)
                    run.end(n, choice.finish)
                yield n, piece
    except ApiError as error:
        finish = "timeout" if error.status == 408 else "error"
        raise
    finally:
        for choice in choices:
            choice.close(finish)


def usage(plan: Plan, choices: Sequence[Choice]) -> dict[str, Any]:
    count = sum([choice.count for choice in choices])
    return {
        "prompt_tokens": plan.prompt_tokens,
        "completion_tokens": count,
        "total_tokens": plan.prompt_tokens + count,
        "prompt_tokens_details": {"cached_tokens": sum([choice.cached for choice in choices])},
        "completion_tokens_details": {"reasoning_tokens": sum([choice.reasoning for choice in choices])},
    }


def new_head(service: Service, body: Sampled, kind: str) -> dict[str, Any]:
    return {"id": f"{kind}-{uuid.uuid4().hex}", "created": int(time.time()), "model": body.model or service.name}


def nats(value: float) -> float:
    return max(float(value), MIN)
