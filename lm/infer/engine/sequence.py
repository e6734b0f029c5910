"""A request while the engine works on it: its tokens, its blocks, and what it asks of the next logits."""

import numpy as np

from lm.config import ModelConfig
from lm.infer.engine.blocks import Blocks, chain
from lm.infer.engine.media import Shown
from lm.infer.engine.request import Handle, Likely


class Sequence:
    """The state of one request. tokens: of the prompt and the sample. computed: how many of them have keys and values in pages.

    blocks: of the pages, in order; hashes: of the full blocks whose content is known. row: of the page table, −1 while it
    waits. key: what keys and values depend on beside the tokens, such as the weights. slot: of its adapter, or −1. shown: its
    media, or None.
    """

    def __init__(self, handle: Handle, config: ModelConfig, key: str, slot: int = -1):
        self.handle, self.request = handle, handle.request
        self.tokens = list(self.request.prompt)
        self.prompt = len(self.tokens)
        self.computed, self.row = 0, -1
        self.blocks: list[int] = []
        self.hashes: list[bytes] = []
        self.read: list[Likely | None] = []  # of the prompt's tokens, as far as they are read and reported
        self.rope, self.key, self.slot = config.rope, key, slot
        self.shown = Shown(self.request.prompt, self.request.media, config) if self.request.media else None
        self._beside: dict[int, bytes] | None = None  # of its media, by block
        self.is_long = self._beyond()
        self.bias_V: np.ndarray | None = None
        self.seen_V: np.ndarray | None = None
        self.grammar, self._vocab = self.request.grammar, config.vocab_size
        self.places: dict[tuple[int, ...], int] = {}  # for drafts: the token after each n-gram
        self.noted = 0
        self.guessed: list[int] = []  # by a draft model, after the first `guessed_from` tokens
        self.guessed_from = 0

    @property
    def sampled(self) -> int:
        return len(self.tokens) - self.prompt

    @property
    def is_ready(self) -> bool:
        """Return whether it can start: its media are encoded."""
        return self.shown is None or self.shown.vectors_VD is not None

    @property
    def left(self) -> int:
        """Return how many tokens may still be sampled."""
        return self.request.max_new_tokens - self.sampled

    # Angles that depend on the length.

    def _beyond(self) -> bool:
        return self.rope.depends_on_length and len(self.tokens) > self.rope.original_positions

    def must_read_again(self) -> bool:
        """Return whether all tokens must be read again because LongRoPE's angles changed with the last one."""
        return self.rope.scaling == "longrope" and self._beyond() != self.is_long

    def length_at(self, place: int) -> int:
        """Return the length that sets the angles of the token there: with LongRoPE the whole sequence's, so that all agree.

        With dynamic NTK it is that of the prompt for its tokens, and of what was there for a later one, as in `lm.generate`.
        """
        return len(self.tokens) if self.rope.scaling == "longrope" else max(self.prompt, place + 1)

    def shareable(self) -> int:
        """Return how many first tokens have keys and values that any sequence with the same beginning would have."""
        if not self.rope.depends_on_length or (self.rope.scaling == "longrope" and self.is_long):
            return len(self.tokens)
        return min(len(self.tokens), self.rope.original_positions) if self.prompt <= self.rope.original_positions else 0

    def salt(self) -> bytes:
        """Return what keys and values depend on beside the tokens."""
        return f"{self.key} {self.is_long}".encode()

    # Blocks.

    def find(self, blocks: Blocks) -> int:
        """Take the blocks of a known prefix. Return how many tokens they hold; at least one token is left to be read."""
        if self.request.prompt_logprobs >= 0:
            return 0
        known = self.tokens[: min(len(self.tokens) - 1, self.shareable())]
        hashes = list(chain(known, blocks.size, self.salt(), (), self._media_beside(blocks.size)))
        self.blocks = blocks.find(hashes)
        self.hashes = hashes[: len(self.blocks)]
        self.computed = self.guessed_from = len(self.blocks) * blocks.size
        return self.computed

    def _media_beside(self, size: int) -> dict[int, bytes]:
        if self._beside is None:
            self._beside = self.shown.beside(size) if self.shown else {}
        return self._beside

    def begin_anew(self, key: str) -> None:
        """Take another key, of newer weights: nothing that the old ones computed is left."""
        self.key = key
        if self.shown:
            self.shown.forget()

    def needs(self, upto: int, size: int) -> int:
        """Return how many more blocks the first `upto` tokens need."""
        return -(-upto // size) - len(self.blocks)

    def seal(self, blocks: Blocks) -> None:
        """Make the full blocks known whose tokens are all computed."""
        full = min(self.computed, self.shareable()) // blocks.size
        if full > len(self.hashes):
            tokens, beside = self.tokens[: full * blocks.size], self._media_beside(blocks.size)
            for hash in list(chain(tokens, blocks.size, self.salt(), self.hashes, beside)):
                blocks.seal(self.blocks[len(self.hashes)], hash)
                self.hashes.append(hash)

    def leave(self, blocks: Blocks) -> None:
        """Give all blocks back. What is computed is lost, except what the known blocks keep."""
        blocks.release(self.blocks)
        self.blocks, self.hashes, self.computed, self.read = [], [], 0, []
        self.guessed, self.guessed_from = [], 0
        self.is_long = self._beyond()

    # Logits.

    @property
    def adjusts(self) -> bool:
        """Return whether the logits are changed before a token is drawn."""
        r = self.request
        return bool(
            r.logit_bias
            or r.presence_penalty
            or r.frequency_penalty
            or r.repetition_penalty != 1
            or r.grammar is not None
            or (r.min_new_tokens and r.stop_ids)
        )

    def _start_adjusting(self) -> np.ndarray:
        """Make the arrays, which a request that waits does not need yet."""
        self.bias_V, self.seen_V = np.zeros(self._vocab, np.float32), np.zeros(self._vocab, bool)
        for id, bias in self.request.logit_bias.items():
            self.bias_V[id] += bias
        self.seen_V[self.tokens] = True
        self._counted: set[int] = set()
        return self.bias_V

    def bias(self) -> np.ndarray:
        """Return the float32 [V] that is added to the logits of the next token.

        Where a grammar allows only an end, it comes, even before min_new_tokens.
        """
        r, bias_V = self.request, self._start_adjusting() if self.bias_V is None else self.bias_V
        if self.grammar is not None:
            bias_V = np.where(self.grammar.allowed(), bias_V, -np.inf).astype(np.float32)
        if self.sampled < r.min_new_tokens:
            longer_V = bias_V.copy()
            longer_V[list(r.stop_ids)] = -np.inf
            bias_V = longer_V if longer_V.max() > -np.inf else bias_V
        return bias_V

    def append(self, token: int) -> str:
        """Add a sampled token. Return "stop" or "length" if it is the last one, else ""."""
        r = self.request
        self.tokens.append(token)
        if self.bias_V is not None and self.seen_V is not None:
            self.bias_V[token] -= r.frequency_penalty + (r.presence_penalty if token not in self._counted else 0)
            self._counted.add(token)
            self.seen_V[token] = True
        if token in r.stop_ids:
            return "stop"
        if self.grammar is not None:
            self.grammar.accept(token)
        return "length" if self.left <= 0 else ""
