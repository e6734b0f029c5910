"""The weights of a model, laid out for the compiled step."""

import dataclasses
import functools
import math
from collections.abc import Callable, Hashable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.tree_util import PyTreeDef

from lm.adapt.lora import merge
from lm.adapt.rebuild import arrays_of, combined
from lm.config import Adapter, ModelConfig
from lm.errors import UserError
from lm.infer.engine.adapters import Slots, empty
from lm.kernels.cpu.packed import Packed, can_pack, join, pack, pack_integers
from lm.model.attention import Attention
from lm.model.feed_forward import FeedForward
from lm.model.linear import Linear, Quantized, QuantizedWeight, cast_matrices, whole
from lm.model.recurrent import ShortConvolution, StateSpace
from lm.model.transformer import Transformer, skeleton
from lm.parallel.arrays import PyTree


class Kind(NamedTuple):
    """How matrices are packed: bits of a weight, and for integers how many inputs share a scale (0: all), and the bits to which
    activations are rounded.
    """

    bits: int
    group: int = 0
    activations: int = 16


KINDS = {"float32": Kind(32), "bfloat16": Kind(16), "int8": Kind(8), "int4": Kind(4, 32), "w8a8": Kind(8, 0, 8)}
TOGETHER = {
    Attention: ("query", "key", "value"),
    ShortConvolution: ("in_gate", "out_gate", "value"),
    StateSpace: ("query", "key", "value", "gate"),
    FeedForward: ("up", "gate"),
}  # products of one input, joined
UNROLLED = 48  # most layers of a kind that are unrolled; more would take long to compile. A scan copies weights and pages.
APART = ("attention.key_up", "attention.value_up")  # of latent attention: not only activations are multiplied with them


class Program:
    """A model without its arrays, the static part of the compiled step. Equal ones are one object, so comparing takes no time.

    tree: of (params, layers) of `Weights`. kinds: shape, dtype and sharding of each of its arrays.
    """

    def __init__(self, graph: nnx.GraphDef, tree: PyTreeDef, kinds: tuple[Hashable, ...]) -> None:
        self.graph, self.tree, self.kinds = graph, tree, kinds


program = functools.lru_cache(maxsize=16)(Program)


class Weights(NamedTuple):
    """What the compiled step needs of a model.

    config: without scanned layers, if they are few. layers: the parameters of each layer of each stack, as
    `Transformer.unstacked` returns them; then `params` holds empty arrays in their place. None: they are in `params`.
    adapters: arrays of all adapters by dotted name, stacked over layers.
    """

    config: ModelConfig
    graph: nnx.GraphDef
    params: nnx.State
    layers: list[list[PyTree]] | None
    adapters: dict[str, jax.Array]

    def split(self) -> tuple[Program, tuple[jax.Array, ...]]:
        """Return the arguments of the compiled step: the model without its arrays, and these."""
        arrays, tree = jax.tree.flatten((self.params, self.layers))
        return program(self.graph, tree, tuple([(x.shape, x.dtype, x.sharding) for x in arrays])), tuple(arrays)


def weights_of(
    model: Transformer,
    packed: str = "",
    slots: Slots | None = None,
    owned: bool = False,
    in_place: bool = False,
    ahead: bool = False,
) -> Weights:
    """Return the weights for steps.

    packed: a key of KINDS: matrices are packed for a CPU's compiled products. Those of integers stay the same integers, unless
      others are asked for. "": matrices are in the compute dtype, because a step reads each of them once.
    slots: room for adapters. With either, an adapter of the model's own is merged into its weights.
    owned: nobody else needs the model: its arrays are freed once they are packed.
    in_place: the model's own arrays are used, without a copy. A step then casts each matrix and takes each layer out of its
      stack, which is nearly free where the compiler does it while it reads them, as on accelerators.
    ahead: with the modules that look ahead, for guesses.
    """
    config, params = model.config, nnx.split(model)[1]
    if config.mtp_depth and not ahead:
        config = dataclasses.replace(config, mtp_depth=0)
        params = nnx.from_flat_state([(path, x) for path, x in nnx.to_flat_state(params) if path[0] != "mtp"])
    # With dropped tokens, an answer would depend on the others of its step.
    config = dataclasses.replace(config, moe=dataclasses.replace(config.moe, capacity_factor=0.0))
    if packed not in ("", *KINDS):
        raise UserError(f"packed={packed} is none of {', '.join(KINDS)}")
    if config.adapter.rank and slots:
        config, params = merge(config, params, dequantize=bool(config.quantization.bits))
    arrays: dict[str, jax.Array] = {}
    if slots is not None:
        config, arrays = empty(config, slots)
        params = combined(config, arrays_of(params) | arrays)
    scanned = config.scan_layers and not slots and max(repeats for _, repeats in config.stacks) > UNROLLED
    if not packed and not in_place:
        params = jax.jit(cast_matrices, static_argnums=0)(config, params)
    if not packed and (scanned or in_place):
        config = dataclasses.replace(config, scan_layers=scanned)
        return Weights(config, skeleton(config)[0], params, None, arrays)
    config = dataclasses.replace(config, scan_layers=False)
    graph = skeleton(config)[0]
    if packed:
        graph, params, layers = _packed(config, graph, params, KINDS[packed], merges=slots is None)
        config = config if slots else dataclasses.replace(config, adapter=Adapter())
    else:
        layers = _unstacked(graph, params)
    weights = Weights(config, graph, _without_layers(params), layers, arrays)
    if owned and packed:
        free(nnx.split(model)[1], (weights.params, weights.layers, weights.adapters))
    return weights


