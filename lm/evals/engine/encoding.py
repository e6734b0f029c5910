"""Encode task texts as token ids, exactly as lm-evaluation-harness does for a published model, and conversations as texts."""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from data.chat import harmony
from data.chat import template as chat
from data.chat.media.encoding import Towers, prepared
from data.media.prompts import expanded, placed_in, with_symbols
from data.text.sentencepiece_tokenizer import SentencePieceTokenizer
from data.text.tokenizer import Tokenizer
from lm.errors import UserError
from lm.infer.prompts import stops_of

# Put into a rendered conversation after the first character of each control symbol that a message spells out.
MARK = "\U0010fffd"
PLAIN = "plain"  # the template name for a model without one
NO_TOOLS = "it does not declare tools; name a Jinja file that does, such as data/text/chatml_tools_template.jinja for ChatML"
NAMES = {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}


class Encoding:
    """Encode texts for a model.

    Args:
      template: a Jinja template; None: the tokenizer's own or, if it has none, "plain".
      system: the system message of each conversation that has none.
      add_bos: whether the tokenizer's symbols stand around texts. The begin symbol is never doubled.
      towers: what the model sees and hears; None: it reads text.
    Attributes:
      prefix: the id for an empty context: the begin symbol, else the end symbol.
      stop_ids: ids that end an answer.

    As in transformers, a control symbol that is spelled out in a text becomes that symbol. In a message of a conversation it
    stays text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        template: str | None = None,
        system: str = "",
        add_bos: bool = True,
        towers: Towers | None = None,
    ):
        self.towers = towers
        self.template = None if template == PLAIN else template or tokenizer.chat_template
        self.tokenizer, self.system = tokenizer, system
        self._shown = towers.style.symbols if towers else {}  # symbols of media
        beside = "".join([*self._shown.values(), towers.style.around]) if towers else ""
        self.symbols = tokenizer.chat_symbols((self.template or "") + beside)
        self.bos = tokenizer.special_tokens.get("bos_token", "")
        self._before, self._after = _around(tokenizer) if add_bos else ([], [])
        if (prefix := tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id) is None:
            raise UserError("tokenizer: it has neither a begin nor an end symbol; one is needed for an empty context")
        self.prefix = prefix
        self.stop_ids = tuple(tokenizer.stop_ids)
        if isinstance(tokenizer, SentencePieceTokenizer):
            self.stop_ids += (tokenizer.controls["<|end|>"],)
        if self.template:
            self.stop_ids = tuple(dict.fromkeys((*self.stop_ids, *stops_of(tokenizer, self.template))))
        self._special = re.compile(f"{chat._any_of(self.symbols)}|{MARK}")

    def ids(self, text: str, special: bool = True) -> list[int]:
        """Return the ids of a text. special: whether to put begin and end symbols around it."""
        return self.many([text], special)[0]

    def many(self, texts: Sequence[str], special: bool = True) -> list[list[int]]:
        """Return the ids of many texts; faster than one call each."""
        plain = [text for text in texts if not self._special.search(text)]
        encoded = iter(self.tokenizer.encode_many(plain)) if plain else iter(())
        lists = []
        for text in texts:
            if self._special.search(text):
                ids = chat._encode(self.tokenizer, text, self.symbols, MARK)[0]
            else:
                ids = next(encoded).tolist()
            bare = not special or (self.bos and text.startswith(self.bos))
            lists.append(ids if bare else [*self._before, *ids, *self._after])
        return lists

    def pairs(self, texts_of_pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        """Return the ids of each context and of the continuation after it.

        Spaces at the end of the context move to the continuation. The continuation's ids are the ids of both texts together
        minus those of the context. An empty context becomes the begin symbol (else the end symbol); if the continuation begins
        with that symbol, its own is used.
        """
        bare = sorted({continuation for context, continuation in texts_of_pairs if not context})
        alone = dict(zip(bare, self.many(bare, special=False)))
        moved = {(c, k): (c.rstrip(), c[len(c.rstrip()) :] + k) for c, k in texts_of_pairs if c}
        texts = sorted({text for c, k in moved.values() for text in (c, c + k)})
        known = dict(zip(texts, self.many(texts)))
        encoded = []
        for context, continuation in texts_of_pairs:
            if context:
                before, behind = moved[context, continuation]
                encoded.append((known[before], known[before + behind][len(known[before]) :]))
            elif (ids := alone[continuation])[:1] == [self.prefix]:
                encoded.append((ids[:1], ids[1:]))
            else:
                encoded.append(([self.prefix], ids))
        return encoded

    def conversation(
        self, messages: Sequence[Mapping[str, Any]], prefill: str = "", tools: Sequence[Mapping[str, Any]] | None = None
    ) -> str:
        """Return the text of a conversation up to the model's next answer, which begins with `prefill`.

        Without a template it is "User: …", a blank line, "Assistant:". Control symbols in messages and tools are marked.
        Raises: UserError if the template does not declare `tools`.
        """
        if self.system and not any(message.get("role") == "system" for message in messages):
            messages = [{"role": "system", "content": self.system}, *messages]
        spellings = chat._spellings(tuple(self.symbols))
        if self.towers is not None:
            messages, _, _ = prepared(messages, self.towers)
        placed = placed_in(messages, self._shown if self.towers else None)
        if placed and self.template is None:
            raise UserError("chat_template=plain has no place for images and sound: use the model's own, or a Jinja file")
        guard = functools.partial(chat._guard, spellings=spellings, mark=MARK)
        reads = chat._reads(self.template or "", tuple(self._shown.items()))
        guarded = [with_symbols(dict(message), self._shown, reads, guard) for message in messages]
        if self.template is None:
            if tools:
                raise UserError(f"chat_template=plain: {NO_TOOLS}")
            turns = [f"{NAMES.get(m['role'], m['role'])}: {m['content']}" for m in guarded]
            return "\n\n".join([*turns, "Assistant:"]) + (f" {prefill}" if prefill else "")
        names = self.tokenizer.special_tokens
        declared = {"tools": guard(list(tools))} if tools else {}
        text = chat.render(guarded, self.template, add_generation_prompt=True, **names, **declared)
        if tools and text == chat.render(guarded, self.template, add_generation_prompt=True, **names):
            raise UserError(f"chat_template: {NO_TOOLS}")
        if placed:
            text, _ = expanded(text, [False] * len(text), placed, self._shown, MARK)
        if prefill and text.endswith(harmony.OPENING):
            text += f"{harmony.CHANNEL}{harmony.ANSWER}{harmony.MESSAGE}"
        return text + prefill


def _around(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Return the ids that the tokenizer puts before and after every text."""
    bare, whole = tokenizer.encode("a"), tokenizer.prompt_ids("a")
    begin = next((i for i in range(len(whole) - len(bare) + 1) if whole[i : i + len(bare)] == bare), None)
    if begin is None:
        raise UserError("tokenizer: special symbols around a text change its tokens; use another tokenizer")
    return whole[:begin], whole[begin + len(bare) :]
