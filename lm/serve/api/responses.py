"""/v1/responses: OpenAI's newer form of a chat, in its common part: texts, images, functions, answers in a given form, streams.

A request becomes one of /v1/chat/completions, and its answer items of output. Nothing is stored, so `previous_response_id` is
refused: a client sends the whole conversation as `input`.
"""

import contextlib
import itertools
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from lm.serve.api import chat
from lm.serve.api.answers import Plan
from lm.serve.api.protocol import ApiError, ChatRequest, ResponseRequest, parsed
from lm.serve.api.service import Service

# Field of a chat: of a response.
FIELDS = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text",
    "reasoning_effort": "reasoning",
}
TEXTS = {"message": "output_text", "reasoning": "reasoning_text"}  # type of an item: of the part with its text
SHOWN = {"instructions", "max_output_tokens", "temperature", "top_p", "tools", "parallel_tool_calls"}  # in a response
INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}  # finish of a choice: reason
IDS = {"message": "msg", "function_call": "fc", "reasoning": "rs"}  # how those of an item begin
SAME = ("model", "temperature", "top_p", "stream", "parallel_tool_calls", "user")


class Asked(ChatRequest):
    """The chat that a request becomes."""

    response: ResponseRequest


def asked(body: ResponseRequest) -> Asked:
    """Return the chat of a request. Raises: ApiError."""
    if body.previous_response_id:
        message = "previous_response_id: this server stores no responses; send the conversation as input"
        raise ApiError(400, message, param="previous_response_id")
    choice, form = body.tool_choice, dict(body.text.get("format") or {"type": "text"})
    if isinstance(choice, Mapping):
        choice = {"type": choice.get("type"), "function": {"name": choice.get("name")}}
    fields = {name: getattr(body, name) for name in SAME if name in body.model_fields_set} | {
        "response": body,
        "messages": _messages(body),
        "max_completion_tokens": body.max_output_tokens,
        "tools": [
            {"type": tool.get("type"), "function": {k: v for k, v in tool.items() if k != "type"}} for tool in body.tools
        ],
        "tool_choice": choice,
        "reasoning_effort": body.reasoning.get("effort"),
        "response_format": {"type": form.pop("type", None), "json_schema": form or None},
        "stream_options": {"include_usage": True},
    }
    with _own_names():
        return parsed(Asked, fields)


def _messages(body: ResponseRequest) -> list[dict[str, Any]]:
    """Return the messages of a chat. Raises: ApiError for an item of another type."""
    found = [{"role": "system", "content": body.instructions}] if body.instructions else []
    for item in [{"role": "user", "content": body.input}] if isinstance(body.input, str) else body.input:
        kind, content = item.get("type", "message"), item.get("content")
        if kind == "message":
            found.append(
                {"role": item.get("role"), "content": [*map(_part, content)] if isinstance(content, list) else content}
            )
        elif kind == "function_call":
            if not found or found[-1]["role"] != "assistant":
                found.append({"role": "assistant", "content": ""})
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            found[-1].setdefault("tool_calls", []).append({"id": item.get("call_id"), "type": "function", "function": function})
        elif kind == "function_call_output":
            found.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")})
        elif kind != "reasoning":  # of another model, which this one does not read
            raise ApiError(400, f"input: items of type {str(kind)[:50]!r} are not taken", param="input")
    return found


def _part(part: Any) -> Any:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in ("input_text", "output_text"):
        return {"type": "text", "text": part.get("text")}
    return {"type": "image_url", "image_url": {"url": part.get("image_url")}} if kind == "input_image" else part


@contextlib.contextmanager
def _own_names() -> Iterator[None]:
    """Name the fields of a response in an ApiError of the block about a chat."""
    try:
        yield
    except ApiError as error:
        own = FIELDS.get(error.param or "")
        if own is None:
            raise
        message = f"{own}: {error.message.removeprefix(f'{error.param}: ')}"
        raise ApiError(error.status, message, param=own, code=error.code) from None


def plan(service: Service, request: Asked, user: str) -> Plan:
    """Return what the engine is asked. Raises: ApiError."""
    with _own_names():
        return chat.plan(service, request, user)


async def whole(service: Service, request: Asked, plan: Plan) -> dict[str, Any]:
    """Return the answer. Raises: ApiError."""
    return [event async for event in chunks(service, request, plan)][-1]["response"]


