"""Choose what the next step computes: one token of every sequence that is decoded, then pieces of prompts.

Prompts are read in pieces beside the decoding ("chunked prefill", Agrawal et al. 2024, Sarathi-Serve), so a long one does not
hold up the others. One step can also check tokens that were guessed (speculative decoding, Leviathan et al. 2023): those that
followed the last few tokens where these occurred before ("prompt lookup", Saxena 2023).
"""

from collections import deque

from lm.infer.engine.sequence import Blocks, Part, Sequence

NGRAM = 3  # tokens that a guess looks up; fewer if these did not occur before


class Schedule:
    """Running and waiting sequences, and their blocks. Others pass a waiting one while its media are encoded.

    rows: most sequences that run at a time. budget: most tokens of a step, at least `rows`. drafts: most guesses for a
    sequence.
    """

    def __init__(self, blocks: Blocks, rows: int, budget: int, drafts: int):
        self.blocks, self.budget, self.drafts = blocks, budget, drafts
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
        for n, sequence in enumerate(decoding):
            if sequence.row < 0 or not self._grow(sequence, len(sequence.tokens), parts):  # preempted
                continue
            guess = guessed(sequence, self._guesses(sequence, left - (len(decoding) - n))) if self.drafts else []
            parts.append(Part(sequence, sequence.computed, [sequence.tokens[-1], *guess], len(guess), 0))
            left -= 1 + len(guess)
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
        if not self._grow(sequence, end, parts):
            return 0
        tokens = sequence.tokens[begin:end]
        first = len(tokens) - (end == len(sequence.tokens))
        if sequence.request.prompt_logprobs >= 0 and sequence.sampled == 0:
            first = 0
        parts.append(Part(sequence, begin, tokens, 0, first))
        return len(tokens)

    def _grow(self, sequence: Sequence, upto: int, parts: list[Part]) -> bool:
        """Take blocks for the first `upto` tokens. If there are too few, preempt the sequences that started last.

        Those that have `parts` of the step stay. Return False if this one itself had to go.
        """
        needed = sequence.needs(upto, self.blocks.size)
        while needed > self.blocks.available:
            last = next(one for one in reversed(self.running) if all(part.sequence is not one for part in parts))
            self.preempt(last)
            if last is sequence:
                return False
        sequence.blocks += [self.blocks.take() for _ in range(needed)]
        return True


def guessed(sequence: Sequence, most: int) -> list[int]:
    """Return at most `most` tokens that followed the last few tokens of a sequence where these occurred before."""
    tokens, end = sequence.tokens, len(sequence.tokens)
    for at in range(sequence.noted, end - 1):  # an n-gram is noted with the place of the token after it
        for n in range(1, min(NGRAM, at + 1) + 1):
            sequence.places[tuple(tokens[at + 1 - n : at + 1])] = at + 1
    sequence.noted = max(sequence.noted, end - 1)
    for n in range(min(NGRAM, end), 0, -1):
        if (place := sequence.places.get(tuple(tokens[end - n :]))) is not None:
            return tokens[place : place + most]
    return []
