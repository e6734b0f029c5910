"""Host memory as the second, larger memory of each device: arrays move there that a program does not need for a while.

A sharding names the memory of its arrays (`memory_kind`), and a traced array has a memory space. Both TPUs and GPUs reach the
pinned memory of their host. A CPU device has it too: there it is the same memory, so that arrays are only copied.
"""

import math
from pathlib import Path
from typing import TypeVar

import jax
import psutil
from jax.sharding import NamedSharding

from lm.errors import UserError
from lm.parallel.arrays import PyTree
from lm.parallel.mesh import platform

HOST = "pinned_host"
Tree = TypeVar("Tree")  # of arrays


def has_host_memory() -> bool:
    """Return whether the devices of the current mesh, which need not be attached, can keep arrays in their host's memory."""
    kind = platform()
    if kind != jax.default_backend():
        return kind in ("tpu", "gpu")
    return any(memory.kind == HOST for memory in jax.local_devices()[0].addressable_memories())


def explained() -> str:
    """Return what offloading does on the devices of the current mesh, for the console."""
    if not has_host_memory():
        return "without effect, since these devices have no host memory beside their own"
    if platform() == "cpu":
        return "arrays are copied, but a CPU's memory is its host's: nothing is saved"
    return "arrays are in host memory while they are not needed"


def check_room(tree: PyTree, where: Path | str) -> None:
    """Raise UserError if arrays or ShapeDtypeStructs are larger than this process's share of all memory of the machine.

    A file of a few bytes can describe arrays of any size. where: the file or folder, for the error.
    """
    need = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree)) / jax.process_count()
    devices = [device.memory_stats() or {} for device in jax.local_devices() if device.platform != "cpu"]
    have = psutil.virtual_memory().total + sum(stats.get("bytes_limit", 0) for stats in devices)
    if need > have:
        raise UserError(
            f"{where} holds {need / 1e9:,.1f} GB of parameters, and this machine has {have / 1e9:,.1f} GB of memory"
        )


def movable(x: jax.Array | jax.ShapeDtypeStruct) -> bool:
    """Return whether an array is worth a transfer: those with one axis or none are small."""
    return x.ndim > 1


def to_host(tree: Tree) -> Tree:
    """Return the tree with its `movable` arrays in host memory. Call it in a compiled function."""
    return jax.tree.map(lambda x: jax.device_put(x, jax.memory.Space.Host) if movable(x) else x, tree)


def to_device(tree: Tree) -> Tree:
    """Return the tree with its `movable` arrays in device memory; the inverse of `to_host`."""
    return jax.tree.map(lambda x: jax.device_put(x, jax.memory.Space.Device) if movable(x) else x, tree)


def on_host(sharding: NamedSharding, x: jax.Array | jax.ShapeDtypeStruct) -> NamedSharding:
    """Return the sharding of x [...] after `to_host`."""
    return sharding.with_memory_kind(HOST) if movable(x) else sharding


def is_on_host(x: jax.core.ShapedArray | jax.ShapeDtypeStruct) -> bool:
    """Return whether a ShapeDtypeStruct with a sharding, or the abstract value of a traced array, is in host memory."""
    if (space := getattr(x, "memory_space", None)) is not None:
        return space == jax.memory.Space.Host
    return x.sharding.memory_kind == HOST
