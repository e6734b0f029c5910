"""Encode conversations as token ids with data/text/chat_template.jinja or any Jinja template, safe against injection.

Our format: the begin symbol, then for each message its role's symbol, its text and `<|end|>`. Tools are declared in their own
system message, one JSON object per line. A call is `<|tool|>` and a JSON object in an assistant's message; the answer is a
message of role tool.

Templates see messages as text, so a message that contains the text `<|system|>` could inject a control symbol. Therefore, each
such text in a message is marked with an unused character before the template runs. Only unmarked symbols, which the template
itself wrote, become control symbols. The marks survive all operations of templates on whole texts (copy, trim, join, change
case, write as JSON).

Images and audio: see data/media/prompts.py.
"""

import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols

from data.chat.harmony import awaits_channel
from data.chat.limited_jinja import LimitedEnvironment, TooMuch, rendered
from data.media.prompts import Reads, Style, expanded, placed_in, with_symbols
from data.text.hf_tokenizer import HFTokenizer
from data.text.sentencepiece_tokenizer import CHAT_TEMPLATE
from data.text.tokenizer import Tokenizer
from lm.errors import UserError

Message = Mapping[str, Any]  # role and content, as in chat APIs, and other keys that a template reads
_PRIVATE = range(0x10FFFD, 0x100000, -1)  # the last private-use plane
MAX = 500  # characters of what a template says in an error
_MARKS = "generation marks"  # has a space, so a template cannot use this name


class Chat(NamedTuple):
    """The ids of a conversation. assistant: whether the assistant wrote each id, at least in part; includes end symbols.

    `assistant` is None if the template has no `{% generation %}` block.
    """

    ids: list[int]
    assistant: list[bool] | None


def render(messages: Sequence[Message], template: str | None = None, add_generation_prompt: bool = False, **extra: Any) -> str:
    """Render a conversation to text, as `apply_chat_template` of transformers does.

    Args:
      template: Jinja; None is ours. add_generation_prompt: open an assistant's message at the end.
      extra: further variables of the template, such as tools, documents and bos_token.
    Raises: UserError if the template is invalid or refuses the messages.
    """
    bos_token = {} if template else {"bos_token": "<s>"}
    return _render(template or CHAT_TEMPLATE, _checked(messages), bos_token | extra, add_generation_prompt, ("", ""))


def encode_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    template: str | None = None,
    add_generation_prompt: bool = False,
    media: Style | None = None,
    **extra: Any,
) -> Chat:
    """Encode a conversation. Only the template can write control symbols; in messages they are plain text.

    Args:
      template: None is the tokenizer's own. The others are those of `render`.
      media: how to write the media of messages, which data.chat.media.encoding.prepared has made; None refuses such messages.
    Raises: UserError as `render`, and if a Hugging Face tokenizer has no template and none is given.
    """
    template = template or tokenizer.chat_template
    if template is None:
        raise UserError("chat: this tokenizer comes without a chat template; give one, as template=…")
    shown = media.symbols if media else {}
    placed = placed_in(messages, shown if media else None)
    beside = "".join([*shown.values(), media.around]) if media else ""
    symbols = tokenizer.chat_symbols(template + beside)
    if missing := [shown[kind] for kind in dict.fromkeys(medium.kind for medium in placed) if shown[kind] not in symbols]:
        raise UserError(f"chat: this tokenizer has no symbol {missing[0]}; use the tokenizer of a model with images or audio")
    taken = set(json.dumps([template, messages, extra], ensure_ascii=False, default=str))
    mark, *around = (c for _, c in zip(range(3), (c for c in map(chr, _PRIVATE) if c not in taken)))
    # An assistant may write tokens that are not special, such as <think>, and templates look for them in its messages.
    others, assistants = _spellings(tuple(symbols)), _spellings(tuple(tokenizer.chat_symbols(beside)))
    reads = _reads(template, tuple(shown.items()))
    guarded = []
    for message in _checked(messages):
        if ".thinking" in template and not (message.get("tool_calls") and message.get("content")):  # gpt-oss takes one of both
            message |= {"thinking": message["reasoning_content"]} if message.get("reasoning_content") else {}
        spellings = assistants if message["role"] == "assistant" else others
        guarded.append(with_symbols(message, shown, reads, functools.partial(_guard, spellings=spellings, mark=mark)))
    names = tokenizer.special_tokens
    extra = names | {key: value if key in names else _guard(value, others, mark) for key, value in extra.items()}
    marked = _render(template, guarded, extra, add_generation_prompt, tuple(around))
    text, written = _without_marks(marked, *around)
    if media:
        text, written = expanded(text, written, placed, shown, mark)
    ids, spans = _encode(tokenizer, text, symbols, mark)
    if not re.search(r"{%[-+]?\s*generation\s*[-+]?%}", template):
        return Chat(ids, None)
    return Chat(ids, [any(written[begin:end]) for begin, end in spans])


