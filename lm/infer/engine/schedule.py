"""Choose what the next step computes: one token of every sequence that is decoded, then pieces of prompts.

Prompts are read in pieces beside the decoding ("chunked prefill", Agrawal et al. 2024, Sarathi-Serve), so a long one does not
hold up the others.
"""

from collections import deque
from collections.abc import Callable, Collection

from lm.infer.engine.sequence import Blocks, Part, Sequence

Drafter = Callable[[list[tuple[Sequence, int]]], list[list[int]]]


class Schedule:
    """Running and waiting sequences, and their blocks. Others pass a waiting one while its media are encoded.

    rows: most sequences that run at a time. budget: most tokens of a step, at least `rows`. drafts: most guesses for a
    sequence. drafter: returns for each sequence up to so many tokens that may follow (lm/infer/engine/drafts.py).
    """

    def __init__(self, blocks: Blocks, rows: int, budget: int, drafts: int, drafter: Drafter):
        self.blocks, self.budget, self.drafts, self.drafter = blocks, budget, drafts, drafter
        self.running: list[Sequence] = []  # in the order in which they started
        self.waiting = deque[Sequence]()  # the first that came first, after those that had been preempted
        self._rows = list(range(rows - 1, -1, -1))
        self.preemptions = self.prefix_queries = self.prefix_hits = 0

    def step(self, admits: bool = True) -> list[Part]:
        """Return the parts of the next step; their blocks are taken. Sequences are started, and preempted if blocks run out."""
        parts: list[Part] = []
        left = self.budget
        for sequence in [one for one in self.running if one.must_read_again()]:
            sequence.leave(self.blocks)
        decoding = [one for one in self.running if one.computed == len(one.tokens) - 1]
        wanted: list[tuple[Sequence, int]] = []
        for n, sequence in enumerate(decoding):
            if sequence.row < 0 or not self._grow(sequence, len(sequence.tokens), [one for one, _ in wanted]):  # preempted
                continue
            most = self._guesses(sequence, left - (len(decoding) - n)) if self.drafts else 0
            wanted.append((sequence, most))
            left -= 1 + most
        guesses = self.drafter(wanted) if self.drafts and wanted else [[]] * len(wanted)
        for (sequence, most), guess in zip(wanted, guesses, strict=True):
            guess = guess[:most]
            parts.append(Part(sequence, sequence.computed, [sequence.tokens[-1], *guess], len(guess), 0))
        for sequence in list(self.running):
            if left <= 0:
                break
            if sequence.row >= 0 and sequence.computed < len(sequence.tokens) - 1:
                left -= self._prompt(sequence, left, parts)
        while admits and left > 0 and self._rows and (ready := next((one for one in self.waiting if one.is_ready), None)):
            # A block for each that runs, so that it need not be preempted at once.
            if ready.needs(len(ready.tokens), self.blocks.size) + len(self.running) > self.blocks.available and self.running:
                break
            self.waiting.remove(ready)
            self.running.append(ready)
            self.prefix_hits += ready.start(self._rows.pop(), self.blocks)
            self.prefix_queries += len(ready.tokens)
            left -= self._prompt(ready, left, parts)
        return parts

    def remove(self, sequence: Sequence) -> None:
        """Remove a sequence. A running one gives its blocks back."""
        if sequence.row < 0:
            self.waiting.remove(sequence)
            return
        self.running.remove(sequence)
        sequence.leave(self.blocks)
        self._rows.append(sequence.row)
        sequence.row = -1

    def preempt(self, sequence: Sequence) -> None:
        """Stop a running sequence; it starts again later, with the tokens that it has."""
        self.remove(sequence)
        self.waiting.appendleft(sequence)
        self.preemptions += 1
        sequence.handle.times = sequence.handle.times._replace(preempted=sequence.handle.times.preempted + 1)

    def _guesses(self, sequence: Sequence, left: int) -> int:
        """Return how many tokens may be guessed for a sequence, and take their blocks: nobody is preempted for guesses."""
        tokens, rope = len(sequence.tokens), sequence.rope
        most = 0 if sequence.adjusts else min(self.drafts, sequence.request.max_new_tokens - sequence.sampled - 1, left)
        if rope is not None and not sequence.is_long:  # not beyond the length at which angles change for all tokens
            most = min(most, rope.original_positions - tokens)
        while most > 0 and sequence.needs(tokens + most, self.blocks.size) > self.blocks.available:
            most -= 1
        self._grow(sequence, tokens + max(0, most), [])
        return max(0, most)

    def _prompt(self, sequence: Sequence, left: int, parts: list[Part]) -> int:
        """Add the next piece of a prompt. Return its number of tokens."""
        begin = sequence.computed
        end = min(len(sequence.tokens), begin + left)
        if not self._grow(sequence, end, [part.sequence for part in parts]):
            return 0
        tokens = sequence.tokens[begin:end]
        first = len(tokens) - (end == len(sequence.tokens))
        if sequence.request.prompt_logprobs >= 0 and sequence.sampled == 0:
            first = 0
        parts.append(Part(sequence, begin, tokens, 0, first))
        return len(tokens)

    def _grow(self, sequence: Sequence, upto: int, planned: Collection[Sequence]) -> bool:
        """Take blocks for the first `upto` tokens. If there are too few, preempt the sequences that started last.

        Those that are `planned` for the step stay. Return False if this one itself had to go.
        """
        needed = sequence.needs(upto, self.blocks.size)
        while needed > self.blocks.available:
            last = next(one for one in reversed(self.running) if all(other is not one for other in planned))
            self.preempt(last)
            if last is sequence:
                return False
        sequence.blocks += [self.blocks.take() for _ in range(needed)]
        return True
