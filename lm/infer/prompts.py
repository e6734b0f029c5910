"""Encode prompts: texts, token ids, or messages of a conversation, with files of images and sound."""

import base64
import numbers
import warnings
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data.chat.harmony import CALL
from data.chat.media.encoding import Towers, prepared
from data.chat.messages import Messages, is_list, messages_of
from data.chat.template import encode_chat, end_of_turn
from data.media.parts import MAX_BYTES, resolved
from data.text.tokenizer import Tokenizer
from lm.config.towers import Media
from lm.errors import UserError
from lm.files.untrusted import content, shown

FORMS = 'a prompt is a string, a list of token ids, or a list of messages such as [{"role": "user", "content": "…"}]'
# Its last hidden state is a vector of the text ("PromptEOL", Jiang et al. 2023, "Scaling sentence embeddings with large
# language models", section 3.2).
IN_ONE_WORD = 'This sentence: "{}" means in one word: "'
_warned: weakref.WeakSet[Tokenizer] = weakref.WeakSet()  # tokenizers with a text that spelt a control symbol


class Prompt(NamedTuple):
    """ids: what the model reads. is_text: the completion is wanted as a string. stops: ids that end the completion. media: of
    the messages, arrays with one row; None: there are none."""

    ids: list[int]
    is_text: bool
    stops: tuple[int, ...]
    media: Media | None = None


def read(
    tokenizer: Tokenizer | None, prompts: Sequence[Any], template: str | None = None, towers: Towers | None = None
) -> list[Prompt]:
    """Return each prompt as token ids; a list may mix strings, token ids and messages.

    A string is plain text after the begin-of-document token, if there is one. Messages are rendered by the chat template up to
    the start of the assistant's answer; the template's end of turn ends it. Control symbols are symbols only in messages.
    Without a tokenizer, all prompts must be token ids, which only the length ends.

    Args:
      template: Jinja for the messages; None: the tokenizer's own.
      towers: of the model, for messages with images and sound as bytes or data: URLs; None: messages are text.
    Raises: UserError for a prompt of another form, for invalid messages, or if no template accepts them.
    """
    if isinstance(prompts, str | Mapping) or not hasattr(prompts, "__iter__"):
        raise UserError(f"prompts must be a list, even of one prompt; {FORMS}")
    found, prompts = list[Prompt](), list(prompts)
    if tokenizer is None:
        rows = [ids for ids in map(_ids_of, prompts) if ids is not None]
        if len(rows) < len(prompts):
            raise UserError("this model has no tokenizer: give prompts as lists of token ids")
        return [Prompt(ids, False, ()) for ids in rows]
    for n, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            found.append(Prompt(tokenizer.prompt_ids(prompt), True, tuple(tokenizer.stop_ids)))
        elif is_list(prompt) and any(isinstance(part, Mapping) for part in prompt):
            where = f"prompt {n} (counted from 0)"
            messages = with_files(checked_messages(prompt, where, media=towers is not None), where)
            found.append(read_chat(tokenizer, messages, template, towers))
        elif (ids := _ids_of(prompt)) is not None:
            found.append(Prompt(ids, False, tuple(tokenizer.stop_ids)))
        else:
            hint = "; put the messages of one conversation into a list of their own" if isinstance(prompt, Mapping) else ""
            raise UserError(f"prompt {n} (counted from 0) is of no known form: {FORMS}{hint}")
    _warn_of_symbols(tokenizer, [prompt for prompt in prompts if isinstance(prompt, str)])
    return found


def read_chat(
    tokenizer: Tokenizer,
    messages: Messages,
    template: str | None = None,
    towers: Towers | None = None,
    continues: bool = False,
    **extra: Any,
) -> Prompt:
    """Return the prompt of a conversation up to the assistant's answer.

    towers: of the model; None: it reads text. continues: the last message is the beginning of the answer, so its end is left
    out. extra: more variables of the template, such as tools.
    Raises: UserError if the template refuses the messages, or `continues` has no such message.
    """
    if continues and (len(messages) < 2 or messages[-1]["role"] != "assistant" or messages[-1].get("tool_calls")):
        raise UserError("there is no answer to continue: end the messages with a text of the assistant")
    style = media = None
    if towers is not None:
        messages, arrays, _ = prepared(messages, towers)
        style, rows = towers.style, [array[None] if len(array) else None for array in arrays]
        media = Media(*rows) if any(row is not None for row in rows) else None
    ids = encode_chat(tokenizer, messages, template=template, add_generation_prompt=not continues, media=style, **extra).ids
    stops = stops_of(tokenizer, template)
    if continues:
        before = encode_chat(tokenizer, messages[:-1], template=template, add_generation_prompt=True, media=style, **extra).ids
        ends = [n for n in range(len(before), len(ids)) if ids[n] in stops]
        if ids[: len(before)] != before or not ends:
            raise UserError("the chat template writes an answer otherwise than where it is to begin: it cannot be continued")
        ids = ids[: ends[-1]]
    return Prompt(ids, True, stops, media)


