"""Tools: declare them to the model with its chat template, and read the calls out of its answer.

How a model writes a call is seen in its own template: two example calls are rendered, and the text around their JSON objects
is taken as the format. If the template cannot declare tools, they are declared in the system message in the format of Hermes
(Qwen 2.5's words), and calls and answers of earlier turns are written as text.
"""

import json
import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pydantic_core

from data.chat.harmony import CHANNEL, END, MESSAGE, OPENING, THOUGHT
from data.chat.messages import Messages, make_message
from data.chat.template import render
from data.text.tokenizer import Tokenizer
from lm.errors import UserError

MAX_CALLS = 16  # of one answer
FIRST, SECOND = "first_example_tool", "second_example_tool"
ARGUMENTS = {"example": "value"}
# Options of llguidance: JSON may be laid out in lines, but not be filled with white space without end, as small models do.
LAYOUT = {"whitespace_flexible": True, "whitespace_pattern": r"[\x20\x0A\x09]{0,20}"}

HERMES = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


class CallFormat(NamedTuple):
    """The texts around calls: begin CALL (between CALL)* end; a call is a JSON object with these two keys.

    declared: whether the template declares tools itself.
    """

    begin: str
    between: str
    end: str
    name: str
    arguments: str
    declared: bool

    @property
    def mark(self) -> str:
        """What tells calls from content; "": only that the answer is a call."""
        return self.begin.strip()


PLAIN = CallFormat("<tool_call>\n", "\n</tool_call>\n<tool_call>\n", "\n</tool_call>", "name", "arguments", False)


class Call(NamedTuple):
    """arguments: a JSON object, as text. Of a stream: the next piece of it, and the name is "" after the first one."""

    id: str
    name: str
    arguments: str

    def body(self) -> dict[str, Any]:
        if not self.name:
            return {"function": {"arguments": self.arguments}}
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


def joined(calls: Sequence[Call]) -> list[Call]:
    """Return calls whose pieces of one id are put together."""
    found: dict[str, Call] = {}
    for call in calls:
        before = found.get(call.id, call._replace(arguments=""))
        found[call.id] = before._replace(arguments=before.arguments + call.arguments)
    return list(found.values())


def format_of(tokenizer: Tokenizer, template: str | None) -> CallFormat:
    """Return the format of a chat template's calls, or PLAIN if it does not declare tools or write calls."""
    template = template or tokenizer.chat_template
    names = tokenizer.special_tokens
    asked = [make_message("user", "a")]
    tool = {"type": "function", "function": {"name": FIRST, "description": "a", "parameters": {"type": "object"}}}

    def rendered(messages: Messages, **extra: Any) -> str:
        return render(messages, template, **{**names, **extra})

    def called(*tools: str) -> str:
        calls = [
            {"id": f"example0{n}", "type": "function", "function": {"name": name, "arguments": ARGUMENTS}}
            for n, name in enumerate(tools)
        ]
        messages = [*asked, make_message("assistant", "") | {"tool_calls": calls}]
        before, text = rendered(asked, add_generation_prompt=True), rendered(messages)
        return text.removeprefix(before) if text.startswith(before) else text[len(rendered(asked)) :]

    try:
        if FIRST not in rendered(asked, tools=[tool]):
            return PLAIN
        if tokenizer.is_harmony:  # whose calls Channels spells so
            return PLAIN._replace(declared=True)
        one = called(FIRST)
        begin, end, name, arguments = _around(one, FIRST)
        end = _without_symbols_at_end(one[end:], tokenizer)
        between = "\n"
        try:
            both = called(FIRST, SECOND)
            between = both[_around(both, FIRST)[1] : _around(both, SECOND)[0]]
        except UserError:  # one call at a time
            pass
        return CallFormat(one[:begin], between, end, name, arguments, True)
    except (UserError, ValueError):
        return PLAIN


