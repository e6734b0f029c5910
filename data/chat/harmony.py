"""OpenAI's harmony format of answers, as gpt-oss writes them, in the notation of all others: thought</think>answer<tool_call>….

An answer is one or several messages, `<|start|>assistant HEADER<|message|>TEXT<|end|>`; the prompt has written the first
`<|start|>assistant`. The header has the channel: the text of `analysis` is the thought, that of `final` the answer, and so is
what `commentary` says to the user; a thought behind the beginning of the answer is left out. With a recipient,
`to=functions.NAME`, the text has the arguments of a call, and ends with `<|call|>`. The last symbol of an answer is
`<|return|>` (openai.com, "OpenAI harmony response format", 2025).
"""

import re
from collections.abc import Sequence

import numpy as np

from data.text.tokenizer import Tokenizer

START, CHANNEL, MESSAGE, END, CALL, RETURN = (
    f"<|{name}|>" for name in ("start", "channel", "message", "end", "call", "return")
)
THOUGHT, ANSWER, OPENING = "analysis", "final", f"{START}assistant"
_CHANNEL, _RECIPIENT = re.compile(r"<\|channel\|>\s*(\w+)"), re.compile(r"\bto=(?:functions\.)?([\w.-]+)")


def awaits_channel(tokenizer: Tokenizer, prompt: Sequence[int]) -> bool:
    """Return whether a prompt in harmony ends with `<|start|>assistant`, so that its answer chooses a channel."""
    opening = [tokenizer.controls[START], *tokenizer.encode("assistant")]
    return [*prompt[-len(opening) :]] == opening


def closing(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the tokens that end a thought and begin the answer."""
    symbols, words = tokenizer.controls, tokenizer.encode
    begin = symbols[END], symbols[START], *words("assistant")
    return (*begin, symbols[CHANNEL], *words(ANSWER), symbols[MESSAGE])


class Channels:
    """Spell the tokens of an answer, whose prompt `awaits_channel`, in the notation of a thought that the prompt began."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._symbols = {i: symbol for symbol, i in tokenizer.controls.items()}
        self._header: str | None = OPENING  # None: within a text
        self._thinks, self._is_late = True, False  # no answer has begun; this thought comes behind its beginning
        self._thought = self._ending = b""  # what precedes the next thought; what ends a call

    @property
    def begins(self) -> bool:
        """Whether the next token begins the header of a message."""
        return self._header == OPENING

    @property
    def closing(self) -> tuple[int, ...]:
        """The tokens that end the thought here; () in the midst of a header."""
        tokens = closing(self._tokenizer)
        if self._header:
            return tokens[tokens.index(self._tokenizer.controls[CHANNEL]) :] if self.begins else ()
        return tokens if self._header is None else tokens[1:]

    def feed(self, token: int) -> bytes:
        """Return the bytes that a token adds."""
        symbol = self._symbols.get(token, "")
        spelled = self._tokenizer.decode_bytes([token]) if token < self._tokenizer.vocab_size else b""
        if self._header is not None and symbol == MESSAGE:
            header, self._header = self._header, None
            return self._begun(header)
        if self._header is not None:
            self._header += symbol or spelled.decode(errors="replace")
            return b""
        if symbol in (END, CALL, RETURN):
            self._header = ""
            return self.over()
        return b"" if self._is_late else spelled

    def over(self) -> bytes:
        """Return the bytes that end the answer: of a call whose last symbol was cut off."""
        ending, self._ending = self._ending, b""
        return ending

    def _begun(self, header: str) -> bytes:
        """Return the bytes before the text of a message."""
        found, recipient = _CHANNEL.search(header), _RECIPIENT.search(header)
        is_thought = recipient is None and found is not None and found[1] == THOUGHT
        self._is_late = is_thought and not self._thinks
        if is_thought:
            before, self._thought = self._thought, b"\n"
            return before if self._thinks else b""
        text, self._thinks = "</think>" if self._thinks else "", False
        if recipient is not None:
            self._ending = b"}\n</tool_call>"
            text += f'<tool_call>\n{{"name": "{recipient[1]}", "arguments": '
        return text.encode()


def spelled(tokenizer: Tokenizer, tokens: Sequence[int], begun: bool) -> str:
    """Return the text of an answer. begun: `opens_thought` of its prompt; then that of harmony is spelled by `Channels`."""
    if not (begun and tokenizer.is_harmony):
        return tokenizer.decode(tokens)
    channels = Channels(tokenizer)
    return b"".join([*map(channels.feed, map(int, tokens)), channels.over()]).decode(errors="replace")


def written(tokenizer: Tokenizer, ids: np.ndarray) -> np.ndarray:
    """Return the mask [N] of what an assistant wrote in a conversation: each turn from its channel to the symbol that ends it.

    A turn's messages follow each other, so `<|start|>assistant` between them counts. The `<|end|>` of an earlier answer does
    not: an answer ends with `<|return|>`, which templates replace when a message follows.
    """
    symbols, mask, opening = tokenizer.controls, np.zeros(len(ids), bool), tokenizer.encode("assistant")
    starts, goes_on = [*np.flatnonzero(ids == symbols[START]), len(ids)], False
    for begin, after in zip(starts, starts[1:]):
        role = begin + 1 + len(opening)
        if [*ids[begin + 1 : role]] != [*opening]:
            goes_on = False
            continue
        mask[begin if goes_on else role : after] = True
        goes_on = ids[after - 1] == symbols[END]
        if goes_on and [*ids[after + 1 : after + 1 + len(opening)]] != [*opening]:
            mask[after - 1] = False
    return mask
