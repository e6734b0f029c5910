"""A budget for the thought of an answer: its tokens are counted, and behind the last one its end is forced."""

from collections.abc import Sequence
from typing import NamedTuple

from data.chat.harmony import closing
from data.chat.template import opens_thought
from data.chat.thoughts import AFTER, INSIDE, TokenThoughts
from data.text.tokenizer import Tokenizer

ANY = 1 << 30  # tokens


class Budget(NamedTuple):
    """tokens: most of a thought, with the `<think>` that the model draws; then those of `close` follow in place of drawn ones.

    begun: whether the prompt ends with `<think>`. tokenizer: of all these tokens.
    """

    tokens: int
    close: tuple[int, ...]
    begun: bool
    tokenizer: Tokenizer

    def start(self) -> "Thought":
        return Thought(self)


class Thought:
    """The thought of one answer while it is sampled. forced: tokens that must come next, () if the next one is drawn."""

    def __init__(self, budget: Budget):
        self._read, self._budget, self._left = TokenThoughts(budget.tokenizer, budget.begun), budget, budget.tokens
        self.forced: tuple[int, ...] = ()
        self._close()

    @property
    def precedes_form(self) -> bool:
        """Return whether the prompt began a thought that is not over: what a grammar describes comes behind it."""
        return self._budget.begun and (bool(self.forced) or self._read.state == INSIDE)

    @property
    def room(self) -> int:
        """Return how many tokens can be drawn, the next one among them, before one may be forced; at least 1."""
        if self.forced:
            return 1
        return ANY if self._read.state == AFTER else max(1, self._left)

    def accept(self, token: int) -> None:
        """Advance by a token of the answer."""
        self._read.accept(token)
        self._left, self.forced = self._left - 1, self.forced[1:]
        self._close()

    def _close(self) -> None:
        if self._left <= 0 and not self.forced and self._read.state == INSIDE:
            self.forced = self._read.channels.closing if self._read.channels else self._budget.close


def budget_of(tokenizer: Tokenizer, prompt: Sequence[int], tokens: int) -> Budget:
    """Return the budget of an answer to a prompt. It is closed as in the format of Qwen 3, or in harmony."""
    close = closing(tokenizer) if tokenizer.is_harmony else tuple(tokenizer.encode("\n</think>\n\n"))
    return Budget(tokens, close, opens_thought(tokenizer, prompt), tokenizer)


def forced_places(budget: Budget, tokens: Sequence[int]) -> list[bool]:
    """Return for each token of an answer whether the budget forced it."""
    thought, found = budget.start(), list[bool]()
    for token in tokens:
        found.append(bool(thought.forced))
        thought.accept(token)
    return found