def _around(text: str, tool: str) -> tuple[int, int, str, str]:
    """Return (begin, end) of the JSON object that calls a tool, and its keys. Raises: ValueError if there is none."""
    for begin in (match.start() for match in re.finditer(r"\{", text)):
        try:
            value, end = json.JSONDecoder().raw_decode(text, begin)
        except ValueError:
            continue
        named = [key for key, item in value.items() if item == tool]
        given = [key for key, item in value.items() if item in (ARGUMENTS, json.dumps(ARGUMENTS))]
        if named and given:
            return begin, end, named[0], given[0]
    raise ValueError("the template writes calls in another way than as JSON objects")


def _without_symbols_at_end(text: str, tokenizer: Tokenizer) -> str:
    """Return the text up to its first control symbol: the end of the turn."""
    places = [place for symbol in tokenizer.controls if symbol.strip() and (place := text.find(symbol)) >= 0]
    return text[: min(places)] if places else text.rstrip()


def declared(format: CallFormat, messages: Messages, tools: Sequence[Mapping[str, Any]]) -> Messages:
    """Return messages that declare tools, and earlier calls, as text, for a template that does neither."""
    if format.declared:
        return messages
    found: Messages = []
    for message in messages:
        if message.get("tool_calls"):
            calls = [json.dumps(call["function"], ensure_ascii=False) for call in message["tool_calls"]]
            written = format.begin + format.between.join(calls) + format.end
            found.append(make_message("assistant", "\n".join(filter(None, [message["content"], written]))))
        elif message["role"] == "tool":
            text = f"<tool_response>\n{message['content']}\n</tool_response>"
            if found and found[-1].get("answers"):
                found[-1]["content"] += f"\n{text}"
            else:
                found.append(make_message("user", text) | {"answers": True})
        else:
            found.append(message)
    found = [{key: value for key, value in message.items() if key != "answers"} for message in found]
    if not tools:
        return found
    text = HERMES.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
    if found and found[0]["role"] == "system":
        return [make_message("system", f"{found[0]['content']}\n\n{text}"), *found[1:]]
    return [make_message("system", text), *found]


def forced(format: CallFormat, tools: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, parallel: bool) -> str:
    """Return the Lark grammar of an answer that is one call, or with `parallel` some calls, of these tools."""
    if tokenizer.is_harmony:
        return _in_harmony(tools, tokenizer)
    rules = []
    for n, tool in enumerate(tools):
        function = tool["function"]
        keys = {format.name: {"const": function["name"]}, format.arguments: function.get("parameters") or {"type": "object"}}
        # References in a tool's schema are from its own root.
        schema = {"type": "object", "properties": keys, "required": [*keys], "additionalProperties": False}
        schema |= {key: keys[format.arguments][key] for key in ("$defs", "definitions") if key in keys[format.arguments]}
        rules.append(f"call{n}: %json {json.dumps(schema | {'x-guidance': LAYOUT})}")
    more = f"({_lark(format.between, tokenizer)} call){{0,{MAX_CALLS - 1}}}" if parallel else ""
    start = f"start: {_lark(format.begin, tokenizer)} call {more} {_lark(format.end, tokenizer)}"
    call = f"call: {' | '.join(f'call{n}' for n in range(len(tools)))}"
    return "\n".join(["%llguidance {}", start, call, *rules])


def _in_harmony(tools: Sequence[Mapping[str, Any]], tokenizer: Tokenizer) -> str:
    """Return the grammar of one call, behind a thought or without."""
    rules = []
    for n, function in enumerate(tool["function"] for tool in tools):
        head = _lark(f"{CHANNEL}commentary to=functions.{function['name']} json{MESSAGE}", tokenizer)
        schema = (function.get("parameters") or {"type": "object"}) | {"x-guidance": LAYOUT}
        rules += [f"call{n}: {head} args{n}", f"args{n}: %json {json.dumps(schema)}"]
    thought = f"thought: {_lark(f'{CHANNEL}{THOUGHT}{MESSAGE}', tokenizer)} /(.|\\n)*/ {_lark(END + OPENING, tokenizer)}"
    start = f"start: thought? ({' | '.join(f'call{n}' for n in range(len(tools)))})"
    return "\n".join(["%llguidance {}", start, thought, *rules])


