"""Check that a training run can fit its devices, before data are prepared and programs compiled."""

from collections.abc import Mapping

import jax
import ml_collections
import psutil
from jax.sharding import Mesh

from lm.errors import UserError
from lm.train.describe import memories

# The compiler may need less than the estimate, because it can recompute. So refuse a run only if it exceeds this factor.
CLEARLY = 1.5
WORDS = {"images": "images", "audio": "windows of sound"}


def check_memory(
    config: ml_collections.ConfigDict, mesh: Mesh, *, whole_rows: bool = True, media: Mapping[str, int] | None = None
) -> None:
    """Raise UserError if parameters, gradients, optimizer, activations and media clearly exceed a device's memory.

    A preference pair counts as one sequence, its minimum. whole_rows: rows are config.sequence_length long. Rollouts may be
    shorter, so with whole_rows=False activations are not counted. media: images and windows of sound of a row, by name.
    """
    room = memory_of_device()
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        needs, on_host = memories(config, mesh.abstract_mesh, media)
    if mesh.devices.flat[0].platform == "cpu":  # where it is the same memory
        needs |= {kind: needs[kind] + size for kind, size in on_host.items()}
    arrays = needs.pop("media", 0)
    fixed = sum(needs.values()) - needs["activations"]
    kept = needs["activations"] if whole_rows else 0
    if fixed <= room and fixed + kept + arrays <= CLEARLY * room:
        return
    cure = "lower model sizes, spread the model over more devices (mesh.fsdp), or set optimizer.offload=True"
    if fixed <= room:
        cure = (
            "lower sequence_length or batch_size, raise accumulate, set model.remat=full or model.offload=True, or split "
            "sequences (mesh.context)"
        )
    needed = f"{_gib(fixed)} for parameters, gradients and optimizer and {_gib(kept)} for activations"
    if media:
        most = " and ".join(f"{count} {WORDS[name]}" for name, count in media.items() if count)
        needed += f" and {_gib(arrays)} for media (up to {most} in a row)"
    raise UserError(
        f"batch_size={config.batch_size}, sequence_length={config.sequence_length}, accumulate={config.accumulate}: a step "
        f"needs {needed}, and a device has {_gib(room)}: {cure}"
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
