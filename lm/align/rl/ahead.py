"""Sample the rollouts of later steps while earlier ones train.

Batch n is sampled with the parameters after step n − 1 − lag, or with the first ones of the run. So which parameters sample a
batch depends on the step, not on the clock, and all tokens of a batch are of one version. Checkpoint s holds the batches
s + 1 … s + lag, because the older parameters that sampled them are gone when the run resumes.

One device runs the programs of both threads as they come. Several exchange data, so all would have to run them in the same
order: there some devices only sample (`meshes`).
"""

import concurrent.futures
import json
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from lm.errors import UserError
from lm.model.linear import trainable
from lm.parallel.mesh import check_fit, make_mesh, moved, row_ways
from lm.train.step import model_config_of

STALENESS = "sample/staleness_max"  # steps between the parameters that sampled a batch and those that it updates


def meshes(config) -> tuple[Mesh, Mesh]:
    """Return the mesh that trains and the one that samples. They are the same one unless config.rl.sampling_devices are set.

    Raises UserError for sizes that do not fit the devices, and for several devices that would do both at once.
    """
    rl, devices = config.rl, jax.devices()
    count, each = rl.sampling_devices, jax.local_device_count()
    if config.method != "rl" or not rl.max_lag or not count and len(devices) == 1:
        return (mesh := make_mesh(config.mesh)), mesh
    if not count:
        raise UserError(
            f"rl.max_lag={rl.max_lag} samples while a step trains, on devices of its own where there are {len(devices)}: set "
            "rl.sampling_devices, or rl.max_lag=0"
        )
    if not 0 < count < each or count * jax.process_count() % max(1, rl.sampling_tensor):
        raise UserError(
            f"rl.sampling_devices={count} must leave devices to train on of the {each} of a process, and be in all a multiple "
            f"of rl.sampling_tensor={rl.sampling_tensor}"
        )
    ours = {device for i in range(jax.process_count()) for device in jax.local_devices(i)[-count:]}
    sampling = make_mesh({"data": -1, "tensor": rl.sampling_tensor}, [device for device in devices if device in ours])
    try:
        check_fit(sampling, model_config_of(config), row_ways(sampling), 1)
    except UserError as error:
        raise UserError(f"rl.sampling_tensor={rl.sampling_tensor}: {error}") from None
    return make_mesh(config.mesh, [device for device in devices if device not in ours]), sampling


class Sampled(NamedTuple):
    """The rollouts of a step: arrays [B, …] of the batch, and numbers to log for that step."""

    rows: dict[str, np.ndarray]
    metrics: dict[str, float]


class Ahead:
    """Samples up to `lag` batches ahead in a thread of its own, in the order of their steps.

    sample: returns the rollouts of a step, sampled with parameters. It gets copies of those that the run trains, on `mesh`,
    because a step donates its own: at most lag + 1 at a time, for adapters without the base.
    """

    def __init__(self, config, mesh: Mesh, sample: Callable[[int, nnx.State], Sampled]):
        self._sample, self._mesh, self._lag, self._last = sample, mesh, config.rl.max_lag, config.steps
        self._changes = trainable(model_config_of(config)) if config.model.adapter.rank else True
        self._base: nnx.State | None = None  # what no step changes
        self._batches: dict[int, Future[Sampled]] = {}  # by step, sampled or to be sampled
        self._thread = ThreadPoolExecutor(1, "rollouts")

    def next(self, step: int, params: nnx.State) -> Sampled:
        """Hand over the parameters before `step`, and return the batch of `step` when it is sampled."""
        missing = [n for n in range(step, min(step + self._lag, self._last) + 1) if n not in self._batches]
        if missing:
            changed, base = nnx.split_state(params, self._changes, ...)
            self._base = self._base or moved(base, self._mesh, copy=True)
            params = nnx.merge_state(moved(changed, self._mesh, copy=True), self._base)
        for n in missing:
            self._batches[n] = self._thread.submit(self._sampled, n, params, n - step)
        return self._batches.pop(step).result()

    def wait(self) -> None:
        """Wait until every batch that was asked for is sampled."""
        concurrent.futures.wait(self._batches.values())

    def pending(self) -> dict[str, dict[str, np.ndarray]]:
        """Return the arrays of each batch that is sampled and not yet trained, by its step, when they are all there."""
        found = {}
        for step, batch in self._batches.items():
            rows, metrics = batch.result()
            logged = {name: value for name, value in metrics.items() if not name.startswith("seconds/")}
            found[str(step)] = rows | {"metrics": np.frombuffer(json.dumps(logged).encode(), np.uint8)}
        return found

    def take(self, pending: dict[str, dict[str, np.ndarray]]) -> None:
        """Begin with the batches that `pending` returned. Those that are older than `lag` allows are sampled anew."""
        for step, arrays in pending.items():
            metrics = json.loads(arrays["metrics"].tobytes())
            if metrics[STALENESS] <= self._lag:
                batch = self._batches[int(step)] = Future()
                batch.set_result(Sampled({name: x for name, x in arrays.items() if name != "metrics"}, metrics))

    def close(self) -> None:
        """Wait for the batch that is being sampled, and sample no other."""
        self._thread.shutdown(cancel_futures=True)

    def _sampled(self, step: int, params: nnx.State, staleness: int) -> Sampled:
        with jax.set_mesh(self._mesh):
            rows, metrics = self._sample(step, params)
        return Sampled(rows, metrics | {STALENESS: staleness})
