"""Choose what the next step computes: one token of every sequence that is decoded, then pieces of prompts.

Prompts are read in pieces beside the decoding ("chunked prefill", Agrawal et al. 2024, Sarathi-Serve), so a long one does not
hold up the others.
"""

from collections import deque
from collections.abc import Callable, Collection
from collections.abc import Sequence as List

from lm.infer.engine.sequence import Blocks, Part, Sequence

Drafter = Callable[[list[tuple[Sequence, int]]], list[list[int]]]


class Shard:
    """What one part of the mesh's rows has: its own blocks, rows of the page table, and the sequences that run there.

    left: how many more tokens it can take in the step that is planned.
    """

    def __init__(self, blocks: Blocks, rows: int):
        self.blocks, self.left = blocks, 0
        self.running: list[Sequence] = []  # in the order in which they started
        self.rows = list(range(rows - 1, -1, -1))

    def admits(self, sequence: Sequence) -> bool:
        """Return whether the sequence can start here. It leaves a block for each that runs, which is not preempted at once."""
        needed = sequence.needs(len(sequence.tokens), self.blocks.size) + len(self.running)
        return self.left > 0 and bool(self.rows) and (needed <= self.blocks.available or not self.running)


class Schedule:
    """Running and waiting sequences, and their blocks. Others pass a waiting one while its media are encoded.

    It depends on nothing but the requests and their order, so several processes that get the same requests plan the same steps.

    blocks: of each shard; a sequence stays on the shard where it starts, one with the fewest. rows: most sequences of a shard
    that run at a time. budget: most tokens of a shard's step, at least `rows`. drafts: most guesses for a sequence. drafter:
    returns for each sequence up to so many tokens that may follow (lm/infer/engine/drafts.py).
    """

    def __init__(self, blocks: List[Blocks], rows: int, budget: int, drafts: int, drafter: Drafter):
        self.shards = [Shard(some, rows) for some in blocks]
        self.budget, self.drafts, self.drafter = budget, drafts, drafter
        self.waiting = deque[Sequence]()  # the first that came first, after those that had been preempted
        self.preemptions = self.prefix_queries = self.prefix_hits = 0

    @property
    def running(self) -> list[Sequence]:
        return [sequence for shard in self.shards for sequence in shard.running]

    def step(self, admits: bool = True) -> list[Part]:
        """Return the parts of the next step; their blocks are taken. Sequences are started, and preempted if blocks run out."""
        for shard in self.shards:
            shard.left = self.budget
            for sequence in [one for one in shard.running if one.must_read_again()]:
                sequence.leave(shard.blocks)
        parts = self._decoded()
        for shard in self.shards:
            for sequence in list(shard.running):
                if shard.left > 0 and sequence.row >= 0 and sequence.computed < len(sequence.tokens) - 1:
                    self._read(shard, sequence, parts)
        while admits and (ready := next((one for one in self.waiting if one.is_ready), None)):
            free = [n for n, shard in enumerate(self.shards) if shard.admits(ready)]
            if not free:
                break
            ready.shard = min(free, key=lambda n: len(self.shards[n].running))
            shard = self.shards[ready.shard]
            shard.running.append(ready)  # first: for another thread's `stats` it is never in neither
            self.waiting.remove(ready)
            self.prefix_hits += ready.start(shard.rows.pop(), shard.blocks)
            self.prefix_queries += len(ready.tokens)
            self._read(shard, ready, parts)
        return parts

    def remove(self, sequence: Sequence) -> None:
        """Remove a sequence. A running one gives its blocks back."""
        if sequence.row < 0:
            self.waiting.remove(sequence)
            return
        shard = self.shards[sequence.shard]
        shard.running.remove(sequence)
        sequence.leave(shard.blocks)
        shard.rows.append(sequence.row)
        sequence.row = -1

    def preempt(self, sequence: Sequence) -> None:
        """Stop a running sequence; it starts again later, with the tokens that it has."""
        self.remove(sequence)
        self.waiting.appendleft(sequence)
        self.preemptions += 1
        sequence.handle.times = sequence.handle.times._replace(preempted=sequence.handle.times.preempted + 1)

    def _decoded(self) -> list[Part]:
        """Return the parts of the sequences that are decoded: the last token of each, and guesses."""
        wanted: list[tuple[Sequence, int]] = []
        for shard in self.shards:
            decoding, first = [one for one in shard.running if one.computed == len(one.tokens) - 1], len(wanted)
            for n, sequence in enumerate(decoding):
                planned = [one for one, _ in wanted[first:]]
                if sequence.row < 0 or not self._grow(shard, sequence, len(sequence.tokens), planned):  # preempted
                    continue
                most = self._guesses(shard, sequence, shard.left - (len(decoding) - n)) if self.drafts else 0
                wanted.append((sequence, most))
                shard.left -= 1 + most
        guesses = self.drafter(wanted) if self.drafts and wanted else [[]] * len(wanted)
        parts = list[Part]()
        for (sequence, most), guess in zip(wanted, guesses, strict=True):
            guess = guess[:most]
            if (blocks := self.shards[sequence.shard].blocks).snapshots is not None:
                sequence.plan_snapshots(sequence.computed + 1, blocks.snapshots, blocks.size)
            parts.append(Part(sequence, sequence.computed, [sequence.tokens[-1], *guess], len(guess), 0))
        return parts

    def _guesses(self, shard: Shard, sequence: Sequence, left: int) -> int:
        """Return how many tokens may be guessed for a sequence, and take their blocks: nobody is preempted for guesses."""
        tokens, rope = len(sequence.tokens), sequence.rope
        most = 0 if sequence.adjusts else min(self.drafts, sequence.request.max_new_tokens - sequence.sampled - 1, left)
        if sequence.thought is not None:
            most = min(most, sequence.thought.room - 1)
        if rope is not None and not sequence.is_long:  # not beyond the length at which angles change for all tokens
            most = min(most, rope.original_positions - tokens)
        while most > 0 and sequence.needs(tokens + most, shard.blocks.size) > shard.blocks.available:
            most -= 1
        self._grow(shard, sequence, tokens + max(0, most), [])
        return max(0, most)

    def _read(self, shard: Shard, sequence: Sequence, parts: list[Part]) -> None:
        """Add the next piece of a prompt to the parts of the step."""
        begin = sequence.computed
        end = min(len(sequence.tokens), begin + shard.left)
        if not self._grow(shard, sequence, end, [part.sequence for part in parts]):
            return
        tokens = sequence.tokens[begin:end]
        first = len(tokens) - (end == len(sequence.tokens))
        if sequence.request.prompt_logprobs >= 0 and sequence.sampled == 0:
            first = 0
        if shard.blocks.snapshots is not None:
            sequence.plan_snapshots(end, shard.blocks.snapshots, shard.blocks.size)
        parts.append(Part(sequence, begin, tokens, 0, first))
        shard.left -= len(tokens)

    def _grow(self, shard: Shard, sequence: Sequence, upto: int, planned: Collection[Sequence]) -> bool:
        """Take blocks for the first `upto` tokens. If there are too few, preempt the sequences that started last.

        Those that are `planned` for the step stay. Return False if this one itself had to go.
        """
        needed = sequence.needs(upto, shard.blocks.size)
        while needed > shard.blocks.available:
            last = next(one for one in reversed(shard.running) if all(other is not one for other in planned))
            self.preempt(last)
            if last is sequence:
                return False
        sequence.blocks += [shard.blocks.take() for _ in range(needed)]
        return True
