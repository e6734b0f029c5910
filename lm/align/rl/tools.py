"""Tools that a policy may call in a rollout: parse calls from sampled tokens, run them, and encode their answers.

Bad model output raises no error here. The tool's answer tells the model about its mistake, and the failure is counted.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from data.chat.messages import Messages, make_message
from data.chat.template import encode_chat, end_of_turn
from data.tasks.arithmetic import CALCULATOR
from lm.align.rl.calculator import calculate
from lm.errors import UserError
from lm.sandbox.run import Result, run_many

PYTHON = {
    "type": "function",
    "function": {
        "name": "python",
        "description": "Runs a Python program, from nothing, and answers what it prints and the value of its last line.",
        "parameters": {"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]},
    },
}
SECONDS, MEMORY_MIB = 5.0, 256  # limits of a program
MAX = 2000  # characters of an answer; a longer one loses its middle

OURS, HERMES = "<|tool|>", ("<tool_call>", "</tool_call>")
ERROR = "error: "
KINDS = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "array": list, "object": dict}


class Answer(NamedTuple):
    """The text that a model gets for a call. failed: whether the call failed."""

    text: str
    failed: bool = False


class Tool(NamedTuple):
    """schema: description for the model in OpenAI's format. run: takes the arguments of many calls, returns their answers."""

    schema: dict[str, Any]
    run: Callable[[list[dict[str, Any]]], list[Answer]]

    @property
    def name(self) -> str:
        return self.schema["function"]["name"]


class Turn(NamedTuple):
    """An assistant's turn. tool_calls: in message format. errors: error texts of calls that could not be parsed."""

    content: str
    tool_calls: list[dict[str, Any]]
    errors: list[str]


def _calculator(calls: list[dict[str, Any]]) -> list[Answer]:
    def answer(expression: str) -> Answer:
        try:
            return Answer(calculate(expression))
        except ValueError as error:
            return Answer(f"{ERROR}{error}", True)

    return [answer(call["expression"]) for call in calls]


def _python(calls: list[dict[str, Any]]) -> list[Answer]:
    results = run_many([call["code"] for call in calls], timeout=SECONDS, memory_mib=MEMORY_MIB)
    return [Answer(shortened(_output_text(result)), result.outcome != "ok") for result in results]


def _output_text(result: Result) -> str:
    parts = [result.stdout, result.value]
    if result.outcome != "ok":
        parts[1:] = [f"{ERROR}{result.outcome}", result.stderr]
    return "\n".join(part.rstrip("\n") for part in parts if part) or "(no output)"


def shortened(text: str) -> str:
    """Return a text without its middle if it is longer than MAX characters."""
    return text if len(text) <= MAX else f"{text[: MAX // 2]}\n…\n{text[-MAX // 2 :]}"


TOOLS = {tool.name: tool for tool in (Tool(CALCULATOR, _calculator), Tool(PYTHON, _python))}


def open_tools(names: Sequence[str]) -> tuple[Tool, ...]:
    """Return the tools of these names, without duplicates. Raises: UserError for an unknown name."""
    for name in names:
        if name not in TOOLS:
            raise UserError(f"rollout.tools: no tool {name!r}; there are {', '.join(TOOLS)}")
    return tuple(TOOLS[name] for name in dict.fromkeys(names))


def run_calls(tools: Sequence[Tool], calls: Sequence[Sequence[Mapping[str, Any] | str]]) -> list[list[Answer]]:
    """Run the calls of many rollouts, batched by tool, and return their answers in the same structure.

    calls: per rollout, its calls in order: {"name", "arguments"}, or the error text of `parse_turn`. All hosts get the answers
    of the first, because programs may not be deterministic.
    """
    if not any(calls):
        return [[] for _ in calls]
    from lm.parallel.hosts import from_first  # here, because JAX comes with it

    return from_first(lambda: _run_calls(tools, calls))


