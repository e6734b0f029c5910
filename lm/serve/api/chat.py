"""/v1/chat/completions: answer messages with the model's chat template, with tools and answers in a given form."""

import dataclasses
from collections.abc import AsyncIterator, Sequence
from typing import Any

from data.chat.messages import Messages
from data.chat.template import opens_thought
from lm.errors import UserError
from lm.infer.engine.request import Request, tiles_of
from lm.infer.prompts import Prompt, checked_messages, read_chat
from lm.serve.api.answers import Choice, Plan, Token, nats, new_head, pieces, seed_of, seen_by, settings_of, spelling, usage
from lm.serve.api.media import files_of
from lm.serve.api.protocol import EFFORTS, ApiError, ChatRequest, ToolChoice
from lm.serve.api.service import Service
from lm.serve.api.tools import MAX_CALLS, Call, Calls, declared, forced, joined

RESERVED = ("messages", "tools", "template", "continues", "add_generation_prompt", "tokenizer", "documents", "media", "towers")


def messages_of(service: Service, given: Sequence[dict[str, Any]]) -> Messages:
    """Return messages in the form of the templates. Raises: ApiError."""
    if service.no_chat:
        raise ApiError(400, f"this model takes no messages: {service.no_chat}", param="messages")
    service.check_count(len(given), "messages")
    try:
        messages = checked_messages(given, "messages", media=True)
    except UserError as error:
        raise ApiError(400, str(error), param="messages") from None
    if [message for message in messages if message.get("media")]:
        messages = files_of(messages, service.towers, service.limits.max_media, service.limits.media_bytes)
    for message, original in zip(messages, given):
        for call, named in zip(message.get("tool_calls") or (), original.get("tool_calls") or ()):
            if isinstance(named.get("id"), str):  # some templates write it
                call["id"] = named["id"]
    return messages


def prompt_of(
    service: Service, messages: Messages, tools: list[dict[str, Any]], extra: dict[str, Any], continues: bool = False
) -> Prompt:
    """Return the prompt of messages of `messages_of`; their media are decoded here. continues: the last one goes on.

    Raises: ApiError.
    """
    if taken := [key for key in extra if key in RESERVED or key.startswith("_")]:
        raise ApiError(400, f"chat_template_kwargs: {taken[0][:50]!r} is set by the server", param="chat_template_kwargs")
    if tools or [message for message in messages if message["role"] == "tool" or message.get("tool_calls")]:
        messages = declared(service.calls, messages, tools)
    if tools and service.calls.declared:
        extra = extra | {"tools": tools}
    try:
        prompt = read_chat(service.tokenizer, messages, service.template, service.towers, continues, **extra)
    except UserError as error:
        raise ApiError(400, str(error), param="messages") from None
    if prompt.media is not None:
        service.media.take(prompt.media)
    return prompt


def plan(service: Service, body: ChatRequest, user: str) -> Plan:
    """Return what the engine is asked: n requests. Raises: ApiError."""
    if body.n > service.limits.max_choices:
        raise ApiError(400, f"n: this server answers with at most {service.limits.max_choices} choices", param="n")
    if body.top_logprobs and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs", param="top_logprobs")
    if body.add_generation_prompt is body.continue_final_message:  # as in vLLM
        raise ApiError(400, "continue_final_message: true needs add_generation_prompt: false, and the other way round",
                       param="continue_final_message")  # fmt: skip
    if body.tool_choice not in (None, "none") and not body.tools:
        raise ApiError(400, "tool_choice needs tools", param="tool_choice")
    head, adapter = new_head(service, body, "chatcmpl"), service.adapter_of(body.model)
    messages = messages_of(service, body.messages)
    service.check_size([message["content"] for message in messages], "messages")
    service.check_size([tool.model_dump_json(exclude_none=True) for tool in body.tools], "tools")
    with seen_by(service, messages, head["id"], user, adapter, body.n) as seen:
        requests, stream = _asked(service, body, seen.messages if seen else messages)
        if seen:
            requests[0] = seen.with_logprobs(requests[0])
    prompt = requests[0].prompt
    begun = not (seen and seen.blocked) and opens_thought(service.tokenizer, prompt)  # a refusal is no thought
    return Plan(head, requests, stream, len(prompt), seen, begun)


