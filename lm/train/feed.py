"""Read batches ahead and make them global arrays. Each process reads only the rows of which its own devices hold tokens.

The last axis of arrays [B, T] and [B, 2, T] is split over the mesh's context axis, in the order of `lm.parallel.mesh.slots`.
Images and sound are split by rows only.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol, runtime_checkable

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from data.text.batches import Batches, read_ahead
from lm.model.media import MEDIA
from lm.parallel.arrays import PyTree
from lm.parallel.context import slots
from lm.parallel.hosts import is_first
from lm.parallel.mesh import sharding_on
from lm.progress import shown

AHEAD = 4  # batches that may be dispatched to the devices at a time


class Stream(Protocol):
    """The source of the loop's batches. A batch is a pure function of (parameters, seed, step): there is no state to save.

    If the parameters are older than those of the step, it is an AheadStream too.
    """

    phase: str = "data"  # what `next` is for the goodput (lm/train/goodput.py): data or rollout

    def start(self, step: int) -> None:
        """Position the stream after `step` finished steps. Called first."""

    def next(self, step: int, params: nnx.State, wait: Callable[[], float]) -> tuple[dict[str, jax.Array], Mapping[str, float]]:
        """Return the batch of a step (counted from 1) on the devices, and extra numbers to log for that step.

        params: the parameters before the step. wait: waits until the previous step is done and logged, and returns the time
        when it was done (time.perf_counter).
        """

    def ids(self, step: int) -> list[int] | None:
        """Return the row ids of a step's batch, or None if its rows have none."""

    def close(self) -> None: ...


@runtime_checkable
class AheadStream(Protocol):
    """A stream with batches of later steps, whose parameters are gone when a run resumes (lm/align/rl/ahead.py)."""

    def pending(self) -> dict[str, dict[str, np.ndarray]]:
        """Return the arrays of these batches by step, for a checkpoint."""

    def take(self, pending: dict[str, dict[str, np.ndarray]]) -> None:
        """Go on from these batches of a checkpoint. Called before `start`."""


class Feed:
    """The batches of a split on a mesh, read ahead: the stream of a training run, or the batches of a validation.

    Batch n holds the same rows in the same order on any mesh. Each process reads only the rows that its own devices hold, or
    hold a part of.
    """

    def __init__(self, batches: Batches, mesh: Mesh):
        self._batches, self._mesh = batches, mesh
        self._by_rows = sharding_on(mesh, "batch")
        self._held, self._sharding = functools.cache(self._held_of), functools.cache(functools.partial(sharding_on, mesh))
        self._quiet = {"soon": False, "enabled": is_first(), "leave": False}  # the progress of a validation

    def start(self, step: int) -> None:
        self._iterator = read_ahead(self._read, step)

    def next(self, step: int, params: nnx.State, wait: Callable[[], float]) -> tuple[dict[str, jax.Array], Mapping[str, float]]:
        return self.to_devices(next(self._iterator), self._batches.growth.of(step - 1)), {}

    def ids(self, step: int) -> list[int]:
        return self._batches.global_row_ids(step - 1).tolist()

    def close(self) -> None:
        self._iterator.close()

    def spread(self, at_most: int | None = None) -> Iterator[dict[str, jax.Array]]:
        """Yield `at_most` batches, spread evenly over the split, or all of them."""
        total = self._batches.num_batches
        count = total if at_most is None else min(at_most, total)
        with contextlib.closing(read_ahead(lambda i: self._read(i * total // count), stop=count)) as iterator:
            yield from shown(map(self.to_devices, iterator), "validation", count, **self._quiet)

    def to_devices(self, batch: dict[str, np.ndarray], rows: int | None = None) -> dict[str, jax.Array]:
        """Return global arrays [B, …] from this process's rows, without `ids`. rows: B, default batch_size."""
        rows_B = np.arange(rows or self._batches.batch_size)
        held = self._held(len(rows_B))
        ways = self._mesh.shape["context"]

        def place(name: str, local: np.ndarray) -> jax.Array:
            is_split = local.ndim > 1 and name not in MEDIA
            axes = ("batch", *[None] * (local.ndim - 2), "length" if is_split else None)[: local.ndim]
            if ways > 1 and is_split:
                local = local[..., slots(local.shape[-1], ways)]

            def part(index: tuple[slice, ...] | None) -> np.ndarray:
                assert index is not None  # the device is one of this process
                return local[np.searchsorted(held, rows_B[index[0]])][:, *index[1:]]

            shape = len(rows_B), *local.shape[1:]
            return jax.make_array_from_callback(shape, self._sharding(*axes), part)

        return {name: place(name, array) for name, array in batch.items() if name != "ids"}

    def _read(self, n: int) -> dict[str, np.ndarray]:
        return self._batches.batch(n, self._held(self._batches.growth.of(n)))

    def _held_of(self, rows: int) -> list[int]:
        """Return the rows of a batch with so many that this process's devices hold."""
        held = self._by_rows.addressable_devices_indices_map((rows,)).values()
        return sorted({row for index in held if index is not None for row in range(rows)[index[0]]})


def of_each(sums: Callable[[dict[str, jax.Array]], PyTree], batches: Iterable[dict[str, jax.Array]]) -> list[PyTree]:
    """Return sums(batch) of each batch: trees of floats.

    Results stay on the devices until the last batch is dispatched. The host waits when it is AHEAD batches ahead of the
    devices, so that they do not hold all batches at once.
    """
    found = []
    for batch in batches:
        found.append(sums(batch))
        jax.block_until_ready(found[-AHEAD:][0] if len(found) >= AHEAD else ())
    return jax.tree.map(float, jax.device_get(found))
