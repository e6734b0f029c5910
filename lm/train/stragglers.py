"""Compare the hosts of a job, and name one that is slower than the others.

In a synchronous step all hosts wait for the slowest, so their steps take the same time. Two other times tell them apart: the
seconds a step that a host spends by itself (its batch, and dispatching the step), and the seconds that its devices need for a
fixed product of matrices, which crosses no network.
"""

import time
from collections import deque
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType

IN_ROW = 3  # comparisons that a host must be slower in, before it is named
SHARE = 0.05  # of a step: a smaller difference of the hosts' own times costs nothing that matters
SIZES = {"cpu": (192, 8)}  # side of the matrices and number of products; else LARGE
LARGE = (2048, 32)


class Stragglers:
    """Collects this host's times, and compares those of all hosts every `every` steps.

    factor: how many times the median of the others a host's time must be.
    """

    def __init__(self, every: int, factor: float):
        self._every, self._factor = every, factor
        self._own: deque[float] = deque(maxlen=every)
        self._all: deque[float] = deque(maxlen=every)
        self._row: dict[str, tuple[int | None, int]] = {}  # the slow host, and the comparisons in a row that found it
        self._probe = _probe()

    def stepped(self, step: int, own: float, whole: float) -> tuple[dict[str, float], list[str]]:
        """Return numbers to log and lines to print. Collective if a comparison is due.

        own: the seconds of the step that this host spent by itself. whole: the seconds of the step.
        """
        self._own.append(own)
        self._all.append(whole)
        if step % self._every:
            return {}, []
        # Means, because threads that read ahead return several batches at once: a median would jump.
        mine = np.asarray([np.mean(self._own), self._probe(), np.mean(self._all)])
        times = np.asarray(multihost_utils.process_allgather(mine))
        least = {"host": SHARE * float(np.median(times[:, 2])), "devices": 0.0}
        numbers, lines = {}, []
        for column, what in enumerate(least):
            ratio, slowest = compared(times[:, column], least[what])
            numbers[f"stragglers/{what}"] = ratio
            lines += self._named(what, slowest if ratio > self._factor else None, ratio, step)
        return numbers, lines

    def _named(self, what: str, slow: int | None, ratio: float, step: int) -> list[str]:
        """Return a line when a host has been slower IN_ROW times in a row."""
        host, count = self._row.get(what, (None, 0))
        self._row[what] = slow, count + 1 if slow == host else 1
        if slow is None or self._row[what][1] != IN_ROW:
            return []
        where = "by itself (its batches and its program)" if what == "host" else "for a product of matrices on its devices"
        return [f"step {step}: host {slow} is slow: it needs {ratio:.1f} times as long as the others {where}"]


def compared(times: np.ndarray, least: float = 0.0) -> tuple[float, int]:
    """Return (the slowest host's time / the median of the others, its number). least: seconds that the median is raised to."""
    slowest = int(np.argmax(times))
    others = float(np.median(np.delete(times, slowest)))
    return float(times[slowest] / max(others, least, 1e-9)), slowest


def _probe() -> Callable[[], float]:
    """Return a function that returns the seconds of a product of matrices on the slowest device of this host."""
    devices = jax.local_devices()
    size, products = SIZES.get(devices[0].platform, LARGE)
    meshes = [jax.make_mesh((1,), ("probe",), axis_types=(AxisType.Auto,), devices=[device]) for device in devices]
    dtype = jnp.float32 if devices[0].platform == "cpu" else jnp.bfloat16

    def multiply(x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, products, lambda _, y: (y @ x) * (1 / size), x)

    multiply, inputs = jax.jit(multiply), []
    for mesh, device in zip(meshes, devices):
        with jax.set_mesh(mesh):
            inputs.append(jax.device_put(np.ones((size, size), dtype), device))

    def seconds() -> float:
        times = []
        for mesh, x in zip(meshes, inputs):
            with jax.set_mesh(mesh):
                multiply(x).block_until_ready()  # compiles, and waits for the step that the device is computing
                runs = []
                for _ in range(3):
                    begin = time.perf_counter()
                    multiply(x).block_until_ready()
                    runs.append(time.perf_counter() - begin)
                times.append(min(runs))
        return max(times)

    return seconds
