"""From an API request to requests of the engine, and from its events to the choices of an answer."""

import contextlib
import dataclasses
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from data.chat.messages import Messages
from lm.infer.engine.request import Event, Likely, Request
from lm.serve.api import grammar
from lm.serve.api.errors import ApiError
from lm.serve.api.protocol import Sampled
from lm.serve.api.service import Run, Service, timed_out
from lm.serve.api.text import Piece, TextStream
from lm.serve.api.tools import Call
from lm.serve.seen import Seen

MIN = -9999.0  # nats, instead of −∞, which is not JSON


class Plan(NamedTuple):
    """What an API request comes to. id, created: of the answer. requests: one a continuation. stream: arguments of their
    TextStreams. seen: the request as lm.serve.monitor sees it; None: it does not."""

    id: str
    created: int
    requests: list[Request]
    stream: dict[str, Any]
    prompt_tokens: int
    seen: Seen | None


@contextlib.contextmanager
def seen_by(service: Service, messages: Messages, id: str, user: str, adapter: str, choices: int) -> Iterator[Seen | None]:
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


def settings_of(service: Service, body: Sampled, stop_ids: Sequence[int], user: str) -> dict[str, Any]:
    """Return the fields of Request that all kinds of completions share. Raises: ApiError."""
    V = service.engine.config.vocab_size
    bias = {}
    for key, value in body.logit_bias.items():
        if not key.isascii() or not key.isdecimal() or len(key) > 10 or int(key) >= V:
            raise ApiError(400, f"logit_bias: {key[:50]!r} is no token id, which are 0…{V - 1}", param="logit_bias")
        bias[int(key)] = value
    stop_ids = () if body.ignore_eos else tuple(dict.fromkeys((*stop_ids, *body.stop_token_ids)))
    return {
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": max(0, body.top_k),
        "min_p": body.min_p,
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
        "repetition_penalty": body.repetition_penalty,
        "logit_bias": bias,
        "stop_ids": stop_ids,
        "min_new_tokens": body.min_tokens,
        "adapter": service.adapter_of(body.model),
        "user": user,
    }


def measured(request: Request, seen: Seen | None) -> Request:
    """Return the request with the log-probabilities that the monitor measures of a first choice."""
    return dataclasses.replace(request, logprobs=max(request.logprobs, seen.logprobs)) if seen else request


def grammar_of(body: Sampled) -> tuple[str, str] | None:
    """Return (grammar, the field that asks for it), or None. Raises: ApiError for several of them."""
    structured = body.structured_outputs
    asked: dict[str, str] = {}

    def add(field: str, value: Any, make, *args: Any) -> None:
        if value is not None:
            asked[field] = make(value, *args)

    add("guided_json", body.guided_json, grammar.json_grammar, "guided_json")
    add("guided_regex", body.guided_regex, grammar.regex_grammar, "guided_regex")
    add("guided_choice", body.guided_choice, grammar.choice_grammar, "guided_choice")
    add("guided_grammar", body.guided_grammar, grammar.lark_grammar, "guided_grammar")
    if structured is not None:
        where = "structured_outputs"
        add(f"{where}.json", structured.json_, grammar.json_grammar, where)
        add(f"{where}.regex", structured.regex, grammar.regex_grammar, where)
        add(f"{where}.choice", structured.choice, grammar.choice_grammar, where)
        add(f"{where}.grammar", structured.grammar, grammar.lark_grammar, where)
        add(f"{where}.json_object", structured.json_object or None, lambda _: grammar.json_grammar(grammar.OBJECT, where))
    if len(asked) > 1:
        raise ApiError(400, f"{' and '.join(asked)}: ask for one form of the answer", param=next(iter(asked)))
    return next(((text, field) for field, text in asked.items()), None)


