"""/v1/completions: continue texts or token ids, with OpenAI's scoring of prompts (echo, logprobs)."""

import dataclasses
from collections.abc import AsyncIterator, Sequence
from typing import Any

from data.chat.messages import make_message
from lm.infer.engine.request import Likely, Request
from lm.serve.api import answers
from lm.serve.api.answers import Choice, Plan, Token, nats, new_head, pieces, seed_of, seen_by, settings_of, spelling, usage
from lm.serve.api.protocol import ApiError, CompletionRequest
from lm.serve.api.service import Service


def plan(service: Service, body: CompletionRequest, user: str) -> Plan:
    """Return what the engine is asked: `best_of` requests for each prompt in turn. Raises: ApiError."""
    best_of, prompts = body.best_of or body.n, body.prompts
    if body.suffix:
        raise ApiError(400, "suffix: this server continues a prompt, it does not fill in text before a suffix", param="suffix")
    if best_of < body.n or (body.stream and best_of > body.n):
        raise ApiError(400, "best_of must be at least n, and with stream equal to it", param="best_of")
    if not prompts or len(prompts) * best_of > service.limits.max_choices:
        most = service.limits.max_choices
        raise ApiError(
            400, f"{len(prompts)} prompts × {best_of} continuations: ask for 1…{most} in one request", param="prompt"
        )
    if not body.max_tokens and not body.echo:
        raise ApiError(400, "max_tokens: 0 only scores the prompt: set echo too, or ask for a token", param="max_tokens")
    most = service.limits.max_new_tokens
    if most and body.max_tokens > most:
        raise ApiError(400, f"max_tokens: this server answers with at most {most}", param="max_tokens")
    if body.min_tokens > max(1, body.max_tokens):
        raise ApiError(400, "min_tokens must not exceed max_tokens", param="min_tokens")
    for prompt in prompts:
        service.check_size([prompt], "prompt")
    tokenizer, wanted = service.tokenizer, -1 if body.logprobs is None else body.logprobs
    texts = [text if isinstance(text, str) else answers.TextStream(tokenizer).feed(text, over=True).text for text in prompts]
    messages, head = [make_message("user", text) for text in texts], new_head(service, body, "cmpl")
    settings = settings_of(service, body, tokenizer.stop_ids)
    with seen_by(service, messages, head["id"], user, settings["adapter"], len(prompts) * best_of) as seen:
        if seen:  # spans of a prompt may be masked
            prompts = [m["content"] if m["content"] != text else p for m, text, p in zip(seen.messages, texts, prompts)]
        ids = [tuple(tokenizer.prompt_ids(prompt) if isinstance(prompt, str) else prompt) for prompt in prompts]
        base = Request(
            ids[0],
            max(1, body.max_tokens),
            **settings,
            logprobs=max(0, wanted) if best_of > body.n else wanted,
            prompt_logprobs=wanted if body.echo else -1,
        )
        form = service.grammars.make(body, base.stop_ids) if body.forms else None
        requests = []
        for prompt in ids:
            for choice in range(best_of):
                seed, own = seed_of(body.seed, choice), form and form.copy()
                requests.append(service.prepared(dataclasses.replace(base, prompt=prompt, seed=seed, grammar=own)))
        if seen:
            requests[0] = seen.with_logprobs(requests[0])
    stream = {"stops": body.stops, "keep_stop": body.include_stop_str_in_output, "least": body.min_tokens}
    return Plan(head, requests, stream, sum(map(len, ids)), seen)


