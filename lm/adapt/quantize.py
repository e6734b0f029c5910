"""Quantize a model's weights, and dequantize them. lm/kernels/quantize.py defines the format and its error bound."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from lm.adapt.rebuild import arrays_of, each_layer, modules, rebuilt
from lm.config import ModelConfig, Quantization
from lm.errors import UserError
from lm.kernels import quantize as kernel
from lm.model.linear import QuantizedWeight, whole
from lm.model.transformer import skeleton
from lm.parallel.mesh import logical_axes, reshard


def quantize(config: ModelConfig, params: nnx.State, quantization: Quantization) -> tuple[ModelConfig, nnx.State]:
    """Return the model with the weights that match `quantization.targets` quantised. Adapters stay unchanged.

    Raises UserError if weights are already quantised, if none matches, or if the group size does not fit.
    """
    if config.quantization.bits:
        raise UserError(f"the weights are of {config.quantization.bits} bits already: dequantize them first")
    new = dataclasses.replace(config, quantization=quantization)
    check_targets(new)

    def integers(params):
        floats, found = arrays_of(params), {}
        for name, weight in modules(new, skeleton(new)[1], QuantizedWeight):
            # A scale may cover all inputs, so its declaration keeps the input axes on one device.
            axes = logical_axes(weight.scale)
            axes = axes[axes[0] == "layers" :]

            def one(w, weight=weight, axes=axes):
                return kernel.quantize(reshard(w, *axes), weight.inputs, bits=weight.bits, group=weight.group)

            found[f"{name}.integers"], found[f"{name}.scale"] = each_layer(name, one, floats[name])
        return found

    return new, rebuilt(new, params, integers)


def check_targets(config: ModelConfig) -> None:
    """Raise UserError if the config asks for quantisation and model.quantization.targets matches none of the weights."""
    if config.quantization.bits and not any(modules(config, skeleton(config)[1], QuantizedWeight)):
        raise UserError(f"model.quantization.targets={config.quantization.targets!r} matches none of the model's weights")


def dequantize(config: ModelConfig, params: nnx.State, dtype=jnp.float32) -> tuple[ModelConfig, nnx.State]:
    """Return the model with float weights; quantised weights become exactly the values that products used."""
    new = dataclasses.replace(config, quantization=Quantization())

    def floats(params):
        found = modules(config, params, QuantizedWeight)
        return {name: each_layer(name, lambda weight: whole(weight, dtype), weight) for name, weight in found}

    return new, rebuilt(new, params, floats)


def memory(params: nnx.State) -> int:
    """Return the bytes of all parameters, summed over devices; `params` may be abstract."""
    return sum(x.size * jnp.dtype(x.dtype).itemsize for x in jax.tree.leaves(arrays_of(params)))
