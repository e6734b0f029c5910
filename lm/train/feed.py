"""From host batches to global arrays: each process reads the rows that its own devices hold, and no others."""

from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from data.batches import Batches
from lm.parallel.mesh import spec


class Feed:
    """The global batches of a split on a mesh. Batch n holds the same rows in the same order on any mesh."""

    def __init__(self, batches: Batches, mesh: Mesh):
        self.batches = batches
        shape = (batches.batch_size, batches.sequence_length)
        self._sharding = NamedSharding(mesh, spec("batch", "length"))
        held = {s[0].indices(shape[0])[:2] for s in self._sharding.addressable_devices_indices_map(shape).values()}
        self._rows = sorted({row for begin, end in held for row in range(begin, end)})
        self._place = {row: i for i, row in enumerate(self._rows)}

    def iterate(self, start: int = 0) -> Iterator:
        """The Grain iterator of this process's rows (see Batches.iterate)."""
        return self.batches.iterate(start, rows=self._rows)

    def read(self, n: int) -> dict[str, jax.Array]:
        """Batch n, read in this thread."""
        return self.to_devices(self.batches.batch(n, self._rows))

    def to_devices(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Global [B, T] arrays from this process's rows; `ids` stay behind on the host."""
        shape = (self.batches.batch_size, self.batches.sequence_length)

        def place(local: np.ndarray) -> jax.Array:
            def shard(index):
                begin, end, _ = index[0].indices(shape[0])
                first = self._place[begin]
                return np.ascontiguousarray(local[first : first + end - begin])

            return jax.make_array_from_callback(shape, self._sharding, shard)

        return {name: place(array) for name, array in batch.items() if name != "ids"}
