"""Turn host batches into global arrays. Each process reads only the rows that its own devices hold."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import grain
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from data.text.batches import Batches
from lm.parallel.hosts import is_first
from lm.parallel.mesh import spec
from lm.progress import shown

AHEAD = 4  # batches that may be dispatched to the devices at a time


class Stream(Protocol):
    """The source of the loop's batches."""

    def start(self, step: int, state: Any) -> None:
        """Position the stream after `step` finished steps. state: what `state()` returned then, or None. Called first."""

    def next(self, step: int, params: Any, wait: Callable[[], float]) -> tuple[dict[str, jax.Array], Mapping[str, float]]:
        """Return the batch of a step (counted from 1) on the devices, and extra numbers to log for that step.

        params: the parameters before the step. wait: waits until the previous step is done and logged, and returns the time
        when it was done (time.perf_counter).
        """

    def ids(self, step: int) -> list[int] | None:
        """Return the row ids of a step's batch, or None if they are not logged."""

    def state(self) -> Any:
        """Return the state to resume from, as JSON values."""

    def close(self) -> None: ...


class Reading:
    """A stream of batches from a prepared dataset, prefetched in the background."""

    def __init__(self, batches: Batches, mesh: Mesh, log_ids: bool = False):
        self._feed, self._log_ids = Feed(batches, mesh), log_ids

    def start(self, step: int, state: Any) -> None:
        self._iterator = self._feed.iterate(start=step)
        if state is not None:
            self._iterator.set_state(state)

    def next(self, step: int, params: Any, wait: Callable[[], float]) -> tuple[dict[str, jax.Array], dict]:
        return self._feed.to_devices(next(self._iterator)), {}

    def ids(self, step: int) -> list[int] | None:
        return self._feed.batches.global_row_ids(step - 1).tolist() if self._log_ids else None

    def state(self) -> Any:
        return self._iterator.get_state()

    def close(self) -> None:
        self._iterator.close()


class Feed:
    """The global batches of a split on a mesh. Batch n holds the same rows in the same order on any mesh."""

    def __init__(self, batches: Batches, mesh: Mesh):
        self.batches = batches
        size = batches.batch_size
        self._sharding = NamedSharding(mesh, spec("batch"))
        held = {s[0].indices(size)[:2] for s in self._sharding.addressable_devices_indices_map((size,)).values()}
        self._rows = sorted({row for begin, end in held for row in range(begin, end)})
        self._place = {row: i for i, row in enumerate(self._rows)}

    def iterate(self, start: int = 0) -> Iterator:
        """Return the Grain iterator over this process's rows (see Batches.iterate)."""
        return self.batches.iterate(start, rows=self._rows)

    def read(self, n: int) -> dict[str, jax.Array]:
        """Read batch n in this thread and return it on the devices."""
        return self.to_devices(self.batches.batch(n, self._rows))

    def spread(self, at_most: int | None = None) -> Iterator[dict[str, jax.Array]]:
        """Yield `at_most` batches, spread evenly over the split, or all of them. A background thread prefetches them."""
        total = self.batches.num_batches
        count = total if at_most is None else min(at_most, total)
        numbers = grain.MapDataset.range(count).map(lambda i: self.batches.batch(i * total // count, self._rows))
        options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2 * AHEAD)
        with contextlib.closing(iter(numbers.to_iter_dataset(options))) as iterator:
            quiet = {"soon": False, "enabled": is_first(), "leave": False}
            yield from shown(map(self.to_devices, iterator), "validation", count, **quiet)

    def to_devices(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Return global arrays [B, …] from this process's rows, without `ids`."""

        def place(local: np.ndarray) -> jax.Array:
            shape = (self.batches.batch_size, *local.shape[1:])

            def shard(index):
                begin, end, _ = index[0].indices(shape[0])
                first = self._place[begin]
                return np.ascontiguousarray(local[first : first + end - begin])

            return jax.make_array_from_callback(shape, self._sharding, shard)

        return {name: place(array) for name, array in batch.items() if name != "ids"}


def summed(sums: Callable[[Any], Any], batches: Iterable) -> Any:
    """Return Σ sums(batch) over one or more batches: a tree of floats, added in float64.

    Results stay on the devices until the last batch is dispatched. The host waits when it is AHEAD batches ahead of the
    devices, so that they do not hold all batches at once.
    """
    found = []
    for batch in batches:
        found.append(sums(batch))
        jax.block_until_ready(found[-AHEAD:][0] if len(found) >= AHEAD else ())
    return jax.tree.map(lambda *values: sum(map(float, values)), *jax.device_get(found))
