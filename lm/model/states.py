"""The state of a layer that remembers in a fixed size, and how tokens go through it: in whole rows, or those of an engine.

A core is the part of a layer that depends on earlier tokens: core(inputs, weights, state, flow) -> (y, next state). Everything
else of a layer is computed for each token by itself. On a mesh each device has some rows and some heads (or channels) H.

Axes: B rows, T tokens, H heads, R sequences.
"""

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lm.config import ModelConfig
from lm.kernels.recurrence import Flow
from lm.parallel.arrays import PyTree
from lm.parallel.mesh import reshard, spec

if TYPE_CHECKING:
    from lm.model.inputs import Step

Arrays = dict[str, jax.Array]
# Logical axes of inputs, weights, state, flow, and of the numbers of the states of an engine.
AXES = (("batch", "length", "heads"), ("heads",), ("batch", "heads"), ("batch", "length"), ("batch",))
# inputs [B, T, H, …], weights [H, …], state [B, H, …] or None, flow -> y [B, T, H, …], the next state or None.
Core = Callable[[Arrays, Arrays, Arrays | None, Flow], tuple[jax.Array, Arrays | None]]


class State(NamedTuple):
    """The state of one layer, float32; arrays of a stack of layers have its repeats as their first axis.

    values: [B, H, …] of the rows of a DecodeState, or [R, H, …] of the sequences of an engine and of its snapshots.
    """

    values: Arrays


def advanced(core: Core, inputs: Arrays, weights: Arrays, state: State | None, step: "Step") -> tuple[jax.Array, State | None]:
    """Return the core's y [B, T, H, …] and the state after the tokens."""
    assert step.fresh_BT is not None
    values, flow = None if state is None else state.values, Flow(step.fresh_BT, step.valid_BT)
    run: Callable[..., tuple[jax.Array, Arrays | None]] = core
    arguments: tuple[PyTree, ...] = (inputs, weights, values, flow)
    if step.table is not None:
        run, arguments = functools.partial(_by_tokens, core), (*arguments, jnp.asarray(step.table.states_B2))
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:  # a shard_map's gradients would be summed over the one device
        y_BTH, values = run(*(_placed(x, ()) for x in arguments))
        y_BTH, values = _placed(y_BTH, AXES[0]), _placed(values, AXES[2])
    else:
        arguments, specs = tuple(map(_placed, arguments, AXES)), tuple(spec(*of) for of in AXES)
        run = jax.shard_map(run, in_specs=specs[: len(arguments)], out_specs=(specs[0], specs[2]), check_vma=False)
        y_BTH, values = run(*arguments)
    return y_BTH, None if values is None else State(values)


def _by_tokens(
    core: Core, inputs: Arrays, weights: Arrays, values: Arrays, flow: Flow, states_B2: jax.Array
) -> tuple[jax.Array, Arrays]:
    """Return y [B, 1, H, …] and all states, one token after the other.

    Each token continues one state and leaves one; those of a sequence are in order. So a sequence gets the same bits in
    whatever pieces it is read, and whoever shares its steps. A token alone has padding beside it: XLA would write a loop of one
    round as no loop, fuse it with what is around it, and round otherwise.
    """

    def one(values: Arrays, token: tuple[Arrays, Flow, jax.Array]) -> tuple[Arrays, jax.Array]:
        inputs, flow, (before, after) = token
        old = {name: lax.dynamic_index_in_dim(x, before, 0) for name, x in values.items()}
        inputs, flow = jax.tree.map(lambda x: x[None], (inputs, flow))
        y, new = core(inputs, weights, old, flow)
        assert new is not None
        return {name: lax.dynamic_update_index_in_dim(x, new[name], after, 0) for name, x in values.items()}, y[0]

    B, tokens = len(states_B2), (inputs, flow, states_B2)
    if B == 1:
        tokens = jax.tree.map(lambda x: jnp.pad(x, ((0, 1), *[(0, 0)] * (x.ndim - 1))), tokens)
    values, y = lax.scan(one, values, tokens)
    return lax.optimization_barrier(y)[:B], values


def state_shapes(config: ModelConfig, kind: str) -> dict[str, tuple[int, ...]]:
    """Return the shape [H, …] of each array that a layer of this kind remembers of a sequence, by name."""
    r, before = config.recurrent, config.recurrent.kernel - 1
    if kind == "none":
        return {}
    if kind == "conv":
        return {"tail": (config.embed_dim, before)}
    keys, values = (r.num_key_heads * r.key_dim, before), (r.num_heads * r.value_dim, before)
    matrix = (r.num_key_heads, r.num_heads // r.num_key_heads, r.key_dim, r.value_dim)
    return {"query": keys, "key": keys, "value": values, "matrix": matrix}


def empty_states(config: ModelConfig, kind: str, rows: int, repeats: tuple[int, ...] = ()) -> State:
    """Return the states of `rows` sequences that have not begun, for one layer or for n with repeats=(n,)."""
    before = [None] * len(repeats)

    def empty(shape: tuple[int, ...]) -> jax.Array:
        where = spec(*before, "batch", "heads", *[None] * (len(shape) - 1))
        return jnp.zeros((*repeats, rows, *shape), jnp.float32, out_sharding=where)

    return State({name: empty(shape) for name, shape in state_shapes(config, kind).items()})


def state_bytes(config: ModelConfig) -> int:
    """Return the bytes that all layers remember of one sequence in states, whatever its length."""
    kinds = [kind.recurrent for kind in config.layer_kinds if kind.recurrent]
    return 4 * sum(math.prod(shape) for kind in kinds for shape in state_shapes(config, kind).values())


def core_flops(config: ModelConfig, kind: str) -> float:
    """Return the FLOPs that one token takes forward in the core of a layer of this kind, read token by token."""
    r, shapes = config.recurrent, state_shapes(config, kind)
    convolved = 2 * r.kernel * sum(shape[0] for name, shape in shapes.items() if name != "matrix")
    # A state is read for the key, changed, and read for the query.
    return convolved + 6 * math.prod(shapes.get("matrix", (0,)))


def _placed(tree: PyTree, axes: tuple[str, ...]) -> PyTree:
    return jax.tree.map(lambda x: reshard(x, *axes, *[None] * (x.ndim - len(axes))), tree)
