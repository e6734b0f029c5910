"""Check that a training run can fit its devices, before data are prepared and programs compiled."""

import jax
import psutil

from lm.errors import UserError
from lm.train.describe import memories

# The compiler may need less than the estimate, because it can recompute. So refuse a run only if it exceeds this factor.
CLEARLY = 1.5


def check_memory(config, mesh, *, whole_rows: bool = True) -> None:
    """Raise UserError if parameters, gradients, optimizer and activations clearly exceed a device's memory.

    A preference pair counts as one sequence, its minimum. whole_rows: rows are config.sequence_length long. Rollouts may be
    shorter, so with whole_rows=False activations are not counted.
    """
    room = memory_of_device()
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        needs, on_host = memories(config, mesh.abstract_mesh)
    if mesh.devices.flat[0].platform == "cpu":  # where it is the same memory
        needs |= {kind: needs[kind] + size for kind, size in on_host.items()}
    fixed = sum(needs.values()) - needs["activations"]
    kept = needs["activations"] if whole_rows else 0
    if fixed <= room and fixed + kept <= CLEARLY * room:
        return
    cure = "lower model sizes, spread the model over more devices (mesh.fsdp), or set optimizer.offload=True"
    if fixed <= room:
        cure = (
            "lower sequence_length or batch_size, raise accumulate, set model.remat=full or model.offload=True, or split "
            "sequences (mesh.context)"
        )
    raise UserError(
        f"batch_size={config.batch_size}, sequence_length={config.sequence_length}, accumulate={config.accumulate}: a step "
        f"needs {_gib(fixed)} for parameters, gradients and optimizer and {_gib(kept)} for activations, and a device has "
        f"{_gib(room)}: {cure}"
    )


def memory_of_device() -> int:
    """Return the bytes of memory of a device; for a CPU device, its share of the machine's memory and swap space."""
    device = jax.local_devices()[0]
    stats = None if device.platform == "cpu" else device.memory_stats()
    if stats and stats.get("bytes_limit"):
        return stats["bytes_limit"]
    return (psutil.virtual_memory().total + psutil.swap_memory().total) // jax.local_device_count()


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"