def _run_calls(tools: Sequence[Tool], calls: Sequence[Sequence[Mapping[str, Any] | str]]) -> list[list[Answer]]:
    named = {tool.name: tool for tool in tools}
    answers: list[list[Answer]] = [[Answer("")] * len(row) for row in calls]
    todo: dict[str, list[tuple[int, int]]] = {name: [] for name in named}
    for i, row in enumerate(calls):
        for j, one in enumerate(row):
            wrong = one if isinstance(one, str) else mistake(one, named)
            if wrong:
                answers[i][j] = Answer(shortened(f"{ERROR}{wrong}"), True)
            else:
                todo[one["name"]].append((i, j))
    for name, places in todo.items():
        if places:
            given = [dict(calls[i][j]["arguments"]) for i, j in places]
            for (i, j), answer in zip(places, named[name].run(given), strict=True):
                answers[i][j] = answer
    return answers


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


def parse_turn(tokenizer, ids: Sequence[int]) -> Turn:
    """Parse the sampled ids of an assistant's turn, with or without its end symbol.

    A call is a JSON object {"name", "arguments"}. If the tokenizer has the symbol <|tool|> (our template), a call follows it
    and ends at the next <|tool|> or the end. Otherwise calls are inside <tool_call> … </tool_call> (Hermes, Qwen).
    """
    ids = [int(i) for i in ids]
    if OURS in tokenizer.controls:
        begins = [n for n, i in enumerate(ids) if i == tokenizer.controls[OURS]]
        parts = [tokenizer.decode(ids[a:b]) for a, b in zip([0, *(n + 1 for n in begins)], [*begins, len(ids)])]
        return _turn(parts[0], parts[1:], [])
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


def _decoded(tokenizer, ids: Sequence[int], spelled: Sequence[str]) -> str:
    """Decode ids to text, and keep the control symbols in `spelled`."""
    kept = {tokenizer.controls[symbol]: symbol for symbol in spelled if symbol in tokenizer.controls}
    text, since = "", 0
    for n, i in enumerate(ids):
        if i in kept:
            text, since = text + tokenizer.decode(ids[since:n]) + kept[i], n + 1
    return text + tokenizer.decode(ids[since:])


def answer_ids(tokenizer, answers: Sequence[str], template: str | None = None) -> list[int]:
    """Return the ids that follow the end symbol of a turn with tool calls: the answers and the opening of the next turn.

    The text of an answer never becomes a control symbol; see data/chat/template.py.
    Raises: UserError if the template does not support tool answers, or changes earlier turns when an answer is added.
    """
    answers = [answers] if isinstance(answers, str) else list(answers)
    names = [f"call{n:05d}" for n in range(len(answers))]  # some templates require ids of nine characters
    calls = [{"id": i, "type": "function", "function": {"name": "tool", "arguments": {}}} for i in names]
    turn = [make_message("user", "a"), make_message("assistant", "") | {"tool_calls": calls}]
    replies = [{"role": "tool", "content": text, "tool_call_id": i, "name": "tool"} for i, text in zip(names, answers)]
    try:
        return _ids_after(tokenizer, turn, replies, template, "a tool has answered it, so it does not support tools")
    except UserError:
        if len(answers) < 2:
            raise
        return answer_ids(tokenizer, ["\n".join(answers)], template)  # the template allows one call at a time


def user_ids(tokenizer, text: str, template: str | None = None) -> list[int]:
    """Return the ids that follow the end symbol of a turn: a message of the user and the opening of the next turn."""
    turn, reply = [make_message("user", "a"), make_message("assistant", "b")], [make_message("user", text)]
    return _ids_after(tokenizer, turn, reply, template, "the user has answered it, so it does not support environments")


def _ids_after(tokenizer, turn: Messages, replies: Messages, template: str | None, why: str) -> list[int]:
    """Return the ids after the end symbol of `turn`. Raises: UserError if the template changes the turn; why: what follows."""
    whole = encode_chat(tokenizer, turn + replies, template=template, add_generation_prompt=True).ids
    before = encode_chat(tokenizer, turn, template=template).ids
    end = end_of_turn(tokenizer, template)
    if end not in before:  # as in harmony, where the name of the called tool follows
        raise UserError("chat: the template ends a call with another symbol than a text, so its answer cannot be added")
    ended = len(before) - before[::-1].index(end)
    if whole[:ended] != before[:ended]:
        raise UserError(f"chat: the template changes a turn after {why}")
    return whole[ended:]