def with_adapters(weights: Weights, arrays: dict[str, jax.Array]) -> Weights:
    """Return the weights with these arrays of adapters; only those that differ are split into layers again."""
    layers = [list(stack) for stack in weights.layers or ()]
    for name, x in arrays.items():
        if weights.adapters.get(name) is x:
            continue
        _, s, p, *path = name.split(".")
        for n, of_layer in enumerate(layers[int(s)]):
            flat = dict(nnx.to_flat_state(of_layer[int(p)]))
            flat[tuple(path)] = flat[tuple(path)].replace(x[n])
            states = list(of_layer)
            states[int(p)] = nnx.from_flat_state(flat)
            layers[int(s)][n] = tuple(states)
    return weights._replace(layers=layers, adapters=arrays)


@functools.partial(jax.jit, static_argnums=0)
def _unstacked(graph: nnx.GraphDef, params: nnx.State) -> list[list[PyTree]]:
    return nnx.merge(graph, params).unstacked()


def free(old: PyTree, new: PyTree) -> None:
    """Free the arrays of `old` that `new` does not share."""
    kept = {id(x) for x in jax.tree.leaves(new)}
    for x in jax.tree.leaves(old):
        if id(x) not in kept:
            x.delete()


def _without_layers(params: nnx.State) -> nnx.State:
    """Return the parameters with empty arrays for those of layers."""
    nothing = jnp.zeros((0,), jnp.float32)
    flat = {path: x.replace(nothing) if path[0] == "stacks" else x for path, x in nnx.to_flat_state(params)}
    return nnx.from_flat_state(flat)


def _packed(
    config: ModelConfig, graph: nnx.GraphDef, params: nnx.State, kind: Kind, merges: bool
) -> tuple[nnx.GraphDef, nnx.State, list[list[PyTree]]]:
    """Return (graph, parameters, layers) with packed matrices, of all linear layers and of the head.

    One layer at a time is taken from the stacks, so that the weights are never there twice in floats. merges: adapters are
    merged into the matrices.
    """
    model, layers = nnx.merge(graph, params), []
    name = "embedding" if config.tie_embeddings else "head"
    setattr(model, name, Quantized(_packed_head(getattr(model, name)[...], kind)))
    for stack, (_, repeats) in zip(model.stacks, config.stacks, strict=True):
        split = [nnx.split(module) for module in stack]
        layers.append([tuple(_packed_layer(g, merges, kind, state, np.int32(n)) for g, state in split) for n in range(repeats)])
        for module in stack:
            # One array each, because nnx keeps track of what is shared.
            _replace_weights(module, merges, lambda linear, apart: jnp.zeros((0,), jnp.float32))
    beside = (model.layer_embedding, model.streams, *(model.mtp if config.mtp_depth else ()))
    for module in [one for one in beside if one is not None]:
        graph, params = nnx.split(module)
        _replace_weights(module, merges, lambda linear, apart: jnp.zeros((0,), jnp.float32))
        nnx.update(module, _packed_layer(graph, merges, kind, params, None))
    return *nnx.split(model), layers


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _packed_layer(graph: nnx.GraphDef, merges: bool, kind: Kind, params: nnx.State, n: jax.Array | None) -> nnx.State:
    """Return the parameters of layer n of a stack; of a single module if n is None."""
    module = nnx.merge(graph, params if n is None else jax.tree.map(lambda x: x[n], params))

    def weight(linear: Linear, apart: bool) -> jax.Array | Packed:
        return linear.full() if apart else _packed_weight(linear, kind, merges)

    _replace_weights(module, merges, weight)
    for user in [one for _, one in nnx.iter_modules(module) if type(one) in TOGETHER]:
        linears = [getattr(user, name) for name in TOGETHER[type(user)] if hasattr(user, name)]
        if joined := join([linear.weight.get_value() for linear in linears]):
            for linear in linears:
                linear.weight = Quantized(joined if linear is linears[0] else ())
    return nnx.split(module)[1]


def _packed_weight(linear: Linear, kind: Kind, merges: bool) -> Packed:
    weight = linear.weight
    adapted = merges and hasattr(linear, "lora_a")
    if isinstance(weight, QuantizedWeight) and not adapted and kind.bits in (weight.bits, 16, 32):
        integers, scale = weight.integers[...], weight.scale[...]
        integers = integers.reshape(math.prod(integers.shape[: linear.inputs]), -1)
        scale = scale.reshape(math.prod(scale.shape[: linear.inputs]), -1)
        if can_pack(integers, scale):
            return dataclasses.replace(pack_integers(integers, scale, activations=kind.activations), shape=linear.outputs)
    w = linear.full() if adapted else whole(weight)
    packed = pack(w.reshape(math.prod(w.shape[: linear.inputs]), -1), kind.bits, kind.group, kind.activations)
    return dataclasses.replace(packed, shape=linear.outputs)


def _replace_weights(module: nnx.Module, merges: bool, weight: Callable[[Linear, bool], jax.Array | Packed]) -> None:
    """Replace what is packed by weight(linear, False), and with `merges` any other adapted weight by weight(linear, True)."""
    for linear in [one for _, one in nnx.iter_modules(module) if isinstance(one, Linear)]:
        apart, adapted = linear.name in APART, merges and hasattr(linear, "lora_a")
        if not apart or adapted:
            linear.weight = (nnx.Param if apart else Quantized)(weight(linear, apart))
        for name in ("lora_a", "lora_b", "magnitude") if adapted else ():
            if hasattr(linear, name):
                delattr(linear, name)


@functools.partial(jax.jit, static_argnums=1)
def _packed_head(head_VD: jax.Array, kind: Kind) -> Packed:
    return dataclasses.replace(pack(head_VD.T, kind.bits, kind.group, kind.activations), result="float32")
