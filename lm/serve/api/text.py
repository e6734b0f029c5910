"""The text of sampled tokens, piece by piece: whole characters, nothing of a stop string, and the place of each token."""

import codecs
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

from data.text.tokenizer import Tokenizer
from lm.infer.engine.request import Likely


class Outlet(Protocol):
    """What an answer's text passes before a client sees it, such as a guardrail. It may hold text back or end the answer."""

    def feed(self, text: str, over: bool) -> tuple[str, bool]:
        """Take the next text. Return (text that may be shown now; whether the answer ends there). over: no more follows."""


class Token(NamedTuple):
    """begin: where the token begins in the text, in characters. A token that begins inside a character has its place."""

    id: int
    likely: Likely | None
    begin: int


class Piece(NamedTuple):
    text: str = ""
    tokens: tuple[Token, ...] = ()


class TextStream:
    """The text of one continuation. The pieces add up to the same text and tokens, however the tokens are fed.

    stops: strings that end the text; the earliest one counts. keep_stop: it stays in the text. least: a stop string does not
    begin in the text of so many first tokens. spelled: bytes of control symbols that are text here.

    Attributes: count, tokens that the continuation has, up to the one that completed a stop string. stopped: by a stop string.
    blocked: by the outlet. If the outlet changes the
    text, no token is shown from there on.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stops: Sequence[str] = (),
        *,
        keep_stop: bool = False,
        least: int = 0,
        spelled: Mapping[int, bytes] | None = None,
        outlet: Outlet | None = None,
    ):
        self._tokenizer, self._stops, self._keep_stop, self._least = tokenizer, stops, keep_stop, least
        self._spelled, self._outlet = spelled or {}, outlet
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._longest = max(map(len, stops), default=0)
        self._pending = ""  # text that may still become part of a stop string
        self._passed = 0  # characters that went on, and
        self._shown = 0  # that the outlet let pass
        self._waiting = ""  # text in the outlet
        self._changed = False  # by the outlet: then tokens no longer belong to the text
        self._from = 0  # where a stop string may begin
        self._tokens: deque[Token] = deque()
        self.count, self.stopped, self.blocked = 0, False, False

    @property
    def ended(self) -> bool:
        return self.stopped or self.blocked

    def feed(
        self, ids: Sequence[int], likely: Sequence[Likely] = (), *, over: bool = False, hidden: Collection[int] = ()
    ) -> Piece:
        """Return the text that is complete after these tokens, and its tokens. over: no more follow. hidden: without text."""
        for n, i in enumerate(ids):
            if self.ended:
                break
            self.count += 1
            self._tokens.append(Token(i, likely[n] if likely else None, self._passed + len(self._pending)))
            spelling = b"" if i in hidden else self._spelled.get(i) or bytes_of(self._tokenizer, i)
            self._add(self._decoder.decode(spelling))
            if self.count <= self._least:
                self._from = self._passed + len(self._pending)
        if over and not self.ended:
            self._add(self._decoder.decode(b"", final=True))
        return self._released(over)

    def _add(self, text: str) -> None:
        old = len(self._pending)
        self._pending += text
        if not self._longest or not text:
            return
        begin = max(0, old - self._longest + 1, self._from - self._passed)
        found = [(place, len(stop)) for stop in self._stops if (place := self._pending.find(stop, begin)) >= 0]
        if found:
            place, length = min(found)
            self._pending, self.stopped = self._pending[: place + length * self._keep_stop], True

    def _released(self, over: bool) -> Piece:
        over = over or self.stopped
        text = self._pending if over else self._pending[: len(self._pending) - self._held()]
        self._pending = self._pending[len(text) :]
        self._passed += len(text)
        if self._outlet is not None:
            self._waiting += text
            text, self.blocked = self._outlet.feed(text, over)
            self._changed |= not self._waiting.startswith(text)
            self._waiting = self._waiting[len(text) :]
        self._shown += len(text)
        whole = over and not self.ended
        tokens = []
        while self._tokens and not self._changed and (whole or self._tokens[0].begin < self._shown):
            tokens.append(self._tokens.popleft())
        return Piece(text, tuple(tokens))

    def _held(self) -> int:
        """Return how many characters at the end may be the beginning of a stop string."""
        for length in range(min(self._longest - 1, len(self._pending)), 0, -1):
            end = self._pending[-length:]
            if any(len(stop) > length and stop.startswith(end) for stop in self._stops):
                return length
        return 0


def bytes_of(tokenizer: Tokenizer, i: int) -> bytes:
    """Return the bytes of a token within a text; none for rows of the model that the tokenizer does not have."""
    return tokenizer.decode_bytes([i]) if i < tokenizer.vocab_size else b""


def spelling(tokenizer: Tokenizer, names: Mapping[int, str], i: int) -> tuple[str, bytes]:
    """Return (text, bytes) of one token. names: control symbols by id. Bytes that are no text are written "bytes:\\x…"."""
    raw = bytes_of(tokenizer, i)
    if not raw:
        raw = names.get(i, f"<{i}>").encode()
    try:
        return raw.decode(), raw
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw), raw
