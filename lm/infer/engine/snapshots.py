"""Snapshots of the states of layers that have one, at the ends of known blocks: a prefix is shared from its last snapshot on.

The pages of a block serve every sequence that goes through it, but a state is that of one place. So some places are kept, in
the manner of SGLang's MambaRadixCache (choice of the places: Sequence.plan_snapshots). Nothing is copied: in the arrays of the
states the slots of snapshots follow the rows of sequences, the last token of a block leaves its state in a slot in place of the
row, and the next token, of whichever sequence, continues from there.
"""

from collections import OrderedDict
from collections.abc import Sequence as List


class Snapshots:
    """The slots of one shard. Each is free, or has users: sequences that continue from it, and the block that it belongs to."""

    def __init__(self, slots: range):
        self._free, self._users = list(reversed(slots)), dict.fromkeys(slots, 0)
        self._known: OrderedDict[bytes, int] = OrderedDict()  # hash of a block -> slot, the longest unused first

    def take(self) -> int | None:
        """Return a slot for one user, if need be of the longest unused snapshot; None if sequences need all."""
        if not self._free:
            unused = next((hash for hash, slot in self._known.items() if self._users[slot] == 1), None)
            if unused is None:
                return None
            self.drop(unused)
        slot = self._free.pop()
        self._users[slot] = 1
        return slot

    def release(self, slot: int) -> None:
        """Take one user from a slot."""
        self._users[slot] -= 1
        if not self._users[slot]:
            self._free.append(slot)

    def keep(self, hash: bytes, slot: int) -> bool:
        """Make a slot the snapshot at the end of the block with this hash. Return False if the block has one."""
        if hash in self._known:
            return False
        self._known[hash] = slot
        self._users[slot] += 1
        return True

    def find(self, hashes: List[bytes]) -> tuple[int, int]:
        """Return how many first blocks end with the last snapshot, and its slot, with one more user; (0, −1) if none does."""
        for n in range(len(hashes), 0, -1):
            if (slot := self._known.get(hashes[n - 1])) is not None:
                self._known.move_to_end(hashes[n - 1])
                self._users[slot] += 1
                return n, slot
        return 0, -1

    def drop(self, hash: bytes) -> None:
        """Forget the snapshot of a block, if there is one."""
        if (slot := self._known.pop(hash, None)) is not None:
            self.release(slot)