def _asked(service: Service, body: ChatRequest, messages: Messages) -> tuple[list[Request], dict[str, Any]]:
    """Return the requests of the engine and the arguments of their TextStreams."""
    tools = tools_of(body) if body.tools else []
    extra, effort = body.chat_template_kwargs, body.reasoning_effort
    if effort:
        level = "low" if service.tokenizer.is_harmony and effort in ("none", "minimal") else effort  # it has three
        extra = {"reasoning_effort": level} | ({"enable_thinking": False} if effort == "none" else {}) | extra
    prompt = prompt_of(service, messages, tools, extra, body.continue_final_message)
    limit = body.max_completion_tokens or body.max_tokens or service.room(len(prompt.ids))
    if service.limits.max_new_tokens and limit > service.limits.max_new_tokens:
        field = "max_completion_tokens" if body.max_completion_tokens else "max_tokens"
        raise ApiError(400, f"{field}: this server answers with at most {service.limits.max_new_tokens}", param=field)
    if body.min_tokens > limit:
        raise ApiError(400, "min_tokens must not exceed max_tokens", param="min_tokens")
    settings = settings_of(service, body, prompt.stops)
    logprobs, media = body.top_logprobs if body.logprobs else -1, tiles_of(prompt.media) if prompt.media else ()
    base = service.prepared(Request(tuple(prompt.ids), limit, **settings, logprobs=logprobs, media=media))
    calls, form = "", None
    if tools and body.tool_choice not in (None, "auto"):
        parallel = body.parallel_tool_calls and body.tool_choice == "required"
        calls = forced(service.calls, tools, service.tokenizer, parallel)
    if calls or body.forms:
        form = service.grammars.make(body, base.stop_ids, calls)
    # In harmony the grammar of calls begins with the thought.
    if not (calls and service.tokenizer.is_harmony) and (form or effort or body.thinking_token_budget is not None):
        base = _with_budget(service, body, base)
    seeds = [seed_of(body.seed, choice) for choice in range(body.n)]
    requests = [dataclasses.replace(base, seed=seed, grammar=form and form.copy()) for seed in seeds]
    stream: dict[str, Any] = {"stops": body.stops, "keep_stop": body.include_stop_str_in_output, "least": body.min_tokens}
    if tools:  # the control symbols that calls are written with are text for the reader of calls
        around = service.calls.begin + service.calls.between + service.calls.end
        symbols = {i: symbol for i, symbol in service.symbols.items() if symbol.strip() and symbol in around}
        stream["spelled"] = {i: symbol.encode() for i, symbol in symbols.items()}
    return requests, stream


