"""Encode prompts: texts, token ids, or messages of a conversation."""

import functools
import numbers
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from data.chat.messages import Messages, is_list, messages_of
from data.chat.template import encode_chat, end_of_turn
from data.text.tokenizer import Tokenizer
from lm.errors import UserError
from lm.strangers import shown

FORMS = 'a prompt is a string, a list of token ids, or a list of messages such as [{"role": "user", "content": "…"}]'


class Prompt(NamedTuple):
    """ids: what the model reads. is_text: the completion is wanted as a string. stops: ids that end the completion."""

    ids: list[int]
    is_text: bool
    stops: tuple[int, ...]


def read(tokenizer: Tokenizer | None, prompts: Sequence[Any], template: str | None = None) -> list[Prompt]:
    """Return each prompt as token ids; a list may mix strings, token ids and messages.

    A string is plain text after the begin-of-document token, if there is one. Messages are rendered by the chat template up to
    the start of the assistant's answer; the template's end of turn ends it. Control symbols are symbols only in messages.
    Without a tokenizer, all prompts must be token ids, which only the length ends.

    Args: template: Jinja for the messages; None: the tokenizer's own.
    Raises: UserError for a prompt of another form, for invalid messages, or if no template accepts them.
    """
    if isinstance(prompts, str | Mapping) or not hasattr(prompts, "__iter__"):
        raise UserError(f"prompts must be a list, even of one prompt; {FORMS}")
    found, prompts = [], list(prompts)
    if tokenizer is None:
        rows = list(map(_ids_of, prompts))
        if None in rows:
            raise UserError("this model has no tokenizer: give prompts as lists of token ids")
        return [Prompt(ids, False, ()) for ids in rows]
    for n, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            found.append(Prompt(tokenizer.prompt_ids(prompt), True, tuple(tokenizer.stop_ids)))
        elif is_list(prompt) and any(isinstance(part, Mapping) for part in prompt):
            found.append(read_chat(tokenizer, checked_messages(prompt, f"prompt {n} (counted from 0)"), template))
        else:
            found.append(Prompt(_token_ids(prompt, n), False, tuple(tokenizer.stop_ids)))
    _warn_of_symbols(tokenizer, [prompt for prompt in prompts if isinstance(prompt, str)])
    return found


def read_chat(tokenizer: Tokenizer, messages: Messages, template: str | None = None, **extra: Any) -> Prompt:
    """Return the prompt of a conversation up to the assistant's answer.

    extra: more variables of the template, such as tools.
    """
    ids = encode_chat(tokenizer, messages, template=template, add_generation_prompt=True, **extra).ids
    return Prompt(ids, True, _stops(tokenizer, template))


def checked_messages(prompt: Sequence[Any], where: str) -> Messages:
    """Return messages in the form of the templates. Raises: UserError for an invalid one, or one that says nothing."""
    for n, message in enumerate(prompt, start=1):
        given = message if isinstance(message, Mapping) else {"content": ""}  # messages_of refuses that one
        if all(given.get(key) is None for key in ("content", "value", "tool_calls", "function_call")):
            raise UserError(f"{where}: message {n} has no content; write {{'role': …, 'content': …}}")
    return messages_of(prompt, where)


def _token_ids(prompt: Any, n: int) -> list[int]:
    ids = _ids_of(prompt)
    if ids is None:
        hint = "; put the messages of one conversation into a list of their own" if isinstance(prompt, Mapping) else ""
        raise UserError(f"prompt {n} (counted from 0) is of no known form: {FORMS}{hint}")
    return ids


def _ids_of(prompt: Any) -> list[int] | None:
    """Return a prompt of token ids as a list, or None for a prompt of another form."""
    ids = prompt.tolist() if hasattr(prompt, "tolist") else prompt
    if not is_list(ids) or not all(isinstance(i, numbers.Integral) and not isinstance(i, bool) for i in ids):
        return None
    return [int(i) for i in ids]


def _stops(tokenizer: Tokenizer, template: str | None) -> tuple[int, ...]:
    try:
        return tuple(dict.fromkeys((*tokenizer.stop_ids, end_of_turn(tokenizer, template))))
    except UserError:  # the template ends a turn with no symbol
        return tuple(tokenizer.stop_ids)


def _warn_of_symbols(tokenizer: Tokenizer, texts: Sequence[str]) -> None:
    """Warn, once per tokenizer, if a text spells one of its control symbols."""
    symbols = [symbol for symbol in tokenizer.controls if symbol.strip()] if texts else []
    found = next((symbol for text in texts for symbol in symbols if symbol in text), None)
    if found is None or _warned(tokenizer):
        return
    _warned(tokenizer).append(found)
    warnings.warn(
        f"a prompt spells the control symbol {shown(found)}: in a string it is read as plain text, not as the symbol. For a "
        'chat give messages, [[{"role": "user", "content": "…"}]], or --chat on the terminal; else give token ids',
        stacklevel=5,  # of the caller of lm.generate
    )


@functools.lru_cache(maxsize=16)
def _warned(tokenizer: Tokenizer) -> list[str]:
    """Return the list of this tokenizer's symbols that `_warn_of_symbols` has reported."""
    return []
