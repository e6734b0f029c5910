"""Guess the next tokens of sequences, so that one step can check several (speculative decoding, Leviathan et al. 2023).

A guess changes no token. A token is drawn by inversion from the model's own distribution with a random number that depends on
(seed, place) alone (lm/infer/engine/draw.py), and a guess counts if it is that very token. So what is sampled is the same with
and without guesses, not only its distribution. A draft model draws with the same random numbers, so both draw the same token
more often than two independent samples would.
"""

from collections.abc import Callable
from collections.abc import Sequence as List

import jax
import numpy as np

from lm.config import ModelConfig
from lm.errors import UserError
from lm.infer.engine.sequence import Blocks, Part, Sequence
from lm.infer.engine.step import Laid, Shapes, ahead, drawing_of, drawn, fitting, forward, lay_out
from lm.infer.engine.weights import Program, Weights
from lm.model.pages import empty_layers
from lm.model.transformer import of_module

NGRAM = 3  # tokens that are looked up; fewer if these did not occur before


def by_ngrams(wanted: List[tuple[Sequence, int]]) -> list[list[int]]:
    """Guess the tokens that followed the last few tokens where these occurred before ("prompt lookup", Saxena 2023)."""
    return [_looked_up(sequence, most) for sequence, most in wanted]


def _looked_up(sequence: Sequence, most: int) -> list[int]:
    tokens, end = sequence.tokens, len(sequence.tokens)
    for at in range(sequence.noted, end - 1):  # an n-gram is noted with the place of the token after it
        for n in range(1, min(NGRAM, at + 1) + 1):
            sequence.places[tuple(tokens[at + 1 - n : at + 1])] = at + 1
    sequence.noted = max(sequence.noted, end - 1)
    for n in range(min(NGRAM, end), 0, -1):
        if (place := sequence.places.get(tuple(tokens[end - n :]))) is not None:
            return tokens[place : place + most]
    return []


