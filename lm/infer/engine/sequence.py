"""A request while the engine works on it: its tokens, its blocks of the paged cache, and what it asks of the next logits.

A full block is found again by the hash of all tokens up to its end, so sequences with the same beginning share its pages
(the automatic prefix cache of vLLM, Kwon et al. 2023). A block that nobody uses keeps its content until it is needed.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from collections.abc import Sequence as List
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from lm.config import RECURRENT, ModelConfig, Rope
from lm.infer.engine.draw import Drawn
from lm.infer.engine.media import Shown
from lm.infer.engine.request import NOT_FINITE, Event, Handle, Likely
from lm.infer.engine.snapshots import Snapshots


class Blocks:
    """The blocks 0 … count − 1 of `size` tokens each.

    Every block is free (holds nothing known), cached (known, unused) or used. All methods are for one thread.
    snapshots: of the model's states, in `slots`; None: it has none.
    """

    def __init__(self, count: int, size: int, slots: range | None = None):
        self.count, self.size, self.snapshots = count, size, None if slots is None else Snapshots(slots)
        self._free = list(range(count - 1, -1, -1))
        self._users = [0] * count
        self._hash: list[bytes | None] = [None] * count  # of a known block
        self._known: dict[bytes, int] = {}
        self._cached: OrderedDict[int, None] = OrderedDict()  # known and unused, the longest unused first

    @property
    def available(self) -> int:
        """Return how many blocks `take` can give."""
        return len(self._free) + len(self._cached)

    @property
    def used(self) -> int:
        return self.count - self.available

    def take(self) -> int:
        """Return a block for one user, whose content is unknown. Raises: IndexError if all blocks are used."""
        if self._free:
            block = self._free.pop()
        elif self._cached:
            block, _ = self._cached.popitem(last=False)
            self._forget(block)
        else:
            raise IndexError("all blocks are used")
        self._users[block] = 1
        return block

    def find(self, hashes: List[bytes]) -> list[int]:
        """Return the blocks of the longest known prefix, each with one more user. hashes: of `chain`, in order."""
        found = []
        for one in hashes:
            if (block := self._known.get(one)) is None:
                break
            self._cached.pop(block, None)
            self._users[block] += 1
            found.append(block)
        return found

    def seal(self, block: int, hash: bytes) -> None:
        """Make the content of a full block known. If another block has the same content, that one stays known."""
        if hash not in self._known and self._hash[block] is None:
            self._known[hash], self._hash[block] = block, hash

    def release(self, blocks: List[int]) -> None:
        """Take one user from each. Of a sequence's known blocks the last are the first to be given away."""
        for block in reversed(blocks):
            self._users[block] -= 1
            if self._users[block]:
                continue
            if self._hash[block] is None:
                self._free.append(block)
            else:
                self._cached[block] = None

    def forget(self) -> None:
        """Forget all known content, as after a change of weights. Used blocks stay used."""
        self._free += self._cached
        self._cached.clear()
        for block in range(self.count):
            self._forget(block)

    def _forget(self, block: int) -> None:
        if (hash := self._hash[block]) is not None:
            del self._known[hash]
            self._hash[block] = None
            if self.snapshots is not None:
                self.snapshots.drop(hash)