def checked_messages(prompt: Sequence[Any], where: str, media: bool = False) -> Messages:
    """Return messages in the form of the templates. media: whether they may have images and sound, for `with_files`.

    Raises: UserError for an invalid one, or one that says nothing.
    """
    for n, message in enumerate(prompt, start=1):
        given = message if isinstance(message, Mapping) else {"content": ""}  # messages_of refuses that one
        if all(given.get(key) is None for key in ("content", "value", "tool_calls", "function_call")):
            raise UserError(f"{where}: message {n} has no content; write {{'role': …, 'content': …}}")
    return messages_of(prompt, where, media)


def with_files(messages: Messages, where: str) -> Messages:
    """Return messages with the bytes of their media. Raises: UserError for a file that is neither bytes nor a data: URL."""
    return resolved([messages], {}, None, where)[0]


def parts_of(files: Mapping[str, Sequence[str]], towers: Towers | None) -> list[dict[str, Any]]:
    """Return a part of a message's content for each file.

    files: their paths by kind, "image" or "audio". towers: of the model; None: it reads text.
    Raises: UserError for a file that cannot be read, or one that the model has no encoder for.
    """
    found = []
    for kind, paths in files.items():
        for path in paths:
            if towers is None or getattr(towers, kind) is None:
                raise UserError(f"--{kind}={path}: this model has no encoder of {kind}; leave it out, or take another model")
            try:
                file = base64.b64encode(content(Path(path), MAX_BYTES[kind])).decode()
            except (OSError, ValueError) as error:
                raise UserError(f"--{kind}={path}: {getattr(error, 'strerror', None) or error}; name a file") from None
            found.append({"type": kind, kind: f"data:;base64,{file}"})
    return found


def with_parts(text: str, parts: Sequence[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """Return the content of a message: the parts, and the text after them."""
    return [*parts, {"type": "text", "text": text}] if parts else text


def _ids_of(prompt: Any) -> list[int] | None:
    """Return a prompt of token ids as a list, or None for a prompt of another form."""
    ids = prompt.tolist() if hasattr(prompt, "tolist") else prompt
    if not is_list(ids) or not all(isinstance(i, numbers.Integral) and not isinstance(i, bool) for i in ids):
        return None
    return [int(i) for i in ids]


def stops_of(tokenizer: Tokenizer, template: str | None) -> tuple[int, ...]:
    """Return the ids that end an answer of a chat: the tokenizer's, and the template's end of a turn."""
    try:
        calls = [tokenizer.controls[CALL]] if tokenizer.is_harmony and CALL in tokenizer.controls else []
        return tuple(dict.fromkeys((*tokenizer.stop_ids, end_of_turn(tokenizer, template), *calls)))
    except UserError:  # the template ends a turn with no symbol
        return tuple(tokenizer.stop_ids)


def _warn_of_symbols(tokenizer: Tokenizer, texts: Sequence[str]) -> None:
    """Warn, once per tokenizer, if a text spells one of its control symbols."""
    symbols = [symbol for symbol in tokenizer.controls if symbol.strip()] if texts else []
    found = next((symbol for text in texts for symbol in symbols if symbol in text), None)
    if found is None or tokenizer in _warned:
        return
    _warned.add(tokenizer)
    warnings.warn(
        f"a prompt spells the control symbol {shown(found)}: in a string it is read as plain text, not as the symbol. For a "
        'chat give messages, [[{"role": "user", "content": "…"}]], or --chat on the terminal; else give token ids',
        stacklevel=5,  # of the caller of lm.generate
    )
