"""Messages, the kinds of examples that are made of them, and the conversion of published message formats.

A message has what data/chat/template.py reads: a role, plain text content, tool calls, media. It comes from a list of OpenAI
messages (role, content) or ShareGPT messages (from, value), or from a transcript of HH-RLHF.
"""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from data.media.parts import Medium, text_and_media
from lm.errors import UserError

Messages = list[dict[str, Any]]


class Conversation(NamedTuple):
    """A conversation; the assistant's turns are trained."""

    messages: Messages
    tools: list[dict] | None = None


class Pair(NamedTuple):
    """Two continuations of `prompt`. margin: how much better `chosen` is, 0 if unknown."""

    prompt: Messages
    chosen: Messages
    rejected: Messages
    margin: float = 0.0
    tools: list[dict] | None = None


class Labelled(NamedTuple):
    """A continuation of `prompt`, and whether it is desirable."""

    prompt: Messages
    completion: Messages
    desirable: bool
    tools: list[dict] | None = None


class Steps(NamedTuple):
    """An answer in steps, and whether each step is right."""

    prompt: Messages
    steps: list[str]
    labels: list[bool]


class Task(NamedTuple):
    """A prompt to answer. columns: data for the rewards, and `tools` if there are any."""

    prompt: Messages
    columns: dict[str, Any]


Example = Conversation | Pair | Labelled | Steps | Task

# OpenAI's names, in the key `role`. `function` is its older name of `tool`.
ROLES = {
    "system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool", "function": "tool",
}  # fmt: skip
# ShareGPT's names, in the key `from`.
SPEAKERS = ROLES | {
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "model", "function_call"), "assistant"),
    **dict.fromkeys(("ipython", "observation", "function_response", "tool_response"), "tool"),
}
CALLED = "function_call"  # ShareGPT's role of a turn that only calls a tool
# What other names may mean, for errors.
MEANT = SPEAKERS | {
    **dict.fromkeys(("customer", "client", "person", "me", "question"), "user"),
    **dict.fromkeys(("bot", "chatbot", "ai", "agent", "llm", "support", "answer"), "assistant"),
}
KEPT = ("name", "tool_call_id", "reasoning_content")


def is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def make_message(role: str, content: str | list[dict[str, Any]]) -> dict[str, Any]:
    return {"role": role, "content": content}


def messages_of(items: Sequence, where: str, media: bool = False) -> Messages:
    """Convert a list of OpenAI or ShareGPT messages.

    media: whether a message may have images and audio. They are in its key `media` as data/media/parts.py has them, with
    placeholders in its content.
    Raises: UserError for an item that is no message, an unknown role, other content than this, or a call without a name.
    """
    return [_message(item, f"{where}: message {n}", media) for n, item in enumerate(items, start=1)]


def _message(item: Any, where: str, media: bool) -> dict[str, Any]:
    if not isinstance(item, Mapping) or not ("role" in item or "from" in item):
        raise UserError(f"{where} is no object with a role and a content; write one like that")
    names = ROLES if "role" in item else SPEAKERS
    name = str(item.get("role", item.get("from"))).strip().lower()
    if name not in names:
        near = MEANT.get(name) or next(iter(difflib.get_close_matches(name, ROLES, n=1)), None)
        hint = f"; did you mean {near}?" if near else ""
        raise UserError(f"{where} has the role {name!r}; roles are {' '.join(names)}{hint}")
    (content, found), calls = _content(item.get("content", item.get("value")), where, media), item.get("tool_calls")
    if name == CALLED:
        content, calls = "", [parsed(content, Mapping, where)]
    elif not calls and item.get("function_call"):
        calls = [item["function_call"]]
    message = make_message(names[name], content)
    if found:
        message["media"] = found
    if calls:
        message["tool_calls"] = [_call(call, where) for call in calls]
    return message | {key: item[key] for key in KEPT if item.get(key)}


def _content(content: Any, where: str, media: bool) -> tuple[str, list[Medium]]:
    found = ("", []) if content is None else text_and_media(content, where)  # None is usual if there are tool calls
    if found is None or (found[1] and not media):
        raise UserError(f"{where} has content that is not only text ({type(content).__name__}); leave the record out")
    return found


def _call(call: Any, where: str) -> dict[str, Any]:
    """Return a tool call with its arguments as an object, as templates need it; APIs send JSON text."""
    function = call.get("function") or call if isinstance(call, Mapping) else {}
    if not isinstance(function.get("name"), str):
        raise UserError(f"{where} has a tool call without a name; write {{'function': {{'name': …, 'arguments': …}}}}")
    arguments = parsed(function.get("arguments") or {}, Mapping, where)
    return {"type": "function", "function": {"name": function["name"], "arguments": dict(arguments)}}


def parsed(value: Any, kind: type, where: str) -> Any:
    """Return the value, parsed if it is JSON text. Raises: UserError if it is not of type `kind`."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise UserError(f"{where}: tools or a tool call are not JSON ({error}); write JSON there") from None
    if not isinstance(value, kind) or isinstance(value, str):
        raise UserError(f"{where}: tools must be a list; a tool call and its arguments must be objects")
    return value


_BEGINS = re.compile(r"\s*Human:|\n\nAssistant:")
_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")


def is_transcript(value: Any) -> bool:
    return isinstance(value, str) and _BEGINS.match(value) is not None


def transcript(text: str) -> Messages:
    """Parse "\\n\\nHuman: …\\n\\nAssistant: …" (Bai et al. 2022); consecutive turns of one side are merged."""
    parts = _TURN.split(text)
    messages: Messages = []
    for side, words in zip(parts[1::2], parts[2::2]):
        turn = make_message(SPEAKERS[side.lower()], words.strip())
        if messages and messages[-1]["role"] == turn["role"]:
            turn["content"] = f"{messages.pop()['content']}\n\n{turn['content']}".strip()
        messages.append(turn)
    return messages


def without_answer(messages: Messages) -> Messages:
    """Return the messages without the assistant's turns at the end."""
    end = len(messages)
    while end and messages[end - 1]["role"] == "assistant":
        end -= 1
    return messages[:end]


def says_something(message: Mapping) -> bool:
    return bool(message["content"].strip() or message.get("tool_calls"))