class Choice:
    """One continuation: its text so far, tokens, and why it ended (OpenAI's finish reasons, "" before)."""

    def __init__(self, service: Service, plan: Plan, n: int):
        self.request, self.finish = plan.requests[n], ""
        self._plan, self._n = plan, n
        self.calls: list[Call] = []
        self.cached = 0  # prompt tokens that were in the prefix cache
        self.prompt: tuple[Likely | None, ...] = ()
        self.text, self.tokens = "", []
        self.said = ""  # the text without tool calls
        outlet = plan.seen.outlet(n) if plan.seen else None
        self._stream = TextStream(service.tokenizer, **plan.stream, outlet=outlet)

    def refuse(self, text: str) -> Piece:
        """End with these words of the guardrails."""
        self.text, self.finish = text, "content_filter"
        return Piece(text)

    def close(self, finish: str) -> None:
        """Tell the monitor how the continuation ended. Only the first call counts."""
        if self._plan.seen:
            self._plan.seen.on_finished(finish, self._n, self.count, self._plan.prompt_tokens)

    @property
    def count(self) -> int:
        """Return the number of sampled tokens."""
        return self._stream.count

    def feed(self, event: Event) -> Piece:
        """Return what the event adds. Raises: ApiError if the engine could not go on."""
        if self.finish:
            return Piece()
        self.prompt = self.prompt or event.prompt
        ended = event.finish == "stop" and event.tokens and event.tokens[-1] in self.request.stop_ids
        hidden = self.request.stop_ids if ended else ()
        before = self.count
        piece = self._stream.feed(event.tokens, event.likely, over=bool(event.finish), hidden=hidden)
        if self._plan.seen:
            self._plan.seen.on_tokens(self._n, event.likely, self.count - before)
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
        self._check_grammar()
        if self.finish:
            self.close(self.finish)
        self.text += piece.text
        self.tokens += piece.tokens
        return piece

    def logprob(self) -> float:
        """Return the mean log-probability of the tokens, for best_of."""
        chosen = [token.likely.chosen for token in self.tokens if token.likely]
        return sum(chosen) / max(1, len(chosen))

    def _check_grammar(self) -> None:
        form = self.request.grammar
        if self.finish and form is not None and form.error:
            raise ApiError(400, f"{form.param}: {form.error}", param=form.param, code="invalid_grammar")


def choices_of(service: Service, plan: Plan) -> list[Choice]:
    return [Choice(service, plan, n) for n in range(len(plan.requests))]


async def pieces(service: Service, plan: Plan, choices: Sequence[Choice]) -> AsyncIterator[tuple[int, Piece]]:
    """Yield (−1, an empty piece) when all requests are in the queue, then (number of a choice, its next piece).

    Ends when all choices have ended. Raises: ApiError.
    """
    if plan.seen and plan.seen.blocked:
        yield -1, Piece()
        for n, choice in enumerate(choices):
            yield n, choice.refuse(plan.seen.refusal)
        return
    finish = "cancelled"
    try:
        async with service.run(plan.requests) as run:
            yield -1, Piece()
            async for n, piece in _sampled(run, choices):
                yield n, piece
    except ApiError as error:
        finish = "timeout" if error.status == 408 else "error"
        raise
    finally:
        for choice in choices:
            choice.close(finish)


async def _sampled(run: Run, choices: Sequence[Choice]) -> AsyncIterator[tuple[int, Piece]]:
    left = set(range(len(choices)))
    while left:
        n, event = await run.next()
        if n not in left:
            continue
        piece = choices[n].feed(event)
        choices[n].cached = run.handles[n].times.cached
        if choices[n].finish:
            left.discard(n)
            run.end(n, choices[n].finish)
        yield n, piece


def usage(plan: Plan, choices: Sequence[Choice]) -> dict[str, Any]:
    count = sum(choice.count for choice in choices)
    return {
        "prompt_tokens": plan.prompt_tokens,
        "completion_tokens": count,
        "total_tokens": plan.prompt_tokens + count,
        "prompt_tokens_details": {"cached_tokens": sum(choice.cached for choice in choices)},
    }


def new_id(kind: str) -> tuple[str, int]:
    """Return (id of an answer, seconds since 1970)."""
    return f"{kind}-{uuid.uuid4().hex}", int(time.time())


def nats(value: float) -> float:
    return max(float(value), MIN)
