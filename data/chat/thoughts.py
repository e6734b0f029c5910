"""The thought at the beginning of an answer, `<think>…</think>`, as Qwen 3, DeepSeek R1 and their relatives write it.

A message has it in `reasoning_content`, as in the APIs of DeepSeek, vLLM and SGLang. Only a thought that begins the answer is
one: later marks are text. Without `</think>` all of the answer is a thought, and nothing answers.
"""

from collections.abc import Sequence

from data.chat.harmony import Channels
from data.text.tokenizer import Tokenizer

OPEN, CLOSE = "<think>", "</think>"
BEFORE, INSIDE, AFTER = range(3)


class Thoughts:
    """Divide the text of an answer, piece by piece, into its thought and what follows.

    The pieces add up to the same texts wherever the text is cut. White space around the thought is dropped, and at the
    beginning of the answer behind it; an answer without a thought stays as it is. begun: the prompt ends with `<think>`.

    Attributes: state, BEFORE, INSIDE or AFTER the thought. end: characters of the thought so far, with its marks.
    """

    def __init__(self, begun: bool = False):
        self.state, self.end = INSIDE if begun else BEFORE, 0
        self._held, self._fed = "", 0
        self._skips = begun  # white space at the beginning of the part

    def feed(self, text: str, over: bool = False) -> tuple[str, str]:
        """Return what is new of (thought, answer). over: no more text follows."""
        self._held, self._fed, thought = self._held + text, self._fed + len(text), ""
        if self.state == BEFORE:
            start = self._held.lstrip()
            if start.startswith(OPEN):
                self.state, self._skips, self._held = INSIDE, True, start.removeprefix(OPEN)
            elif over or not OPEN.startswith(start):
                self.state = AFTER
            else:
                return "", ""
        if self.state == INSIDE:
            thought = self._inside(over)
        if self.state == INSIDE:
            return thought, ""
        answer = self._held.lstrip() if self._skips else self._held
        self._skips, self._held = self._skips and not answer, ""
        return thought, answer

    def _inside(self, over: bool) -> str:
        """Return the new text of the thought, and what cannot yet be a part of `</think>` or of the white space before it."""
        self._held = self._held.lstrip() if self._skips else self._held
        text, mark, rest = self._held.partition(CLOSE)
        if not mark and not over:
            begun = next((n for n in range(min(len(CLOSE) - 1, len(text)), 0, -1) if CLOSE.startswith(text[-n:])), 0)
            text = text[: len(text) - begun]
        text = text.rstrip()
        self._held, self._skips = rest if mark else self._held[len(text) :], bool(mark) or (self._skips and not text)
        self.state, self.end = AFTER if mark else INSIDE, self._fed - len(rest)
        return text


class TokenThoughts:
    """Follow an answer token by token, as `Thoughts` follows its text.

    length: tokens of the thought so far, with its marks; in harmony without the header of the answer, which may name a tool.
    """

    def __init__(self, tokenizer: Tokenizer, begun: bool = False):
        self._tokenizer, self._text, self._count = tokenizer, Thoughts(begun), 0
        self.channels = Channels(tokenizer) if begun and tokenizer.is_harmony else None
        self.length = self._opened = 0

    @property
    def state(self) -> int:
        return self._text.state

    def accept(self, token: int) -> None:
        if self.state == AFTER:
            return
        self._count += 1
        known = token < self._tokenizer.vocab_size
        added = self.channels.feed(token) if self.channels else self._tokenizer.decode_bytes([token]) if known else b""
        self._text.feed(added.decode("latin-1"))  # the marks are ASCII, so each byte may count as a character
        if self.channels and self.state == AFTER:
            self.length = self._opened
        elif self._text.end or self.state == INSIDE:
            self.length = self._count
        if self.channels and self.channels.begins:
            self._opened = self._count


def divided(text: str, begun: bool = False) -> tuple[str, str]:
    """Return (thought, answer) of a whole answer; the answer is "" if the thought has no end."""
    return Thoughts(begun).feed(text, over=True)


def thought_length(tokenizer: Tokenizer, ids: Sequence[int], begun: bool = False) -> int:
    """Return how many tokens at the beginning of an answer are its thought: all if it has no end, 0 if there is none."""
    thoughts = TokenThoughts(tokenizer, begun)
    for token in ids:
        if thoughts.state == AFTER:
            break
        thoughts.accept(int(token))
    return thoughts.length
