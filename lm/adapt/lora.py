"""Low-rank adapters: add them to a model and merge them into its weights. lm/model/linear.py defines what they compute."""

import dataclasses

from flax import nnx

from lm.adapt.quantize import dequantize as dequantized
from lm.adapt.rebuild import arrays_of, each_layer, modules, rebuilt
from lm.config import Adapter, ModelConfig
from lm.errors import UserError
from lm.model.linear import Linear
from lm.model.transformer import build, skeleton


def with_adapter(config: ModelConfig, params: nnx.State, adapter: Adapter, seed: int = 0) -> tuple[ModelConfig, nnx.State]:
    """Return the model with fresh adapters; its weights may be quantised (QLoRA, Dettmers et al. 2023).

    The logits stay bitwise the same. Raises UserError if the model already has adapters, or if no matrix matches the targets.
    """
    if config.adapter.rank:
        raise UserError(f"the model has an adapter of rank {config.adapter.rank} already: merge it first")
    new = dataclasses.replace(config, adapter=adapter)
    check_targets(new)
    return new, rebuilt(new, params, lambda _: arrays_of(adapter_only(build(new, seed))))


def check_targets(config: ModelConfig) -> None:
    """Raise UserError if the config asks for adapters and model.adapter.targets matches none of the model's matrices."""
    if config.adapter.rank and not arrays_of(adapter_only(skeleton(config)[1])):
        names = sorted({linear.name for _, linear in modules(config, skeleton(config)[1], Linear)})
        raise UserError(f"model.adapter.targets={config.adapter.targets!r} matches none of {', '.join(names)}")


def adapter_only(params: nnx.State) -> nnx.State:
    """Return the adapter's parameters only."""
    return nnx.filter_state(params, nnx.LoRAParam)


def merge(config: ModelConfig, params: nnx.State, *, dequantize: bool = False) -> tuple[ModelConfig, nnx.State]:
    """Return the model with the adapters merged: weights are c ⊙ (W + s·A·B), in the dtype of W.

    Raises UserError if a weight with an adapter is quantised, because integers cannot hold the sum exactly. With `dequantize`
    all weights become float32 first.
    """
    if dequantize:
        config, params = dequantized(config, params)
    new = dataclasses.replace(config, adapter=Adapter())

    def merged(params):
        found = {}
        for name, linear in modules(config, params, Linear):
            if hasattr(linear, "lora_a"):
                if not isinstance(linear.weight, nnx.Variable):
                    raise UserError(f"{name} has {linear.weight.bits} bits: dequantize them, or ask for dequantize=True")
                found[f"{name}.weight"] = each_layer(name, Linear.full, linear).astype(linear.weight[...].dtype)
        return found

    return new, rebuilt(new, params, merged)