def _with_budget(service: Service, body: ChatRequest, request: Request) -> Request:
    """Return the request with the budget of its thought, if there is one or a form waits for the end of a thought.

    An effort leaves half of the tokens for the answer.
    """
    from lm.infer.engine.thought import budget_of

    most, tokens = request.max_new_tokens, body.thinking_token_budget
    if tokens is None and body.reasoning_effort:
        tokens = min(EFFORTS[body.reasoning_effort], most // 2)
    budget = budget_of(service.tokenizer, request.prompt, most if tokens is None else tokens)
    return request if tokens is None and not budget.begun else dataclasses.replace(request, thought=budget)


def tools_of(body: ChatRequest) -> list[dict[str, Any]]:
    """Return the tools that the model is told of; a named choice leaves only that one. Raises: ApiError."""
    tools = [] if body.tool_choice == "none" else [tool.model_dump(exclude_none=True) for tool in body.tools]
    if not isinstance(body.tool_choice, ToolChoice):
        return tools
    name = body.tool_choice.function.name
    named = [tool for tool in tools if tool["function"]["name"] == name]
    if not named:
        raise ApiError(400, f"tool_choice: no tool {name[:64]!r} among tools", param="tool_choice")
    return named[:1]


async def _said(
    service: Service, body: ChatRequest, plan: Plan, choices: Sequence[Choice]
) -> AsyncIterator[tuple[int, dict[str, Any], list[Call], Sequence[Token]]]:
    """Yield (number of a choice, its new texts by field of the message, calls, tokens); −1: when all are in the queue."""
    most = MAX_CALLS if body.parallel_tool_calls else 1
    readers = [Calls(service.calls, most, streams=True) if body.tools and body.tool_choice != "none" else None for _ in choices]
    async for n, piece in pieces(service, plan, choices):
        texts, calls = {}, []
        if n >= 0:
            choice, reader = choices[n], readers[n]
            thought, text = choice.divided(piece.text)
            if reader is not None:
                text, calls = reader.feed(text, over=bool(choice.finish))
                choice.calls = joined([*choice.calls, *calls])
            choice.said += text
            texts = {name: new for name, new in (("reasoning_content", thought), ("content", text)) if new}
            if choice.finish == "stop" and choice.calls and not isinstance(body.tool_choice, ToolChoice):
                choice.finish = "tool_calls"
        yield n, texts, calls, piece.tokens


async def whole(service: Service, body: ChatRequest, plan: Plan) -> dict[str, Any]:
    """Return the answer. Raises: ApiError."""
    choices = [Choice(service, plan, n) for n in range(len(plan.requests))]
    async for _ in _said(service, body, plan, choices):
        pass
    answers = []
    for n, choice in enumerate(choices):
        message: dict[str, Any] = {"role": "assistant", "content": choice.said, "refusal": None}
        if choice.thought:
            message |= {"content": choice.said or None, "reasoning_content": choice.thought}
        if choice.calls:
            message |= {"content": choice.said or None, "tool_calls": [call.body() for call in choice.calls]}
        logprobs = _logprobs(service, body, choice, choice.tokens) if body.logprobs else None
        answers.append({"index": n, "message": message, "logprobs": logprobs, "finish_reason": choice.finish})
    return plan.head | {"object": "chat.completion", "choices": answers, "usage": usage(plan, choices)}


async def chunks(service: Service, body: ChatRequest, plan: Plan) -> AsyncIterator[dict[str, Any] | None]:
    """Yield the chunks of the answer, the first one when the requests are in the queue. Raises: ApiError."""
    choices = [Choice(service, plan, n) for n in range(len(plan.requests))]
    head, options = plan.head | {"object": "chat.completion.chunk"}, body.stream_options

    def chunk(n: int, delta: dict[str, Any], logprobs: Any = None, finish: str | None = None) -> dict[str, Any]:
        counts = {"usage": usage(plan, choices)} if options and options.continuous_usage_stats else {}
        return head | {"choices": [{"index": n, "delta": delta, "logprobs": logprobs, "finish_reason": finish}]} | counts

    async for n, texts, calls, tokens in _said(service, body, plan, choices):
        if n < 0:
            for number in range(len(choices)):
                yield chunk(number, {"role": "assistant", "content": ""})
            continue
        choice = choices[n]
        delta: dict[str, Any] = dict(texts)
        if calls:
            ids = [call.id for call in choice.calls]
            delta["tool_calls"] = [{"index": ids.index(call.id), **call.body()} for call in calls]
        if delta or (tokens and body.logprobs):
            yield chunk(n, delta, _logprobs(service, body, choice, tokens) if body.logprobs else None)
        if choice.finish:
            yield chunk(n, {}, None, choice.finish)
    if options and options.include_usage:
        yield head | {"choices": [], "usage": usage(plan, choices)}


def _logprobs(service: Service, body: ChatRequest, choice: Choice, tokens: Sequence[Token]) -> dict[str, Any]:
    """Return OpenAI's list of tokens; not the one that ended the answer, which is no part of it.

    The bytes of a control symbol are null, because it is no part of the text.
    """

    def entry(i: int, value: float) -> dict[str, Any]:
        text, raw = spelling(service.tokenizer, service.symbols, i)
        return {"token": text, "logprob": nats(value), "bytes": None if i in service.symbols else list(raw)}

    shown = [token for token in tokens if token.likely and token.id not in choice.request.stop_ids]
    content = [
        entry(token.id, token.likely.chosen) | {"top_logprobs": [entry(*one) for one in token.likely.top[: body.top_logprobs]]}
        for token in shown
    ]
    return {"content": content, "refusal": None}
