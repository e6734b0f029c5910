"""Encode examples as token ids, with a mask of the tokens that an assistant wrote: each turn's text and its end symbol.

A template with `{% generation %}` blocks gives the mask itself. For other templates, a turn is the difference between two
prefixes of the conversation that are rendered separately.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from data.chat.harmony import CHANNEL, written
from data.chat.messages import Conversation, Labelled, Messages, Pair
from data.chat.template import encode_chat, opens_thought
from data.chat.thoughts import thought_length
from data.media.prompts import Style
from data.text.tokenizer import Tokenizer
from lm.errors import UserError

STEP_END = "\n"  # follows each step of an answer; the process reward is read at its last token
MARK = "chat_template: put {% generation %} and {% endgeneration %} around the text of an assistant's message"


class Sequenced(NamedTuple):
    """A sequence of N tokens."""

    ids: np.ndarray  # int32 [N]
    trained: np.ndarray  # bool [N]: written by an assistant, and a training target

    def part(self, begin: int | None = None, end: int | None = None) -> "Sequenced":
        return Sequenced(self.ids[begin:end], self.trained[begin:end])

    def learnt(self, length: int | None = None) -> "Sequenced":
        """Return the first `length` tokens, cut after the last trained one, because later tokens have no loss."""
        places = np.flatnonzero(self.trained[:length])
        return self.part(0, int(places[-1]) + 1 if len(places) else 0)


class Encoder:
    """Encode examples with one tokenizer and one chat template (None: the tokenizer's own).

    media: as for `encode_chat`; None: text only. thoughts: whether the thoughts of answers are trained, too.
    Raises: UserError if there is no template. Its methods raise it if the template refuses messages, or if the assistant's
    tokens cannot be identified.
    """

    def __init__(self, tokenizer: Tokenizer, template: str | None = None, media: Style | None = None, *, thoughts: bool = True):
        self.media, self._thoughts = media, thoughts
        self.tokenizer, self.template = tokenizer, template or tokenizer.chat_template
        if self.template is None:
            raise UserError("chat_template: this tokenizer comes without a chat template; name a Jinja file there")
        self._symbols = np.asarray(sorted(tokenizer.chat_symbols(self.template).values()))
        # Cache of the last prompt and its ids: the next example often has the same prompt.
        self._asked: tuple[Any, list[int]] = (None, [])

    def prompt_ids(self, prompt: Messages, tools: list[dict] | None = None, begun: bool = True) -> list[int]:
        """Return the ids of a prompt; with `begun`, also the opening of the assistant's message."""
        return self._chat(prompt, tools, begun).ids

    def conversation(self, example: Conversation) -> Sequenced:
        """Encode a conversation; all turns of the assistant are trained."""
        return self._masked(example.messages, example.tools)

    def pair(self, example: Pair) -> tuple[Sequenced, Sequenced]:
        """Encode the prompt with the chosen and with the rejected answer. The prompt is not trained."""
        chosen, rejected = (self._answered(example.prompt, a, example.tools)[0] for a in (example.chosen, example.rejected))
        return chosen, rejected

    def labelled(self, example: Labelled) -> tuple[Sequenced, int]:
        """Return the prompt with its answer, and the number of prompt tokens. The prompt is not trained."""
        return self._answered(example.prompt, example.completion, example.tools)

    def steps(self, prompt: Messages, steps: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Encode the prompt and each step plus STEP_END separately, so a step's tokens do not depend on the next step.

        Returns: ids, int32 [N], and the indices of the steps' last tokens, int64 [steps].
        """
        parts = [self.prompt_ids(prompt), *(self.tokenizer.encode(step + STEP_END) for step in steps)]
        return np.concatenate([np.asarray(part, np.int32) for part in parts]), np.cumsum([len(part) for part in parts])[1:] - 1

    def _chat(self, messages: Messages, tools: list[dict] | None, begun: bool = False):
        return encode_chat(
            self.tokenizer, messages, template=self.template, tools=tools, add_generation_prompt=begun, media=self.media
        )

    def _answered(self, prompt: Messages, answer: Messages, tools: list[dict] | None) -> tuple[Sequenced, int]:
        """Encode prompt and answer. Returns also the number of prompt ids: the common prefix with and without the answer."""
        begun = answer[0]["role"] == "assistant"
        if self._asked[0] != (prompt, tools, begun):
            self._asked = (prompt, tools, begun), self.prompt_ids(prompt, tools, begun) if prompt else []
        asked = self._asked[1]
        ids, trained = self._masked(prompt + answer, tools)
        shared = _shared(ids, asked)
        # The last prompt token may merge with the start of the answer, and a template may open messages differently.
        if shared < len(asked) and shared < len(self.prompt_ids(prompt, tools, begun=False)) - 1:
            raise UserError("chat_template: it renders a prompt differently if an answer follows; use another template")
        trained[:shared] = False
        return Sequenced(ids, trained), shared

    def _masked(self, messages: Messages, tools: list[dict] | None) -> Sequenced:
        ids, assistant = self._chat(messages, tools)
        ids = np.asarray(ids, np.int32)
        mask = self._turns(ids, messages, tools) if assistant is None else np.asarray(assistant, bool)
        mask[:1] = False  # the first token has no context to predict it from
        return Sequenced(ids, mask if self._thoughts else self._without_thoughts(ids, mask))

    def _without_thoughts(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Return the mask without the thought at the beginning of each of its spans, up to `</think>`."""
        edges = np.flatnonzero(np.diff(mask, prepend=False, append=False))
        for begin, end in zip(edges[::2], edges[1::2]):
            length = thought_length(self.tokenizer, ids[begin:end], opens_thought(self.tokenizer, ids[:begin]))
            mask[begin : begin + length] = False
        return mask

    def _turns(self, ids: np.ndarray, messages: Messages, tools: list[dict] | None) -> np.ndarray:
        """Return the mask for a template without generation marks: a turn is the ids that it adds to the messages before it.

        A turn ends with its end symbol.
        Raises: UserError if the messages before or with the turn do not render to a prefix of the conversation.
        """
        if self.tokenizer.is_harmony and CHANNEL in self.template:
            return written(self.tokenizer, ids)
        mask = np.zeros(len(ids), bool)
        for n, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            begin, end = (self._chat(messages[:m], tools, m == n).ids for m in (n, n + 1))
            if not (len(begin) < len(end) and _shared(ids, begin) == len(begin) and _shared(ids, end) == len(end)):
                raise UserError(
                    f"{MARK}: without them the assistant's tokens are unknown, as its text depends on later messages"
                )
            begin, end = len(begin), len(end)
            symbols = begin + np.flatnonzero(np.isin(ids[begin:end], self._symbols))
            if len(symbols) and not self.tokenizer.decode(ids[symbols[-1] + 1 : end]).strip():
                end = symbols[-1] + 1  # exclude the line break that some templates write after the end symbol
            mask[begin:end] = True
        return mask


def _shared(ids: np.ndarray, others: Sequence[int]) -> int:
    """Return the length of the common prefix of two id sequences."""
    most = min(len(ids), len(others))
    differ = np.flatnonzero(ids[:most] != np.asarray(others[:most], np.int32))
    return int(differ[0]) if len(differ) else most
