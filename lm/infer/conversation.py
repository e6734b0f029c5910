"""A conversation with a model, answer by answer."""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator

import numpy as np

from data.chat.messages import Messages, make_message
from data.text.tokenizer import Tokenizer
from lm.errors import UserError
from lm.infer.decode import Sampling
from lm.infer.prompts import Prompt, read
from lm.infer.sampler import Piece, padded_width, streamed
from lm.model.transformer import Transformer

NEXT = 64  # tokens of the next message and its frame that `warm` expects


def count(messages: Messages) -> int:
    """Return the number of exchanges."""
    return sum(message["role"] == "user" for message in messages)


class Conversation:
    """Messages, and the model that answers them.

    messages: as lm.generate takes them; the first one may be the system message. sampling: `seed` is of the whole conversation:
    every answer has its own, and the same calls give the same answers.
    """

    def __init__(
        self, model: Transformer, tokenizer: Tokenizer, sampling: Sampling, template: str | None = None, system: str = ""
    ):
        self.model, self.tokenizer, self.template = model, tokenizer, template
        self.sampling = dataclasses.replace(sampling, vocab_size=tokenizer.vocab_size)
        self.messages: Messages = []
        self._asked = 0  # answers so far, also those that were undone
        self._widths: set[int] = set()  # of prompts whose programs are compiled
        self.begin(system)

    def begin(self, system: str) -> None:
        """Start anew with this system message; "": with none. Raises: UserError if the chat template does not accept it."""
        messages = [make_message("system", system)] if system else []
        self._read([*messages, make_message("user", "a")])
        self.messages = messages

    @property
    def system(self) -> str:
        return self.messages[0]["content"] if self.messages and self.messages[0]["role"] == "system" else ""

    def undo(self) -> bool:
        """Remove the last user message and its answer. Return whether there was one."""
        places = [n for n, message in enumerate(self.messages) if message["role"] == "user"]
        if places:
            del self.messages[places[-1] :]
        return bool(places)

    def ask(self, text: str, tell: Callable[[str], None] = lambda line: None) -> Iterator[Piece]:
        """Yield the answer to a user message piece by piece, and keep both.

        If the caller stops, the conversation keeps the pieces so far; if there are none, or after an error, nothing.

        tell: receives a line if the oldest exchanges had to be dropped.
        Raises: UserError if the message is too long for the model, or if its logits are not finite.
        """
        messages, prompt, dropped = self._fitted([*self.messages, make_message("user", text)])
        if dropped:
            most, kept = self.model.config.max_positions, ", but not the system message" if self.system else ""
            tell(f"the model has {most} positions: dropped the oldest {dropped} of {dropped + count(messages)} exchanges{kept}")
        self._asked += 1
        seed = int(np.random.SeedSequence((self.sampling.seed, self._asked)).generate_state(1)[0])
        limit = min(self.sampling.max_new_tokens, self.model.config.max_positions - len(prompt.ids))
        answer = make_message("assistant", "")
        self.messages = [*messages, answer]
        try:
            for piece in streamed(
                self.model, self.tokenizer, prompt, dataclasses.replace(self.sampling, seed=seed, max_new_tokens=limit)
            ):
                answer["content"] += piece.text
                yield piece
        except Exception:
            self.undo()
            raise
        except BaseException:  # Ctrl-C, or the caller closed the iterator
            if not answer["content"]:
                self.undo()
            raise
        self._widths.add(padded_width(len(prompt.ids)))

    def warm(self) -> None:
        """Compile the programs of the next answer, if it is likely to need new ones. Errors are left to `ask`."""
        with contextlib.suppress(Exception):
            prompt = self._read([*self.messages, make_message("user", "a")])
            ids = prompt.ids[:1] * NEXT + prompt.ids
            width = padded_width(len(ids))
            if width in self._widths or len(ids) + self.sampling.max_new_tokens > self.model.config.max_positions:
                return
            for _ in itertools.islice(streamed(self.model, self.tokenizer, prompt._replace(ids=ids), self.sampling), 2):
                self._widths.add(width)

    def _read(self, messages: Messages) -> Prompt:
        return read(self.tokenizer, [messages], self.template)[0]

    def _fitted(self, messages: Messages) -> tuple[Messages, Prompt, int]:
        """Return (messages, as ids, dropped exchanges) with room for an answer: the oldest exchanges make way."""
        most = self.model.config.max_positions
        room = max(1, min(self.sampling.max_new_tokens, most // 4))
        first, dropped = int(bool(self.system)), 0
        while True:
            prompt = self._read(messages)
            if len(prompt.ids) + room <= most:
                return messages, prompt, dropped
            asked = [n for n, message in enumerate(messages) if message["role"] == "user"]
            if len(asked) == 1:
                break
            messages, dropped = [*messages[:first], *messages[asked[1] :]], dropped + 1
        if len(prompt.ids) >= most:
            raise UserError(
                f"this message comes to {len(prompt.ids)} tokens, the model has {most} positions: write a shorter one"
            )
        return messages, prompt, dropped
