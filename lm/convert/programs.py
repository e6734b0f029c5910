"""The programs prefill and decode of a model, as functions of arrays by name, for runtimes that do not have this code.

They are the ordinary forward pass. Layers are unrolled, and each has its own weights and its own cache, because a loop over
stacks would copy both at every token.

Axes: B rows, P prompt slots, S cache slots, V vocabulary, L layers.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from lm.config import ModelConfig
from lm.model.cache import Cache, DecodeState, cache_shapes, empty_state
from lm.model.inputs import Inputs
from lm.model.linear import cast_matrices
from lm.model.transformer import Transformer, skeleton
from lm.runs.checkpoint import named, nested, plain, unplain

Arrays = dict[str, jax.Array]


class Weight(NamedTuple):
    """Where an exported weight is in our parameters: a dotted name, and the repeat of a stack (None: all of the array)."""

    path: str
    repeat: int | None


class Programs(NamedTuple):
    """Two functions, and the shapes of their arguments.

    prefill(params, tokens_BP, lengths_B) -> (logits_BV, cache): reads prompts that are padded on the left.
    decode(params, cache, token_B, position_B) -> (logits_BV, cache): reads one more token of each row into the next slot.
    params, cache: arrays by name. weights: where each of `params` comes from, in the order of the names, which is that of the
    arguments. Logits are float32, of the last token; token ids, lengths and positions are int32.
    """

    prefill: Callable[[Arrays, jax.Array, jax.Array], tuple[jax.Array, Arrays]]
    decode: Callable[[Arrays, Arrays, jax.Array, jax.Array], tuple[jax.Array, Arrays]]
    prefill_arguments: tuple
    decode_arguments: tuple
    weights: dict[str, Weight]


def programs(config: ModelConfig, params: nnx.State, batch: int, prompt: int, length: int) -> Programs:
    """Return the programs of a model for `batch` rows, `prompt` slots of prompts and `length` slots in all.

    config: unrolled, as `for_decoding` returns it. params: arrays or their shapes, with the stored dtypes. Matrices become
    arguments in the compute dtype, to which every use casts them; so does the cache, on every platform.
    """
    weights = _weights(config)
    stored = named(plain(jax.eval_shape(lambda params: cast_matrices(config, params), params)))

    def shape(weight: Weight) -> jax.ShapeDtypeStruct:
        x = stored[weight.path]
        return jax.ShapeDtypeStruct(x.shape if weight.repeat is None else x.shape[1:], x.dtype)

    def prefill(params, tokens, lengths):
        model, layers = _model(config, params)
        positions_BP = jnp.arange(prompt, dtype=jnp.int32) - (prompt - lengths[:, None])
        segments_BP = (positions_BP >= 0).astype(jnp.int32)
        state = empty_state(config, batch, length, config.dtype)
        read = model.hidden(Inputs(tokens, segments_BP, jnp.maximum(0, positions_BP)), state, prefill=True, layers=layers)
        return model.logits(read.x_BTD[:, -1:])[:, 0], _by_name(config, read.memory)

    def decode(params, cache, token, position):
        model, layers = _model(config, params)
        ones_B1 = jnp.ones((batch, 1), jnp.int32)
        logits, state = model(Inputs(token[:, None], ones_B1, position[:, None]), _state(config, cache), layers=layers)
        return logits[:, 0], _by_name(config, state)

    def ids(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.int32)

    shapes = {name: shape(weight) for name, weight in weights.items()}
    read = (shapes, ids(batch, prompt), ids(batch))
    cache = jax.eval_shape(prefill, *read)[1]
    return Programs(prefill, decode, read, (shapes, cache, ids(batch), ids(batch)), weights)


def for_decoding(config: ModelConfig) -> ModelConfig:
    """Return the config of the same decoder, unrolled, without what only training or scoring needs."""
    return dataclasses.replace(config, scan_layers=False, remat="none", offload=False, mtp_depth=0, score_head="none")


def _places(config: ModelConfig) -> Iterator[tuple[int, int, int]]:
    """Yield (stack, position in its block, repeat) of each layer, in the order of the layers."""
    for s, (block, repeats) in enumerate(config.stacks):
        for n in range(repeats):
            for p in range(len(block)):
                yield s, p, n


def _weights(config: ModelConfig) -> dict[str, Weight]:
    """Return every weight by its name, "layers.3.attention.query.weight", sorted by name as JAX sorts a dict's keys."""
    paths, found = list(named(plain(skeleton(config)[1]))), {}
    for i, (s, p, n) in enumerate(_places(config)):
        stack = f"stacks.{s}.{p}."
        found |= {f"layers.{i}.{path.removeprefix(stack)}": Weight(path, n) for path in paths if path.startswith(stack)}
    found |= {path: Weight(path, None) for path in paths if not path.startswith("stacks.")}
    return dict(sorted(found.items()))


def _model(config: ModelConfig, params: Arrays) -> tuple[Transformer, tuple]:
    """Return the model, whose stacks are left abstract, and the `layers` for `Transformer.hidden`."""
    graph, abstract = skeleton(config)
    leaves = named(plain(abstract))
    model = nnx.merge(graph, unplain(abstract, nested({path: params.get(path, x) for path, x in leaves.items()})))

    def layer(i: int, s: int, p: int) -> nnx.State:
        of_stack = nnx.split(model.stacks[s][p])[1]
        return unplain(of_stack, nested({name: params[f"layers.{i}.{name}"] for name in named(plain(of_stack))}))

    return model, _stacked(config, layer)


def _stacked(config: ModelConfig, layer: Callable[[int, int, int], Any]) -> tuple:
    """Return layer(number, stack, position in its block) of each layer, by stack, repeat and position."""
    numbers = {place: i for i, place in enumerate(_places(config))}
    return tuple(
        tuple(tuple(layer(numbers[s, p, n], s, p) for p in range(len(block))) for n in range(repeats))
        for s, (block, repeats) in enumerate(config.stacks)
    )


def _by_name(config: ModelConfig, state: DecodeState) -> Arrays:
    """Return a decode state as arrays by name: layers.I.NAME, segments, slot."""
    arrays = {"segments": state.segments_BS, "slot": state.slot}
    for i, (s, p, n) in enumerate(_places(config)):
        arrays |= {f"layers.{i}.{name}": x for name, x in state.layers[s][p][n].values.items()}
    return arrays


def _state(config: ModelConfig, cache: Arrays) -> DecodeState:
    """Return the decode state of arrays by name; the inverse of `_by_name`."""

    def layer(i: int, s: int, p: int) -> Cache:
        return Cache({name: cache[f"layers.{i}.{name}"] for name in cache_shapes(config)}, {})

    # A decode state has the positions of a block outside, and the repeats inside.
    layers = tuple(tuple(zip(*stack, strict=True)) for stack in _stacked(config, layer))
    return DecodeState(layers, cache["segments"], cache["slot"])
