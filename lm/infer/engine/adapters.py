"""Adapters that requests choose by name: all of them side by side in one model.

With n adapters of rank at most r, every adapted matrix has one A of n·r columns and one B of n·r rows, and a token keeps the r
numbers of its own adapter: y = x·W + (mask ⊙ (x·A))·B. So tokens with different adapters share a step ("multi-LoRA", as in
Punica, Chen et al. 2023, without its gathers, which pay only for many adapters).
"""

import contextlib
import dataclasses
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lm.adapt.lora import adapter_only
from lm.adapt.rebuild import arrays_of
from lm.config import Adapter, ModelConfig
from lm.convert.base import found as base_of
from lm.convert.files import is_adapter
from lm.convert.peft import find_peft, import_peft
from lm.convert.source import config_of
from lm.errors import UserError
from lm.model.transformer import skeleton
from lm.parallel.mesh import shapes_on
from lm.runs.checkpoint import newest


class Slots:
    """Which adapter is in which slot. count, rank, targets: how many there is room for, of which rank, on which matrices."""

    def __init__(self, count: int, rank: int, targets: str):
        self.count, self.rank, self.targets = count, rank, targets
        self.slot: dict[str, int] = {}

    def config(self) -> Adapter:
        """Return the section of the model's config. Scales are multiplied into B, so the scale is 1.

        Encoders have none: they read the media of a request before it is known which adapter comes next.
        """
        return Adapter(
            rank=self.count * self.rank, alpha=self.count * self.rank, targets=rf"(?!vision\.|audio\.)(?:{self.targets})"
        )

    def free(self, name: str) -> int:
        """Return a free slot. Raises: UserError if the name is taken, or all slots are."""
        if name in self.slot:
            raise UserError(f"an adapter {name!r} is loaded already: unload it first")
        free = set(range(self.count)) - set(self.slot.values())
        if not free:
            raise UserError(f"all {self.count} places for adapters are taken: unload one, or raise adapters.count")
        return min(free)

    def mask(self, slots: np.ndarray) -> np.ndarray:
        """Return float32 [B, n·r] that keeps the numbers of each token's slot; −1: of none."""
        return (np.arange(self.count * self.rank) // self.rank == slots[:, None]).astype(np.float32)


def read_adapter(path: str | os.PathLike[str], config: ModelConfig) -> tuple[Adapter, dict[str, np.ndarray]]:
    """Return an adapter's section of the config, and its arrays by dotted name. The base model is not loaded.

    path: a folder of PEFT, or the workdir of a run with an adapter. config: of the model.
    Raises: UserError if there is none, or it is of another model, or DoRA.
    """
    folder = Path(path)
    config = dataclasses.replace(config, adapter=Adapter())
    if is_adapter(folder):
        _check_kind(find_peft(folder, config).adapter)
        zeros = jax.tree.map(lambda x: jnp.zeros((1,) * x.ndim, x.dtype), skeleton(config)[1])
        new, params = import_peft(folder, config, zeros)
        return new.adapter, {name: np.asarray(x) for name, x in arrays_of(adapter_only(params)).items()}
    checkpoints, step = newest(folder)
    with contextlib.closing(checkpoints):
        meta = checkpoints.meta(step)
        theirs = config_of(meta["config"], folder)
        if not theirs.adapter.rank:
            raise UserError(f"{folder} has no adapter: name the workdir of a run with model.adapter.rank, or a folder of PEFT")
        _check_kind(theirs.adapter)
        if theirs.vision.num_layers or theirs.audio.num_layers:
            raise UserError(
                f"{folder} trained the projector of an encoder beside its adapter: export it with --merge, and serve that"
            )
        sizes = ("num_layers", "embed_dim", "num_heads", "num_kv_heads", "mlp_dim", "vocab_size")
        if any(getattr(theirs, size) != getattr(config, size) for size in sizes):
            raise UserError(f"{folder} holds an adapter of another model")
        if "base" in meta:
            base_of(meta["base"], folder)  # raises UserError if it has changed
        here = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
        params = checkpoints.restore_params(step, shapes_on(adapter_only(skeleton(theirs)[1]), here))
    return theirs.adapter, {name: np.asarray(x) for name, x in arrays_of(params).items()}


def _check_kind(adapter: Adapter) -> None:
    if adapter.dora:
        raise UserError("an adapter of DoRA changes the norm of each output: merge it into a model of its own")


def placed(
    slots: Slots, slot: int, found: tuple[Adapter, dict[str, np.ndarray]], arrays: dict[str, jax.Array]
) -> dict[str, jax.Array]:
    """Return `arrays`, those of all slots by dotted name, with an adapter in one slot. Changes nothing in place.

    Raises: UserError if the adapter has a rank or a matrix for which there is no room.
    """
    adapter, theirs = found
    if adapter.rank > slots.rank:
        raise UserError(f"the adapter has rank {adapter.rank}, there is room for {slots.rank}: raise adapters.rank")
    missing = sorted(name.rpartition(".")[0] for name in theirs if name not in arrays and np.any(theirs[name]))
    if missing:
        raise UserError(f"adapters.targets={slots.targets!r} does not match {missing[0]}, which the adapter changes")
    scale = adapter.alpha / (adapter.rank**0.5 if adapter.rank_stabilized else adapter.rank)
    at, new = slot * slots.rank, {}
    for path, old in arrays.items():
        is_a = path.endswith("lora_a")
        # Stacked over layers: A is [L, inputs…, n·r], B is [L, n·r, outputs…].
        some = (..., slice(at, at + slots.rank)) if is_a else (slice(None), slice(at, at + slots.rank))
        value = np.asarray(old).copy()
        value[some] = 0
        if path in theirs:
            few = (..., slice(at, at + adapter.rank)) if is_a else (slice(None), slice(at, at + adapter.rank))
            value[few] = theirs[path] if is_a else theirs[path] * scale
        new[path] = jax.device_put(value.astype(old.dtype), old.sharding)
    return new


def empty(config: ModelConfig, slots: Slots) -> tuple[ModelConfig, dict[str, jax.Array]]:
    """Return (the config with room for adapters, their arrays of zeros by dotted name)."""
    new = dataclasses.replace(config, adapter=slots.config())
    shapes = arrays_of(nnx.filter_state(skeleton(new)[1], nnx.LoRAParam))
    return new, {name: jnp.zeros(x.shape, x.dtype) for name, x in shapes.items()}