async def chunks(service: Service, request: Asked, plan: Plan) -> AsyncIterator[dict[str, Any]]:
    """Yield the events of the answer, the first one when the request is in the queue. Raises: ApiError."""
    output: list[dict[str, Any]] = []
    finish, usage, numbers = "", None, itertools.count()

    def event(kind: str, **fields: Any) -> dict[str, Any]:
        return {"type": f"response.{kind}", "sequence_number": next(numbers), **fields}

    async with contextlib.aclosing(chat.chunks(service, request, plan)) as found:
        await anext(found)  # only says that the assistant begins
        for kind in ("created", "in_progress"):
            yield event(kind, response=_response(request, plan, [], "", None))
        async for chunk in found:
            usage = chunk.get("usage") or usage
            for choice in chunk["choices"]:
                finish = choice["finish_reason"] or finish
                for kind, fields in _grown(output, choice["delta"]):
                    yield event(kind, **fields)
    for kind, fields in _ended(output):
        yield event(kind, **fields)
    last = _response(request, plan, output, finish, usage)
    yield event(last["status"], response=last)


def _grown(output: list[dict[str, Any]], delta: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Add a piece of a chat's stream to the output, and yield (kind, fields) of the events that tell of it."""
    for kind, text in (("reasoning", delta.get("reasoning_content")), ("message", delta.get("content"))):
        if not text:
            continue
        own = {"annotations": [], "logprobs": []} if kind == "message" else {}
        if not output or output[-1]["type"] != kind:
            part = {"type": TEXTS[kind], "text": "", **own}
            about = {"role": "assistant"} if kind == "message" else {"summary": []}
            yield from _begun(output, kind, content=[part], **about)
            yield "content_part.added", _place(output) | {"part": dict(part)}
        output[-1]["content"][0]["text"] += text
        logprobs = {"logprobs": []} if kind == "message" else {}
        yield f"{TEXTS[kind]}.delta", _place(output) | {"delta": text} | logprobs
    for call in delta.get("tool_calls") or ():
        if "id" in call:
            name = call["function"]["name"]
            yield from _begun(output, "function_call", call_id=call["id"], name=name, arguments="")
        output[-1]["arguments"] += call["function"]["arguments"]
        yield "function_call_arguments.delta", _place(output) | {"delta": call["function"]["arguments"]}


def _begun(output: list[dict[str, Any]], kind: str, **own: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Add an item, and yield the events that tell of the end of the one before and of its beginning."""
    yield from _ended(output)
    output.append({"type": kind, "id": f"{IDS[kind]}_{uuid.uuid4().hex}", "status": "completed", **own})
    shown = output[-1] | {"status": "in_progress"} | ({"content": []} if kind in TEXTS else {})
    yield "output_item.added", {"output_index": len(output) - 1, "item": shown}


def _ended(output: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the events that tell of the end of the last item, if there is one."""
    for item in output[-1:]:
        if item["type"] in TEXTS:
            (part,) = item["content"]
            logprobs = {"logprobs": []} if item["type"] == "message" else {}
            yield f"{part['type']}.done", _place(output) | {"text": part["text"]} | logprobs
            yield "content_part.done", _place(output) | {"part": part}
        else:
            yield "function_call_arguments.done", _place(output) | {key: item[key] for key in ("name", "arguments")}
        yield "output_item.done", {"output_index": len(output) - 1, "item": item}


def _place(output: list[dict[str, Any]]) -> dict[str, Any]:
    part = {"content_index": 0} if output[-1]["type"] in TEXTS else {}
    return {"item_id": output[-1]["id"], "output_index": len(output) - 1} | part


def _response(request: Asked, plan: Plan, output: list, finish: str, usage: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the object of a response. finish: of the chat's choice; "": it goes on."""
    reason, body = INCOMPLETE.get(finish), request.response
    status = ("incomplete" if reason else "completed") if finish else "in_progress"
    counts = usage and {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": usage["prompt_tokens_details"],
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": usage["completion_tokens_details"],
        "total_tokens": usage["total_tokens"],
    }
    return body.model_dump(include=SHOWN) | {
        "id": f"resp_{plan.head['id'].rpartition('-')[2]}",
        "object": "response",
        "created_at": plan.head["created"],
        "model": plan.head["model"],
        "status": status,
        "error": None,
        "incomplete_details": {"reason": reason} if reason else None,
        "output": list(output),
        "tool_choice": body.tool_choice or "auto",
        "text": {"format": body.text.get("format") or {"type": "text"}},
        "store": False,
        "usage": counts,
    }
