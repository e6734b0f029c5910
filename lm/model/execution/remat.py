"""What a layer keeps from its forward to its backward pass, and in which memory: `model.remat` and `model.offload`."""

import dataclasses
from collections.abc import Callable
from typing import TypeAlias

from jax.ad_checkpoint import checkpoint_policies

from lm.config import ModelConfig
from lm.kernels.saved import INPUT, NAME, WIDE
from lm.parallel.memory import HOST, has_host_memory

Policy: TypeAlias = Callable[..., bool]  # of jax.checkpoint: whether to keep a value

KEPT: dict[str, tuple[str, ...]] = {"matmuls": (NAME, WIDE), "attention": (NAME,), "full": ()}  # by model.remat


def layer_policy(config: ModelConfig) -> Policy:
    """Return the policy of jax.checkpoint for a layer. Its arguments are kept too, by jax.checkpoint itself.

    With `model.offload` all that has a name is kept in host memory, also the layer's input: give it its name inside.
    """
    if config.remat == "none":
        return checkpoint_policies.everything_saveable
    return _keeping((*KEPT[config.remat], INPUT) if offloads(config) else KEPT[config.remat], config)


def layer_runs(config: ModelConfig, repeats: int) -> list[tuple[slice, Policy | None]]:
    """Return the runs of a stack's layers, in order, and the policy of each; None: jax.checkpoint is not used.

    The last `model.remat_matmuls_last` layers have the policy "matmuls". The backward pass begins with them.
    """
    if config.remat == "none":
        return [(slice(0, repeats), None)]
    first = repeats - min(config.remat_matmuls_last, repeats)
    last = dataclasses.replace(config, remat="matmuls")
    runs = [(slice(0, first), layer_policy(config)), (slice(first, repeats), layer_policy(last))]
    return [(layers, policy) for layers, policy in runs if layers.start < layers.stop]


def tick_policy(config: ModelConfig) -> Policy:
    """Return the policy of a tick of a pipeline with repeats. Its parameters are chosen again instead of being kept."""
    return _keeping((*KEPT["matmuls" if config.remat == "none" else config.remat], INPUT), config)


def offloads(config: ModelConfig) -> bool:
    """Return whether layers keep their values in host memory: `model.offload` asks for it, and the devices have it."""
    return config.offload and has_host_memory()


def _keeping(names: tuple[str, ...], config: ModelConfig) -> Policy:
    if not offloads(config):
        return checkpoint_policies.save_only_these_names(*names)
    return checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[], names_which_can_be_offloaded=names, offload_src="device", offload_dst=HOST
    )
