"""A compact set of 128-bit digests to detect duplicate documents."""

import numpy as np


class Digests:
    """Sorted runs of digests, each at least twice as long as the next one (O'Neil et al. 1996, log-structured merge).

    Memory: 16 bytes per digest, 48 while the two longest runs are merged. A Python set of the same integers takes 80 to 150.
    """

    def __init__(self):
        self._runs: list[np.ndarray] = []

    def __len__(self) -> int:
        return sum(map(len, self._runs))

    def add(self, digests: np.ndarray) -> np.ndarray:
        """Add digests, uint64 [n, 2]. Returns bool [n]: whether each was already in the set or occurs earlier in the batch."""
        digests = np.ascontiguousarray(digests).view("S16").reshape(-1)  # strings of bytes can be sorted
        new, first = np.unique(digests, return_index=True)
        known = np.zeros(len(new), bool)
        for run in self._runs:
            known |= run[np.minimum(np.searchsorted(run, new), len(run) - 1)] == new
        again = np.ones(len(digests), bool)
        again[first[~known]] = False
        if not known.all():
            self._runs.append(new[~known])
        while len(self._runs) > 1 and len(self._runs[-2]) < 2 * len(self._runs[-1]):
            both = np.concatenate([self._runs.pop(), self._runs.pop()])
            both.sort(kind="stable")  # merges runs that are sorted
            self._runs.append(both)
        return again