class OwnPages:
    """An empty page table for `rows` sequences, and pages of a config that guesses, as many as the model has."""

    def __init__(self, drafting: ModelConfig, config: ModelConfig, blocks: List[Blocks], rows: int):
        size, count = blocks[0].size, sum(some.count for some in blocks)
        make = jax.jit(empty_layers, static_argnums=(0, 1, 2))
        self._empty = lambda: tuple(jax.tree.leaves(make(drafting, count, size)))
        self._tables_RN, self._pages = np.zeros((rows, -(-config.max_positions // size)), np.int32), self._empty()

    def recover(self) -> None:
        """Make the pages anew if a failed step has taken them."""
        if any(x.is_deleted() for x in self._pages):
            self._pages = self._empty()


class ByModel(OwnPages):
    """Guesses of a smaller model with the same vocabulary. blocks: of each shard. rows: sequences of all shards.

    Its keys and values are in pages of its own, in the same blocks as the model's. It reads what it has not read of a sequence
    when it first guesses, as many tokens in a call as the largest step has. What a prefix's blocks hold for it may be missing;
    then it guesses worse.
    """

    def __init__(self, weights: Weights, config: ModelConfig, blocks: List[Blocks], rows: int, shapes: Shapes):
        if weights.config.vocab_size != config.vocab_size:
            raise UserError(f"speculate: the draft model has {weights.config.vocab_size} tokens, the model {config.vocab_size}")
        if weights.config.recurrent_kinds:
            kind = weights.config.recurrent_kinds[0]
            raise UserError(f"speculate: the draft model has {kind} layers, whose state cannot take a guess back; take another")
        if weights.config.rope.depends_on_length:
            raise UserError("speculate: the angles of the draft model depend on the length; take another one")
        if weights.config.max_positions < config.max_positions:
            most, needed = weights.config.max_positions, config.max_positions
            raise UserError(f"speculate: the draft model has {most} positions, the model {needed}")
        self._model, self._shapes, self._vocab = weights.split(), shapes, config.vocab_size
        super().__init__(weights.config, config, blocks, rows)

    def __call__(self, wanted: List[tuple[Sequence, int]]) -> list[list[int]]:
        for sequence, _ in wanted:
            self._forget_wrong(sequence)
        guesses: dict[int, list[int]] = {id(sequence): [] for sequence, _ in wanted}
        # Sequences that it still has to read wait for their turn; a later call goes on.
        parts, left = [], self._shapes.sizes[-1]
        for sequence, most in wanted:
            begin = sequence.guessed_from
            tokens = sequence.tokens[begin : begin + left]
            left -= len(tokens)
            if tokens and most:
                ends = begin + len(tokens) == len(sequence.tokens)
                parts.append(Part(sequence, begin, tokens, 0, len(tokens) - ends))
                sequence.guessed_from += len(tokens)
        while parts:
            parts = self._guessed(parts, guesses, dict((id(sequence), most) for sequence, most in wanted))
        return [guesses[id(sequence)] for sequence, _ in wanted]

    def _forget_wrong(self, sequence: Sequence) -> None:
        """Keep of the earlier guesses that were read only those that came true."""
        for guess in sequence.guessed:
            if sequence.guessed_from >= len(sequence.tokens) - 1 or sequence.tokens[sequence.guessed_from] != guess:
                break
            sequence.guessed_from += 1
        sequence.guessed = []

    def _guessed(self, parts: List[Part], guesses: dict[int, list[int]], most: dict[int, int]) -> list[Part]:
        """Read the parts, and add a guess for each that is at its end. Return what must be read for the next guesses."""
        laid = lay_out(parts, self._shapes, self._tables_RN)
        self._pages, logits_SV, _ = forward(*self._model, self._pages, laid.tokens_B, laid.table, laid.at_S)
        if not laid.draws:
            return []
        tokens, more = drawn(logits_SV, self._vocab, drawing_of(laid, logits_SV.shape[1])).token_S, []
        for s, part, _ in laid.draws:
            sequence, guess = part.sequence, int(tokens[s])
            guesses[id(sequence)].append(guess)
            if len(guesses[id(sequence)]) < most[id(sequence)]:
                sequence.guessed.append(guess)  # it is read next
                more.append(Part(sequence, part.begin + len(part.tokens), [guess], 0, 0))
        return more


class ByModule(OwnPages):
    """Guesses of the model's own module that looks ahead (multi-token prediction, DeepSeek-V3, 2024, §2.2).

    The module reads the hidden state of a token and the token after it, and guesses the next one; for each further guess it
    reads its own hidden state, as vLLM does. Its keys and values are in pages of its own, in the same blocks as the model's.
    Those of guesses are written again with the tokens that came true. model: returns the arguments of the compiled step.
    """

    def __init__(
        self,
        model: Callable[[], tuple[Program, tuple[jax.Array, ...]]],
        config: ModelConfig,
        blocks: List[Blocks],
        rows: int,
        shapes: Shapes,
    ):
        self._model, self._shapes, self._vocab = model, shapes, config.vocab_size
        super().__init__(of_module(config), config, blocks, rows)
        self._step: tuple[List[Part], Laid, jax.Array] | None = None

    def note(self, parts: List[Part], laid: Laid, hidden_BD: jax.Array) -> None:
        """Note the model's last step; its sequences have moved on. It is read when guesses are wanted, or the next is noted."""
        self([])
        self._step = parts, laid, hidden_BD

    def __call__(self, wanted: List[tuple[Sequence, int]]) -> list[list[int]]:
        guesses: dict[int, list[int]] = {id(sequence): [] for sequence, _ in wanted}
        most = {id(sequence): count for sequence, count in wanted}
        if self._step is not None:
            (laid, from_B), hidden_ND = self._after(*self._step[:2], most), self._step[2]
            self._step = None
            while True:
                found = forward(*self._model(), self._pages, laid.tokens_B, laid.table, laid.at_S, hidden_ND, from_B, by=ahead)
                self._pages, logits_SV, hidden_ND = found
                if not laid.draws:
                    break
                tokens, more = drawn(logits_SV, self._vocab, drawing_of(laid, logits_SV.shape[1])).token_S, dict[int, Part]()
                for s, part, _ in laid.draws:
                    mine = guesses[id(part.sequence)]
                    mine.append(int(tokens[s]))
                    if len(mine) < most[id(part.sequence)]:
                        more[s] = Part(part.sequence, part.begin, mine[-1:], 0, 0)
                if not more:
                    break
                laid = lay_out(list(more.values()), self._shapes, self._tables_RN)
                from_B = np.zeros(len(laid.tokens_B), np.int32)
                from_B[laid.places] = list(more)
                # What is drawn is one place further than in the model, which has not read the guess.
                laid = laid._replace(draws=[(s, part._replace(begin=part.begin + 1), n) for s, part, n in laid.draws])
        return [guesses[id(sequence)] for sequence, _ in wanted]

    def _after(self, parts: List[Part], laid: Laid, most: dict[int, int]) -> tuple[Laid, np.ndarray]:
        """Return a step of the module: the tokens after those of the model's step, as far as they came true.

        And for each the place of the token before it in the model's step, int32 [B].
        """
        B, tokens, befores, draws, at = len(laid.tokens_B), list[int](), list[int](), list[tuple[int, Part, int]](), list[int]()
        for part, place in zip(parts, laid.places, strict=True):
            sequence = part.sequence
            after = sequence.tokens[part.begin + 1 : part.begin + 1 + len(part.tokens)]
            tokens += after
            befores += range(place, place + len(after))
            last = len(sequence.tokens) - 1
            if part.begin + len(after) == last and most.get(id(sequence)):
                draws.append((len(at), Part(sequence, last, [], 0, 0), 0))
                at.append(len(tokens) - 1)
        at_S = np.zeros(fitting(len(at), self._shapes.logits(B)), np.int32)
        at_S[: len(at)] = at
        tokens_B, from_B = np.zeros(B, np.int32), np.zeros(B, np.int32)
        tokens_B[: len(tokens)], from_B[: len(tokens)] = tokens, befores
        table, is_token_B = laid.table, np.arange(B) < len(tokens)  # padding is last, as attention to pages wants it
        row_B, slot_B = (np.where(is_token_B, x[from_B], -1) for x in map(np.asarray, (table.row_B, table.slot_B)))
        place_B, length_B = np.asarray(table.place_B)[from_B], np.asarray(table.length_B)[from_B]
        table = table._replace(row_B=row_B, place_B=place_B, slot_B=slot_B, length_B=length_B)
        return laid._replace(tokens_B=tokens_B, table=table, at_S=at_S, places=[], draws=draws), from_B
