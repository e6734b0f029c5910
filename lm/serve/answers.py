"""From an API request to requests of the engine, and from its events to the choices of an answer."""

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from lm.infer.engine.request import Event, Likely, Request
from lm.serve import grammar
from lm.serve.errors import ApiError
from lm.serve.protocol import Sampled
from lm.serve.service import Exchange, Run, Service, timed_out
from lm.serve.text import Outlet, Piece, TextStream
from lm.serve.tools import Call

LEAST = -9999.0  # nats, instead of −∞, which is not JSON


class Plan(NamedTuple):
    """What an API request comes to. requests: one a continuation. stream: arguments of their TextStreams. prompt: as in
    Exchange. refusal: what is answered instead, if the guardrails refuse the prompt."""

    requests: list[Request]
    stream: dict[str, Any]
    prompt: Sequence[Any]
    prompt_tokens: int
    refusal: str | None = None


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


def grammar_of(body: Sampled) -> tuple[str, str] | None:
    """Return (grammar, the field that asks for it), or None. Raises: ApiError for several of them."""
    structured = body.structured_outputs
    asked: dict[str, str] = {}

    def add(field: str, value: Any, make, *args: Any) -> None:
        if value is not None:
            asked[field] = make(value, *args)

    add("guided_json", body.guided_json, grammar.json_grammar, "guided_json")
    add("guided_regex", body.guided_regex, grammar.regex_grammar)
    add("guided_choice", body.guided_choice, grammar.choice_grammar, "guided_choice")
    add("guided_grammar", body.guided_grammar, grammar.lark_grammar, "guided_grammar")
    if structured is not None:
        where = "structured_outputs"
        add(f"{where}.json", structured.json_, grammar.json_grammar, where)
        add(f"{where}.regex", structured.regex, grammar.regex_grammar)
        add(f"{where}.choice", structured.choice, grammar.choice_grammar, where)
        add(f"{where}.grammar", structured.grammar, grammar.lark_grammar, where)
        add(f"{where}.json_object", structured.json_object or None, lambda _: grammar.json_grammar(grammar.OBJECT, where))
    if len(asked) > 1:
        raise ApiError(400, f"{' and '.join(asked)}: ask for one form of the answer", param=next(iter(asked)))
    return next(((text, field) for field, text in asked.items()), None)


class Choice:
    """One continuation: its text so far, tokens, and why it ended (OpenAI's finish reasons, "" before)."""

    def __init__(self, service: Service, request: Request, stream: dict[str, Any], outlet: Outlet | None):
        self.request, self.finish = request, ""
        self.calls: list[Call] = []
        self.cached = 0  # prompt tokens that were in the prefix cache
        self.prompt: tuple[Likely | None, ...] = ()
        self.text, self.tokens = "", []
        self.said = ""  # the text without tool calls
        self._stream = TextStream(service.tokenizer, **stream, outlet=outlet)

    def refuse(self, text: str) -> Piece:
        """End with these words of the guardrails."""
        self.text, self.finish = text, "content_filter"
        return Piece(text)

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
        piece = self._stream.feed(event.tokens, event.likely, over=bool(event.finish), hidden=hidden)
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
        self.text += piece.text
        self.tokens += piece.tokens
        return piece

    def logprob(self) -> float:
        """Return the mean log-probability of the tokens, for best_of."""
        chosen = [token.likely.chosen for token in self.tokens if token.likely]
        return sum(chosen) / max(1, len(chosen))

    def _check_grammar(self) -> None:
        if self.finish and getattr(self.request.grammar, "error", ""):
            raise ApiError(
                400, f"the form of the answer became too complex: {self.request.grammar.error}", code="invalid_grammar"
            )


def choices_of(service: Service, plan: Plan, route: str, user: str) -> list[Choice]:
    guard = service.guard
    return [
        Choice(service, request, plan.stream, guard.outlet(route, plan.prompt, user) if guard else None)
        for request in plan.requests
    ]


async def pieces(service: Service, plan: Plan, choices: Sequence[Choice]) -> AsyncIterator[tuple[int, Piece]]:
    """Yield (−1, an empty piece) when all requests are in the queue, then (number of a choice, its next piece).

    Ends when all choices have ended. Raises: ApiError.
    """
    if plan.refusal is not None:
        yield -1, Piece()
        for n, choice in enumerate(choices):
            yield n, choice.refuse(plan.refusal)
        return
    async with service.run(plan.requests) as run:
        yield -1, Piece()
        async for n, piece in _sampled(run, choices):
            yield n, piece


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
            run.cancel(n)
        yield n, piece


def usage(plan: Plan, choices: Sequence[Choice]) -> dict[str, Any]:
    count = sum(choice.count for choice in choices)
    return {
        "prompt_tokens": plan.prompt_tokens,
        "completion_tokens": count,
        "total_tokens": plan.prompt_tokens + count,
        "prompt_tokens_details": {"cached_tokens": sum(choice.cached for choice in choices)},
    }


def exchange_of(
    service: Service, plan: Plan, choices: Sequence[Choice], *, id: str, route: str, user: str, begun: float
) -> Exchange:
    """Return a finished API request for the listeners."""
    return Exchange(
        id=id,
        route=route,
        model=service.name,
        adapter=plan.requests[0].adapter,
        user=user,
        prompt=plan.prompt,
        answers=[choice.said if route == "chat" else choice.text for choice in choices],
        calls=[[call.body() for call in choice.calls] for choice in choices],
        finishes=[choice.finish for choice in choices],
        prompt_tokens=plan.prompt_tokens,
        answer_tokens=sum(choice.count for choice in choices),
        likely=[[nats(token.likely.chosen) for token in choice.tokens if token.likely] for choice in choices],
        begun=begun,
        ended=time.monotonic(),
    )


def new_id(kind: str) -> tuple[str, int]:
    """Return (id of an answer, seconds since 1970)."""
    return f"{kind}-{uuid.uuid4().hex}", int(time.time())


def nats(value: float) -> float:
    return max(float(value), LEAST)
