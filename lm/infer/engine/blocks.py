"""Blocks of the paged cache: which are free, which are used by how many sequences, and which hold a known prefix.

A full block is found again by the hash of all tokens up to its end, so sequences with the same beginning share its pages
(the automatic prefix cache of vLLM, Kwon et al. 2023). A block that nobody uses keeps its content until it is needed.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

import numpy as np


class Blocks:
    """The blocks 0 … count − 1 of `size` tokens each.

    Every block is free (holds nothing known), cached (known, unused) or used. All methods are for one thread.
    """

    def __init__(self, count: int, size: int):
        self.count, self.size = count, size
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

    def find(self, hashes: Sequence[bytes]) -> list[int]:
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

    def release(self, blocks: Sequence[int]) -> None:
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


def chain(
    tokens: Sequence[int],
    size: int,
    salt: bytes,
    before: Sequence[bytes] = (),
    beside: Mapping[int, bytes] = MappingProxyType({}),
) -> Iterator[bytes]:
    """Yield the hash of each full block of the tokens, which covers everything before it.

    Hashes are of 16 bytes by BLAKE2b: nobody can make a prompt that collides with another's. salt: of whatever else the keys
    and values depend on, such as an adapter. before: hashes of the first blocks, which are not computed again. beside: what the
    block of this number depends on beside its tokens, such as images.
    """
    last = before[-1] if before else salt
    for n in range(len(before), len(tokens) // size):
        block = np.asarray(tokens[n * size : (n + 1) * size], np.int32).tobytes()
        last = hashlib.blake2b(last + block + beside.get(n, b""), digest_size=16).digest()
        yield last
