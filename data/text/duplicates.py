"""A compact set of 128-bit digests, 20 to 26 bytes each, to detect duplicate documents."""

import numpy as np

FULL = 0.8  # share of used slots at which the table grows
GROWTH = 1.25  # factor of growth; afterwards at least 64 % of the slots are used
WINDOW = 8  # slots compared together
BLOCK = 1 << 14  # slots moved at a time when the table grows


class Digests:
    """A hash table with open addressing and linear probing in one array; operations take batches of digests.

    The high bits of a digest select its first slot, so the table may have any size. While it grows, the old and the new
    table are in memory, 45 bytes per digest. A Python set of the same integers takes 80 to 150.
    """

    def __init__(self, slots: int = 1 << 10):
        self._slots, self._count = np.zeros((slots, 2), np.uint64), 0

    def __len__(self) -> int:
        return self._count

    @property
    def nbytes(self) -> int:
        return self._slots.nbytes

    def add(self, digests: np.ndarray) -> np.ndarray:
        """Add digests, uint64 [n, 2]. Returns bool [n]: whether each was already in the set or occurs earlier in the batch."""
        digests = digests | np.array([0, 1], np.uint64)  # an empty slot is all zeros
        order = np.lexsort((digests[:, 1], digests[:, 0]))  # stable, so the first of equal digests stays first
        again = np.zeros(len(digests), bool)
        again[order[1:]] = (digests[order[1:]] == digests[order[:-1]]).all(axis=1)
        if self._count + len(digests) > FULL * len(self._slots):
            self._grow(self._count + len(digests))
        once = np.flatnonzero(~again)
        again[once] = self._place(digests[once])
        return again

    def _place(self, digests: np.ndarray) -> np.ndarray:
        """Put distinct digests into their slots. Returns bool [n]: which were already in the table."""
        there = np.zeros(len(digests), bool)
        place = _start(digests, len(self._slots))
        waiting = np.arange(len(digests))
        while len(waiting):
            at = (place[waiting, None] + np.arange(WINDOW)) % len(self._slots)
            held = self._slots[at]
            end = (held[:, :, 1] == 0) | (held == digests[waiting, None]).all(axis=2)
            first, ended, one = end.argmax(axis=1), end.any(axis=1), np.arange(len(waiting))
            place[waiting] = np.where(ended, at[one, first], (at[:, -1] + 1) % len(self._slots))
            found = ended & (held[one, first, 1] > 0)
            there[waiting[found]] = True
            # If several digests want one free slot, the last writer gets it; the others detect this and continue.
            asking = waiting[ended & ~found]
            self._slots[place[asking]] = digests[asking]
            got = (self._slots[place[asking]] == digests[asking]).all(axis=1)
            self._count += int(got.sum())
            waiting = np.concatenate([waiting[~ended], asking[~got]])
        return there

    def _grow(self, least: int) -> None:
        """Move all digests to a larger table: ordered by first slot, each gets the next free slot after the previous one."""
        old = self._slots
        self._slots = np.zeros((int(max(GROWTH * len(old), least / FULL + 1)), 2), np.uint64)
        last, highest, late = -1, -1, []
        for begin in range(0, len(old), BLOCK):
            some = old[begin : begin + BLOCK]
            at = np.flatnonzero(some[:, 1])
            some = some[at]
            start = _start(some, len(self._slots))
            # Probing moved some digests out of this order, and some from the end to the beginning.
            ordered = (start >= highest) & (_start(some, len(old)) <= begin + at)
            late.append(some[~ordered])
            some, start = some[ordered], start[ordered]
            order = np.argsort(start)
            some, start, order = some[order], start[order], np.arange(len(some))
            place = order + np.maximum.accumulate(np.maximum(start, last + 1) - order)
            fits = int(np.searchsorted(place, len(self._slots)))
            late.append(some[fits:])
            some, start, place = some[:fits], start[:fits], place[:fits]
            self._slots[place] = some
            if len(some):
                last, highest = int(place[-1]), int(start[-1])
        self._count -= sum(map(len, late))
        for some in late:
            self._place(some)


def _start(digests: np.ndarray, slots: int) -> np.ndarray:
    """Return int64 [n]: the first slot of each digest, monotone in its high bits."""
    return ((digests[:, 0] >> np.uint64(32)) * np.uint64(slots) >> np.uint64(32)).astype(np.int64)
