"""A conversation with a model, answer by answer."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from data.chat.media.encoding import Towers
from data.chat.messages import Messages, make_message
from data.chat.template import opens_thought
from data.chat.thoughts import Thoughts
from lm.errors import UserError
from lm.infer.engine.engine import Engine
from lm.infer.engine.request import Sampling, tiles_of
from lm.infer.generate import Piece, pieces
from lm.infer.prompts import Prompt, parts_of, read, with_parts


class Conversation:
    """Messages, and the engine that answers them.

    messages: as lm.generate takes them; the first one may be the system message. sampling: `seed` is of the whole conversation:
    every answer has its own, and the same calls give the same answers. The engine has a tokenizer; its prefix cache keeps what
    it has read, so it reads only what is new. towers: what the model sees and hears; None: it reads text.
    """

    def __init__(
        self, engine: Engine, sampling: Sampling, template: str | None = None, system: str = "", towers: Towers | None = None
    ):
        self.engine, self.sampling, self.template, self.towers = engine, sampling, template, towers
        self.messages: Messages = []
        self._asked = 0  # answers so far, also those that were undone
        self._shown: list[dict[str, Any]] = []  # parts of the next message
        self.begin(system)

    def begin(self, system: str) -> None:
        """Start anew with this system message; "": with none. Raises: UserError if the chat template does not accept it."""
        messages = [make_message("system", system)] if system else []
        self._read([*messages, make_message("user", "a")])
        self.messages, self._shown = messages, []

    @property
    def system(self) -> str:
        return self.messages[0]["content"] if self.messages and self.messages[0]["role"] == "system" else ""

    def undo(self) -> bool:
        """Remove the last user message and its answer. Return whether there was one."""
        places = [n for n, message in enumerate(self.messages) if message["role"] == "user"]
        if places:
            del self.messages[places[-1] :]
        return bool(places)

    def show(self, kind: str, path: str) -> None:
        """Put a file before the text of the next message. kind: "image" or "audio". Raises: UserError as `parts_of`."""
        self._shown += parts_of({kind: [path]}, self.towers)

    def ask(self, text: str, tell: Callable[[str], None] = lambda line: None) -> Iterator[Piece]:
        """Yield the answer to a user message piece by piece, and keep both.

        If the caller stops, the conversation keeps the pieces so far; if there are none, or after an error, nothing.

        tell: receives a line if the oldest exchanges had to be dropped.
        Raises: UserError if the message is too long for the model, or if its logits are not finite.
        """
        content, self._shown = with_parts(text, self._shown), []
        messages, prompt, dropped = self._fitted([*self.messages, make_message("user", content)])
        if dropped:
            most, kept = self.engine.max_positions, ", but not the system message" if self.system else ""
            exchanges = dropped + sum(message["role"] == "user" for message in messages)
            tell(f"the model has {most} positions: dropped the oldest {dropped} of {exchanges} exchanges{kept}")
        self._asked += 1
        seed = int(np.random.SeedSequence((self.sampling.seed, self._asked)).generate_state(1)[0])
        limit = min(self.sampling.max_new_tokens, self.engine.max_positions - len(prompt.ids))
        answer, tokenizer = make_message("assistant", ""), self.engine.tokenizer
        assert tokenizer is not None
        self.messages = [*messages, answer]
        try:
            sampling = dataclasses.replace(self.sampling, max_new_tokens=limit, stop_ids=prompt.stops)
            request = dataclasses.replace(sampling.request(prompt.ids, seed), media=tiles_of(prompt.media))
            for piece in _divided(pieces(self.engine, request), opens_thought(tokenizer, prompt.ids)):
                answer["content"] += piece.text
                if piece.thought:
                    answer["reasoning_content"] = answer.get("reasoning_content", "") + piece.thought
                yield piece
        except Exception:
            self.undo()
            raise
        except BaseException:  # Ctrl-C, or the caller closed the iterator
            if not answer["content"] and "reasoning_content" not in answer:
                self.undo()
            raise

    def _read(self, messages: Messages) -> Prompt:
        return read(self.engine.tokenizer, [messages], self.template, self.towers)[0]

    def _fitted(self, messages: Messages) -> tuple[Messages, Prompt, int]:
        """Return (messages, as ids, dropped exchanges) with room for an answer: the oldest exchanges make way."""
        most = self.engine.max_positions
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


def _divided(answer: Iterator[Piece], begun: bool) -> Iterator[Piece]:
    """Yield the pieces of an answer with the thought apart. begun: the prompt ends with `<think>`."""
    thoughts = Thoughts(begun)
    for piece in answer:
        thought, text = thoughts.feed(piece.text)
        yield Piece(piece.tokens, text, thought)
    thought, text = thoughts.feed("", over=True)
    if thought or text:
        yield Piece([], text, thought)