def chain(
    tokens: List[int], size: int, salt: bytes, before: List[bytes] = (), beside: Mapping[int, bytes] = MappingProxyType({})
) -> list[bytes]:
    """Return the hash of each full block of the tokens, which covers everything before it.

    Hashes are of 16 bytes by BLAKE2b: nobody can make a prompt that collides with another's. salt: of whatever else the keys
    and values depend on, such as an adapter. before: hashes of the first blocks, which are left out. beside: what the block of
    this number depends on beside its tokens, such as images.
    """
    hashes, last = list[bytes](), before[-1] if before else salt
    for n in range(len(before), len(tokens) // size):
        block = np.asarray(tokens[n * size : (n + 1) * size], np.int32).tobytes()
        last = hashlib.blake2b(last + block + beside.get(n, b""), digest_size=16).digest()
        hashes.append(last)
    return hashes


class Sequence:
    """The state of one request. tokens: of the prompt and the sample. computed: how many of them have keys and values in pages.

    blocks: of the pages, in order; hashes: of the full blocks whose content is known. shard: where it runs or ran last. row: of
    the shard's page table, −1 while it waits. state: the snapshot that the next token continues; −1: the state of its row. key:
    what keys and values depend on beside the tokens, such as the weights. slot: of its adapter, or −1. shown: its media, or
    None. adjusts: whether its logits are changed before a token is drawn. rope: of the model if its angles depend on the
    length, else None.
    """

    def __init__(self, handle: Handle, config: ModelConfig, rope: Rope | None, key: str, slot: int = -1):
        self.handle, self.request = handle, handle.request
        r = handle.request
        self.tokens, self.prompt = list(r.prompt), len(r.prompt)
        self.computed, self.row, self.shard = 0, -1, 0
        self.blocks: list[int] = []
        self.hashes: list[bytes] = []
        self.read: list[Likely | None] = []  # of the prompt's tokens, as far as they are read and reported
        self.rope, self.key, self.slot = rope, key, slot
        self.has_state = not set(RECURRENT).isdisjoint(config.attention_pattern)
        self.state, self._branch, self._latest = -1, 0, b""  # _latest: hash at its own newest snapshot behind the prompt
        self._planned: dict[int, int] = {}  # snapshots of the next step: number of tokens before -> slot
        self.is_long = False  # read with the angles beyond the original context
        self.shown = Shown(r.prompt[: r.media_end or None], len(r.prompt), r.media, config) if r.media else None
        self._beside: dict[int, bytes] | None = None  # of its media, by block
        penalises = r.presence_penalty or r.frequency_penalty or r.repetition_penalty != 1
        self.adjusts = bool(r.logit_bias or penalises or r.grammar is not None or (r.min_new_tokens and r.stop_ids))
        self.bias_V: np.ndarray | None = None
        self.seen_V: np.ndarray | None = None
        self.grammar, self._vocab = r.grammar, config.vocab_size
        self.thought = r.thought.start() if r.thought else None
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

    # Angles that depend on the length.

    def _beyond(self) -> bool:
        return self.rope is not None and len(self.tokens) > self.rope.original_positions

    def must_read_again(self) -> bool:
        """Return whether all tokens must be read again because LongRoPE's angles changed with the last one."""
        return self.rope is not None and self.rope.scaling == "longrope" and self._beyond() != self.is_long

    def length_at(self, place: int) -> int:
        """Return the length that sets the angles of the token there: with LongRoPE the whole sequence's, so that all agree.

        With dynamic NTK it is that of the prompt for its tokens, and of what was there for a later one, as in `lm.generate`.
        """
        is_longrope = self.rope is not None and self.rope.scaling == "longrope"
        return len(self.tokens) if is_longrope else max(self.prompt, place + 1)

    def _shareable(self) -> int:
        """Return how many first tokens have keys and values that any sequence with the same beginning would have."""
        if self.rope is None or (self.rope.scaling == "longrope" and self.is_long):
            return len(self.tokens)
        return min(len(self.tokens), self.rope.original_positions) if self.prompt <= self.rope.original_positions else 0

    # Blocks.

    def start(self, row: int, blocks: Blocks) -> int:
        """Take a row, and the blocks of a known prefix. Return how many tokens they hold; at least one is left to be read."""
        self.row, self.is_long = row, self._beyond()
        if self.request.prompt_logprobs < 0:
            hashes = self._hashes(self.tokens[: min(len(self.tokens) - 1, self._shareable())], blocks.size)
            self.blocks = blocks.find(hashes)
            if blocks.snapshots is not None:
                known, self._branch = self.blocks, len(self.blocks) * blocks.size
                n, self.state = blocks.snapshots.find(hashes[: len(known)])
                self.blocks = known[:n]
                blocks.release(known[n:])
            self.hashes = hashes[: len(self.blocks)]
            self.computed = self.guessed_from = len(self.blocks) * blocks.size
        return self.computed

    def _hashes(self, tokens: List[int], size: int, before: List[bytes] = ()) -> list[bytes]:
        if self._beside is None:
            self._beside = self.shown.beside(size) if self.shown else {}
        return chain(tokens, size, f"{self.key} {self.is_long}".encode(), before, self._beside)

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
        full = min(self.computed, self._shareable()) // blocks.size
        if full > len(self.hashes):
            for hash in self._hashes(self.tokens[: full * blocks.size], blocks.size, self.hashes):
                blocks.seal(self.blocks[len(self.hashes)], hash)
                self.hashes.append(hash)
        if blocks.snapshots is not None:
            self._seal_snapshots(blocks.snapshots, blocks.size)

    def leave(self, blocks: Blocks) -> None:
        """Give all blocks back. What is computed is lost, except what the known blocks keep."""
        blocks.release(self.blocks)
        if blocks.snapshots is not None:
            for slot in (*self._planned.values(), *([self.state] if self.state >= 0 else [])):
                blocks.snapshots.release(slot)
            self.state, self._branch, self._latest, self._planned = -1, 0, b"", {}
        self.blocks, self.hashes, self.computed, self.read = [], [], 0, []
        self.guessed, self.guessed_from = [], 0
        self.is_long = self._beyond()

    # Snapshots.

    def plan_snapshots(self, upto: int, snapshots: Snapshots, size: int) -> None:
        """Take slots for the snapshots of the next step, which computes the tokens before `upto`.

        They are at the last full block of the prompt, for copies of it and further turns of its chat; at the last full block of
        what is known, so after it at each block that the answer fills, in place of the one before; and where the known blocks
        end and it had to begin at an earlier snapshot, as behind a system prompt: the next one with this prefix finds it there.
        """
        before = len(self.tokens) - 1
        ends = {self._branch, (self.prompt - 1) // size * size}
        for place in range(self.computed // size * size + size, min(upto, self._shareable()) + 1, size):
            if place in ends or place >= before // size * size:
                if place >= self.prompt:
                    snapshots.drop(self._latest)
                if (slot := snapshots.take()) is not None:
                    self._planned[place] = slot

    def states(self, count: int) -> np.ndarray:
        """Return the numbers int32 [count, 2] of the states that the next tokens continue and leave."""
        left = [self._planned.get(self.computed + n + 1, self.row) for n in range(count)]
        return np.asarray([(self.state if self.state >= 0 else self.row, *left[:-1]), left], np.int32).T

    def _seal_snapshots(self, snapshots: Snapshots, size: int) -> None:
        """Make the snapshots of the step known, and continue from the last one if no token came after it."""
        if self.state >= 0:
            snapshots.release(self.state)
        self.state = self._planned.pop(self.computed, -1)
        for place, slot in ((self.computed, self.state), *self._planned.items()):
            if slot >= 0 and place <= len(self.hashes) * size:
                hash = self.hashes[place // size - 1]
                if snapshots.keep(hash, slot) and place >= self.prompt:
                    self._latest = hash
        for slot in self._planned.values():
            snapshots.release(slot)
        self._planned = {}

    # Logits.

    def bias(self) -> np.ndarray:
        """Return the float32 [V] that is added to the logits of the next token.

        Where a grammar allows only an end, it comes, even before min_new_tokens.
        """
        r, bias_V = self.request, self._start_adjusting() if self.bias_V is None else self.bias_V
        if self.grammar is not None and not self._grammar_waits():
            bias_V = np.where(self.grammar.allowed(), bias_V, -np.inf).astype(np.float32)
        if self.sampled < r.min_new_tokens:
            longer_V = bias_V.copy()
            longer_V[list(r.stop_ids)] = -np.inf
            bias_V = longer_V if longer_V.max() > -np.inf else bias_V
        return bias_V

    def _grammar_waits(self) -> bool:
        return self.thought is not None and self.thought.precedes_form

    def _start_adjusting(self) -> np.ndarray:
        """Make the arrays, which a request that waits does not need yet."""
        self.bias_V, self.seen_V = np.zeros(self._vocab, np.float32), np.zeros(self._vocab, bool)
        for id, bias in self.request.logit_bias.items():
            self.bias_V[id] += bias
        self.seen_V[self.tokens] = True
        self._counted: set[int] = set()
        return self.bias_V

    def append(self, token: int) -> str:
        """Add a sampled token. Return "stop" or "length" if it is the last one, else ""."""
        r, grammar_waits = self.request, self.grammar is not None and self._grammar_waits()
        self.tokens.append(token)
        if self.thought is not None:
            self.thought.accept(token)
        if self.bias_V is not None and self.seen_V is not None:
            self.bias_V[token] -= r.frequency_penalty + (r.presence_penalty if token not in self._counted else 0)
            self._counted.add(token)
            self.seen_V[token] = True
        if token in r.stop_ids:
            return "stop"
        if self.grammar is not None and not grammar_waits:
            self.grammar.accept(token)
        return "length" if self.sampled >= r.max_new_tokens else ""


class Part(NamedTuple):
    """Tokens of one sequence in a step. begin: place of the first. drafts: how many of the last tokens are guesses.

    first_drawn: index in `tokens` of the first token whose logits are needed, len(tokens) if none is.
    """

    sequence: Sequence
    begin: int
    tokens: list[int]
    drafts: int
    first_drawn: int

    def advance(self, found: Drawn | None, here: slice) -> Event | None:
        """Move the sequence on, and return its new tokens; None if only a piece of the prompt was read.

        here: where what was drawn for the part is in `found`. Drafts are checked one by one: what was drawn after a draft
        counts only if the same token was drawn in its place. So drafts change no token: each is drawn from the model's own
        distribution, with the random number of its place.
        """
        sequence, r = self.sequence, self.sequence.request
        if found is not None and found.lost_S[here].any():
            return Event(finish="error", error=NOT_FINITE)
        draws = self.begin + len(self.tokens) - self.drafts >= len(sequence.tokens)  # the next token, not only the prompt's
        first = here.stop - self.drafts - 1 if draws else here.stop
        scores = r.prompt_logprobs >= 0 and not sequence.sampled
        if found is not None and scores:
            sequence.read += [_likely(found, s, r.prompt_logprobs) for s in range(here.start, first)]
        if not draws:
            sequence.computed = self.begin + len(self.tokens)
            return None
        assert found is not None
        drafts, tokens, likely, finish = self.tokens[len(self.tokens) - self.drafts :], list[int](), list[Likely](), ""
        prompt = (None, *sequence.read) if scores else ()
        for n, s in enumerate(range(first, here.stop)):
            tokens.append(int(found.token_S[s]))
            if r.logprobs >= 0:
                likely.append(_likely(found, s, r.logprobs))
            sequence.computed = len(sequence.tokens)
            finish = sequence.append(tokens[-1])
            if finish or (n < len(drafts) and drafts[n] != tokens[-1]):
                break
        return Event(tuple(tokens), tuple(likely), prompt, finish)


def _likely(found: Drawn, s: int, top: int) -> Likely:
    alternatives: tuple[tuple[int, float], ...] = ()
    if top and found.top is not None:
        alternatives = tuple((int(id), float(p)) for p, id in zip(found.top[0][s, :top], found.top[1][s, :top]))
    return Likely(float(found.logp_S[s]), alternatives)
