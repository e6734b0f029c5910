"""Calls of tools as a model writes them in its turn: parsed from its tokens, checked against schemas, and answered.

Bad model output raises no error here. The answer tells the model about its mistake.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from data.chat.harmony import spelled
from data.chat.thoughts import divided
from data.text.tokenizer import Tokenizer

MAX = 2000  # characters of an answer; a longer one loses its middle
OURS, HERMES = "<|tool|>", ("<tool_call>", "</tool_call>")
ERROR = "error: "
KINDS: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "array": list,
    "object": dict,
}


class Answer(NamedTuple):
    """The text that a model gets for a call. failed: whether the call failed."""

    text: str
    failed: bool = False


class Turn(NamedTuple):
    """An assistant's turn. tool_calls: in message format. errors: error texts of calls that could not be parsed."""

    content: str
    tool_calls: list[dict[str, Any]]
    errors: list[str]


def shortened(text: str) -> str:
    """Return a text without its middle if it is longer than MAX characters."""
    return text if len(text) <= MAX else f"{text[: MAX // 2]}\n…\n{text[-MAX // 2 :]}"


def mistake(function: Mapping[str, Any], named: Mapping[str, Any]) -> str:
    """Return the error text of a call that does not match its tool's schema, else ""."""
    if function["name"] not in named:
        return f"there is no tool {function['name']!r}, only {', '.join(named)}"
    parameters = named[function["name"]].schema["function"].get("parameters") or {}
    properties, arguments = parameters.get("properties") or {}, function["arguments"]
    if missing := [name for name in parameters.get("required", ()) if name not in arguments]:
        return f"{function['name']} needs the argument {missing[0]!r}"
    if unknown := [name for name in arguments if name not in properties]:
        return f"{function['name']} has no argument {unknown[0]!r}, only {', '.join(properties)}"
    for name, value in arguments.items():
        kind = properties[name].get("type") if isinstance(properties[name], Mapping) else None  # a schema may be just `true`,
        kinds = KINDS.get(kind) if isinstance(kind, str) else None  # and its type a list
        if kinds and (not isinstance(value, kinds) or isinstance(value, bool) and kind != "boolean"):
            return f"the argument {name!r} of {function['name']} must be of type {kind}"
    return ""


def parse_turn(tokenizer: Tokenizer, ids: Sequence[int]) -> Turn:
    """Parse the sampled ids of an assistant's turn, with or without its end symbol.

    A call is a JSON object {"name", "arguments"}. If the tokenizer has the symbol <|tool|> (our template), a call follows it
    and ends at the next <|tool|> or the end. In harmony it has a channel. Otherwise calls are inside
    <tool_call> … </tool_call> (Hermes, Qwen).
    """
    ids = [int(i) for i in ids]
    if OURS in tokenizer.controls:
        begins = [n for n, i in enumerate(ids) if i == tokenizer.controls[OURS]]
        parts = [tokenizer.decode(ids[a:b]) for a, b in zip([0, *(n + 1 for n in begins)], [*begins, len(ids)])]
        return _turn(parts[0], parts[1:], [])
    if tokenizer.is_harmony:
        return parse_text(divided(spelled(tokenizer, ids, begun=True), begun=True)[1])
    return parse_text(_decoded(tokenizer, ids, HERMES))


def parse_text(text: str) -> Turn:
    """Parse the text of a turn whose calls are inside <tool_call> … </tool_call>."""
    begin, end = HERMES
    content, *parts = text.split(begin)
    ended = [part.split(end)[0] for part in parts if end in part]
    errors = [f"a call was not ended with {end}"] * (len(parts) - len(ended))
    return _turn(content.removesuffix("\n") if parts else content, ended, errors)


def _turn(content: str, written: Sequence[str], errors: list[str]) -> Turn:
    calls = []
    for text in written:
        function = _function(text)
        if isinstance(function, str):
            errors.append(function)
        else:
            calls.append({"type": "function", "function": function})
    return Turn(content, calls, errors)


def _function(text: str) -> dict[str, Any] | str:
    """Return {"name", "arguments"}, or an error text."""
    try:
        function = json.loads(text)
        if isinstance(function, dict) and isinstance(function.get("arguments"), str):
            function["arguments"] = json.loads(function["arguments"])
    except (ValueError, RecursionError) as error:
        return f"the call is not JSON ({error})"
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return 'a call must be {"name": …, "arguments": {…}}'
    arguments = function.get("arguments", {})
    if not isinstance(arguments, dict):
        return "the arguments of a call must be an object"
    return {"name": function["name"], "arguments": arguments}


def _decoded(tokenizer: Tokenizer, ids: Sequence[int], spelled: Sequence[str]) -> str:
    """Decode ids to text, and keep the control symbols in `spelled`."""
    kept = {tokenizer.controls[symbol]: symbol for symbol in spelled if symbol in tokenizer.controls}
    text, since = "", 0
    for n, i in enumerate(ids):
        if i in kept:
            text, since = text + tokenizer.decode(ids[since:n]) + kept[i], n + 1
    return text + tokenizer.decode(ids[since:])
