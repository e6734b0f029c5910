"""A process of the jobs that test_hosts.py starts: joins, does what its first argument names, ends as a verb does."""

import os
import sys
import time
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from lm import cli
from lm.errors import UserError
from lm.parallel import hosts


def agrees() -> None:
    """Each asks for its own process id, time and an error; prints what it got."""
    drawn = hosts.from_first(lambda: (os.getpid(), time.time(), hosts.from_first(lambda: np.arange(3))))
    print(drawn[0], repr(drawn[1]), drawn[2].tolist())
    for error in (UserError("ask another"), ZeroDivisionError("none"), Unreadable(1, 2)):
        try:
            hosts.from_first(lambda error=error: _raise(error))
        except Exception as raised:
            print(f"{type(raised).__name__}: {raised}")
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    rows = jax.make_array_from_callback((2,), where, lambda index: np.arange(2.0)[index])
    try:
        hosts.from_first(lambda: hosts.gathered(rows))
    except RuntimeError as raised:
        print(raised)
    here = Path(sys.argv[2])
    (own := here / f"own-{jax.process_index()}").mkdir()
    print(hosts.all_see(str(here)), hosts.all_see(str(own)), hosts.all_see(None), list(here.glob("job-*")))
    print(hosts.gathered((rows, np.ones(1)))[0].tolist(), hosts.gathered(jax.numpy.arange(2)).tolist())


def sums() -> None:
    """Four devices of two processes add up by psum_scatter, and in the gradient of a gather; prints what the program has."""
    mesh = jax.make_mesh((2, 2), ("data", "fsdp"))
    split = jax.sharding.PartitionSpec(("data", "fsdp"))

    def both(x):
        summed = jax.lax.psum_scatter(x, ("data", "fsdp"), tiled=True)
        return summed, jax.grad(lambda y: (jax.lax.all_gather(y, "fsdp") * jax.numpy.arange(2.0)[:, None]).sum())(x)

    sums = jax.jit(jax.shard_map(both, mesh=mesh, in_specs=split, out_specs=split))
    rows = jax.make_array_from_callback((16,), jax.sharding.NamedSharding(mesh, split), lambda index: np.arange(16.0)[index])
    print(*(part.tolist() for part in hosts.gathered(sums(rows))))
    program = sums.lower(rows).compile().as_text()
    print("reduce-scatter" in program, "all-to-all" in program)


def breaks() -> None:
    """Process 1 fails while process 0 is in a collective that never ends."""
    if jax.process_index():
        raise ValueError("a fault of ours")
    multihost_utils.sync_global_devices("nobody else comes")


def stops() -> None:
    """Process 1 has nothing left to do when process 0 is interrupted."""
    if not jax.process_index():
        raise KeyboardInterrupt


class Unreadable(Exception):
    """Can be pickled, and not read again."""

    def __init__(self, one, other):
        super().__init__(f"{one} and {other}")


def _raise(error: Exception) -> None:
    raise error


def main() -> None:
    hosts.start()
    {"agrees": agrees, "sums": sums, "breaks": breaks, "stops": stops}[sys.argv[1]]()


if __name__ == "__main__":
    with cli.guard():
        main()
