"""The mesh of devices, and the one table that says which axis of an array is split over which axis of the mesh.

The same program runs on one core, on eight fake devices and on a pod. Every array knows how it is split (explicit
sharding), and the compiler adds the communication. One device is a mesh of 1 × 1 × 1.
"""

import jax
from jax.sharding import AxisType, PartitionSpec

# Batches are split over data and fsdp. Weights are split over fsdp, and gathered before use (Rajbhandari et al. 2020),
# and over tensor, where each device computes with its own heads, hidden units or words (Shoeybi et al. 2019).
RULES = {"batch": ("data", "fsdp"), "embed": "fsdp", "heads": "tensor", "mlp": "tensor", "vocab": "tensor"}


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1) -> jax.sharding.Mesh:
    """Return a mesh for `jax.set_mesh`. data=-1: all devices that the other two axes leave."""
    data = jax.device_count() // (fsdp * tensor) if data == -1 else data
    devices = jax.devices()[: data * fsdp * tensor]
    return jax.make_mesh((data, fsdp, tensor), ("data", "fsdp", "tensor"), (AxisType.Explicit,) * 3, devices=devices)


def spec(*axes: str | None) -> PartitionSpec:
    """Return the partition of an array with these logical axes. Those that RULES does not name are not split."""
    return PartitionSpec(*[RULES.get(axis) if axis else None for axis in axes])