@functools.lru_cache(maxsize=16)
def end_of_turn(tokenizer: Tokenizer, template: str | None = None) -> int:
    """Return the id that the template writes at the end of an assistant's message. Raises UserError if there is none."""
    asked = [{"role": "user", "content": "a"}]
    begun = encode_chat(tokenizer, asked, template=template, add_generation_prompt=True).ids
    whole, other = (
        encode_chat(tokenizer, [*asked, {"role": "assistant", "content": text}], template=template).ids for text in "ab"
    )
    text = next((n for n, (a, b) in enumerate(zip(whole, other)) if a != b), len(begun))
    symbols = set(tokenizer.chat_symbols(template or tokenizer.chat_template).values())
    ends = [i for i in whole[text:] if i in symbols] if whole[: len(begun)] == begun else []
    if not ends:
        raise UserError("chat: the template has no end symbol for an assistant's message, so a reply would never end")
    return ends[0]


def opens_thought(tokenizer: Tokenizer, prompt: Sequence[int]) -> bool:
    """Return whether an answer begins in a thought: its prompt ends with `<think>`, or is in harmony."""
    if tokenizer.is_harmony and awaits_channel(tokenizer, prompt):
        return True
    return tokenizer.decode_bytes(prompt[-16:]).rstrip().endswith(b"<think>")


@functools.lru_cache(16)
def _reads(template: str, symbols: tuple[tuple[str, str], ...]) -> Reads:
    """Return what the template reads, by trying it."""

    def writes(content: Any, what: str) -> bool:
        try:
            return what in _render(template, [{"role": "user", "content": content}], {}, False, ("", ""))
        except UserError:
            return False

    text, shown = "some-text", [{"type": "text", "text": "some-text"}]
    parts = frozenset(kind for kind, symbol in symbols if writes([{"type": kind}, *shown], symbol))
    return Reads(parts, writes(text, text) or not writes(shown, text))