async def whole(service: Service, body: CompletionRequest, plan: Plan) -> dict[str, Any]:
    """Return the answer. Raises: ApiError."""
    choices = [Choice(service, plan, n) for n in range(len(plan.requests))]
    async for _ in pieces(service, plan, choices):
        pass
    bodies, kept, best_of = [], [], body.best_of or body.n
    for first in range(0, len(choices), best_of):
        some = choices[first : first + best_of]
        kept += sorted(some, key=Choice.logprob, reverse=True)[: body.n] if best_of > body.n else some
    for n, choice in enumerate(kept):
        before, likely = _echoed(service, body, choice)
        text, tokens = (choice.text, choice.tokens) if body.max_tokens else ("", [])
        likely += [token._replace(begin=token.begin + len(before)) for token in tokens]
        finish = choice.finish if body.max_tokens or choice.finish == "content_filter" else "length"
        bodies.append(_choice(service, body, n, before + text, likely, finish))
    return plan.head | {"object": "text_completion", "choices": bodies, "usage": _usage(body, plan, choices)}


async def chunks(service: Service, body: CompletionRequest, plan: Plan) -> AsyncIterator[dict[str, Any] | None]:
    """Yield None when the requests are in the queue, then the chunks of the answer. Raises: ApiError."""
    choices = [Choice(service, plan, n) for n in range(len(plan.requests))]
    head, options = plan.head | {"object": "text_completion"}, body.stream_options
    lengths: dict[int, int] = {}  # of the prompts that were echoed
    async for n, piece in pieces(service, plan, choices):
        if n < 0:
            yield None
            continue
        choice, (text, tokens) = choices[n], piece if body.max_tokens else ("", ())
        before: list[Token] = []
        if n not in lengths:
            prompt, before = _echoed(service, body, choice)
            lengths[n], text = len(prompt), prompt + text
        if not (text or tokens or before or choice.finish):
            continue
        shown = before + [token._replace(begin=token.begin + lengths[n]) for token in tokens]
        finish = (choice.finish if body.max_tokens or choice.finish in ("", "content_filter") else "length") or None
        counts = {"usage": _usage(body, plan, choices)} if options and options.continuous_usage_stats else {}
        yield head | {"choices": [_choice(service, body, n, text, shown, finish)]} | counts
    if options and options.include_usage:
        yield head | {"choices": [], "usage": _usage(body, plan, choices)}


def _usage(body: CompletionRequest, plan: Plan, choices: Sequence[Choice]) -> dict[str, Any]:
    counts = usage(plan, choices)
    return counts if body.max_tokens else counts | {"completion_tokens": 0, "total_tokens": plan.prompt_tokens}


def _echoed(service: Service, body: CompletionRequest, choice: Choice) -> tuple[str, list[Token]]:
    """Return the text and the tokens of the prompt, if the answer repeats it."""
    if not body.echo:
        return "", []
    likely: Sequence[Likely | None] = choice.prompt or [None] * len(choice.request.prompt)
    text, tokens = answers.TextStream(service.tokenizer).feed(choice.request.prompt, likely, over=True)
    return text, list(tokens)


def _choice(
    service: Service, body: CompletionRequest, n: int, text: str, tokens: Sequence[Token], finish: str | None
) -> dict[str, Any]:
    logprobs = None if body.logprobs is None else _logprobs(service, tokens, body.logprobs)
    return {"index": n, "text": text, "logprobs": logprobs, "finish_reason": finish}


def _logprobs(service: Service, tokens: Sequence[Token], count: int) -> dict[str, list]:
    """Return OpenAI's lists: tokens, their log-probabilities, the likeliest tokens by text, and where each begins in the text.

    The sampled token is always among `top_logprobs`. Of tokens with the same text, it has the likelier one.
    """
    found: dict[str, list] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for token in tokens:
        name = spelling(service.tokenizer, service.symbols, token.id)[0]
        found["tokens"].append(name)
        found["text_offset"].append(token.begin)
        if token.likely is None:
            found["token_logprobs"].append(None)
            found["top_logprobs"].append(None)
            continue
        top: dict[str, float] = {}
        for i, value in (*token.likely.top[:count], (token.id, token.likely.chosen)):
            other = spelling(service.tokenizer, service.symbols, i)[0]
            top[other] = max(nats(value), top.get(other, nats(value)))
        found["token_logprobs"].append(nats(token.likely.chosen))
        found["top_logprobs"].append(top)
    return found