def _lark(text: str, tokenizer: Tokenizer) -> str:
    """Return a Lark expression of a text with control symbols."""
    symbols = sorted((symbol for symbol in tokenizer.controls if symbol.strip()), key=len, reverse=True)
    parts = re.split(f"({'|'.join(map(re.escape, symbols)) or '(?!)'})", text)
    return " ".join(f"<[{tokenizer.controls[p]}]>" if p in tokenizer.controls else json.dumps(p) for p in parts if p)


class Calls:
    """Reads an answer's text piece by piece: content for the client, and calls. Text that is no valid call stays content.

    streams: a call is given in pieces while its arguments are the beginning of a JSON object; if the answer ends within them,
    so do its pieces.
    """

    def __init__(self, format: CallFormat, most: int = MAX_CALLS, streams: bool = False):
        self._format, self._most, self._streams = format, most, streams
        name, arguments = re.escape(format.name), re.escape(format.arguments)
        self._head = re.compile(rf'\{{\s*"{name}"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"{arguments}"\s*:\s*(?=\{{)')
        self._text, self._inside, self._done = "", False, 0
        self._id, self._sent = "", 0  # of the call whose first pieces are given, and their characters

    def feed(self, text: str, over: bool = False) -> tuple[str, list[Call]]:
        """Return (new content, new calls)."""
        self._text += text
        content, mark = "", self._format.mark
        if not self._inside:
            if not mark:
                start = self._text.lstrip()
                self._inside = start.startswith("{")
                if not start and not over:
                    return "", []
            elif (place := self._text.find(mark)) >= 0:
                content, self._text, self._inside = self._text[:place].rstrip(), self._text[place:], True
            if not self._inside:
                content = self._text
                if not over:  # white space may stand before a mark
                    content = content[: len(content) - overlap(content, [mark])].rstrip()
                self._text = self._text[len(content) :]
                return content, []
        calls = self._parsed()
        if over and not self._done and not self._id:
            content, self._text = content + self._text, ""
        return content, calls

    def _parsed(self) -> list[Call]:
        calls: list[Call] = []
        while (begin := self._text.find("{")) >= 0:
            try:
                value, end = json.JSONDecoder().raw_decode(self._text, begin)
            except (ValueError, RecursionError):
                break
            call = self._call(value)
            if call is None and not self._id:
                break
            if self._done < self._most:
                pieces = self._pieces(begin)
                calls += pieces if self._id or call is None else [call]
            self._text, self._id, self._sent = self._text[end:], "", 0
            self._done += 1
        if begin >= 0 and self._done < self._most:
            calls += self._pieces(begin)
        return calls

    def _pieces(self, begin: int) -> list[Call]:
        """Return what is new of the call that begins there; nothing unless its arguments are an object, or its beginning."""
        head = self._head.match(self._text, begin) if self._streams else None
        if head is None:
            return []
        text = self._text[head.end() :]
        try:
            text = text[: json.JSONDecoder().raw_decode(text)[1]]
        except (ValueError, RecursionError):
            try:
                pydantic_core.from_json(text, allow_partial=True)
            except ValueError:
                return []
        name, self._id = "" if self._id else json.loads(head[1]), self._id or new_id()
        new, self._sent = text[self._sent :], len(text)
        return [Call(self._id, name, new)] if name or new else []

    def _call(self, value: Mapping[str, Any]) -> Call | None:
        name, arguments = value.get(self._format.name), value.get(self._format.arguments, {})
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except (ValueError, RecursionError):
                return None
        if not isinstance(name, str) or not isinstance(arguments, Mapping):
            return None
        return Call(new_id(), name, json.dumps(arguments, ensure_ascii=False))


def new_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


def overlap(text: str, marks: Sequence[str]) -> int:
    """Return the length of the longest end of a text with which one of the marks may begin."""
    for length in range(min(max(map(len, marks), default=0) - 1, len(text)), 0, -1):
        if any(len(mark) > length and mark.startswith(text[-length:]) for mark in marks):
            return length
    return 0