def _encode(tokenizer: Tokenizer, text: str, symbols: dict[str, int], mark: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Return the ids, and for each its character span [begin, end) in the marked text."""
    parts = re.split(f"((?:{_any_of(symbols)})(?!{mark}))", text)
    spelled = [symbols[part] for part in parts[1::2]]
    if mark not in text and isinstance(tokenizer, HFTokenizer):
        # This is exactly transformers' encoding. Do not use it if it finds other symbols, as with case folding.
        ids, spans = tokenizer.encode_rendered(text)
        known = {*spelled, *tokenizer.controls.values()}
        if [i for i in ids if i in known] == spelled:
            return ids, spans
    ids, spans, end = [], [], 0
    for part in parts:
        begin, end = end, end + len(part)
        if part in symbols:
            ids.append(symbols[part])
            spans.append((begin, end))
            continue
        place = [begin + i for i, character in enumerate(part) if character != mark]
        more, their_spans = tokenizer.encode_spans(part.replace(mark, ""), symbols)
        if not set(more).isdisjoint(symbols.values()):
            raise UserError(f"chat: this tokenizer makes a control symbol of plain text, in {part[:40]!r}; use another one")
        ids += more
        spans += [(place[b], place[e - 1] + 1) if e > b else (begin, begin) for b, e in their_spans]
    return ids, spans


def _guard(value: Any, spellings: re.Pattern, mark: str) -> Any:
    """Return `value`, a message or a part of it, with a mark after each character that `spellings` finds in its texts."""
    if isinstance(value, str):
        return spellings.sub(rf"\g<0>{mark}", value)
    if isinstance(value, Mapping):
        return {_guard(key, spellings, mark): _guard(item, spellings, mark) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_guard(item, spellings, mark) for item in value]
    return value


@functools.lru_cache(16)
def _spellings(symbols: tuple[str, ...]) -> re.Pattern:
    """Return a pattern for the first character of any symbol (ignoring case), or of a prefix of one at the end of a text."""
    begun = {symbol[:n] for symbol in symbols for n in range(1, len(symbol))}
    return re.compile(rf"(?={_any_of(symbols)}|(?:{_any_of(begun)})\s*\Z).", re.IGNORECASE | re.DOTALL)


def _any_of(texts: Iterable[str]) -> str:
    """Return a regular expression that matches the longest of the texts, or never matches if there are none."""
    return "|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or "(?!)"


def _without_marks(marked: str, begin: str, end: str) -> tuple[str, list[bool]]:
    """Return the text without the generation marks, and whether each character was inside a marked span."""
    text, written, inside = [], [], False
    for part in re.split(f"([{begin}{end}])", marked):
        if part in (begin, end):
            inside = part == begin
        else:
            text.append(part)
            written += [inside] * len(part)
    return "".join(text), written


def check_syntax(template: str) -> None:
    """Raise UserError with the line if a text is no Jinja template."""
    try:
        _compiled(template)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"line {error.lineno}: {error.message}; correct the template") from error


def _render(template: str, messages, extra: Mapping, add_generation_prompt: bool, marks: tuple[str, str]) -> str:
    context = {"tools": None, "documents": None, **extra, "messages": messages, _MARKS: marks}
    try:
        return rendered(_compiled(template), context | {"add_generation_prompt": add_generation_prompt})
    except TooMuch as error:
        raise UserError(f"chat: the template is stopped: {error}; use another template") from error
    except jinja2.TemplateError as error:
        raise UserError(f"chat: the template says: {str(error)[:MAX]}") from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:  # of the template's own code
        raise UserError(f"chat: the template fails on these messages: {type(error).__name__}: {str(error)[:MAX]}") from error


def _checked(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return the messages without keys whose value is None, which some chat APIs send for absent keys."""
    if not all(isinstance(message, Mapping) and "role" in message for message in messages):
        raise UserError("chat: messages must be a list of objects with a role and a content")
    return [{key: value for key, value in message.items() if value is not None} for message in messages]


class _Generation(Extension):
    """Jinja extension for `{% generation %}…{% endgeneration %}`, which encloses the assistant's output."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark", [nodes.ContextReference()]), [], [], body).set_lineno(line)

    def _mark(self, context: jinja2.runtime.Context, caller) -> str:
        begin, end = context[_MARKS]
        return begin + caller() + end


@functools.lru_cache(16)
def _compiled(template: str) -> jinja2.Template:
    """Compile with the settings and names that published templates expect; under limits, because templates are untrusted."""
    environment = LimitedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.add_filter("tojson", _to_json)
    environment.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
    return environment.compiled(template)


def _to_json(value: Any, ensure_ascii: bool = False, indent=None, separators=None, sort_keys: bool = False) -> str:
    """Write JSON without the HTML escapes of Jinja's own filter."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)
