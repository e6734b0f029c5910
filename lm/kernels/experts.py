"""Dispatch tokens to their experts, compute, and combine the results, on one device or across the mesh's expert axis.

Dropless (MegaBlocks, Gale et al. 2022): assignments are sorted by expert and multiplied group by group; a group may have any
size. With a capacity (GShard, Lepikhin et al. 2020) every expert has C places per device; assignments beyond them are dropped.

The devices of an expert axis hold different tokens and different experts. A row travels to the device of its expert and its
result back (all-to-all). Dropless does so in rounds. In a round a device has C places for the rows of each other device, SLACK
times an even share. So memory does not grow with the imbalance: balanced routing takes one round, and the fullest pair of a
sender and a receiver decides how many more there are. The first round is differentiated as usual. A loop of unknown length
has no gradient in JAX, so the gradient of further rounds is a loop too, which computes each round again.

Axes: B batch, T time, D model, E experts (of this device), K experts per token, N tokens, F hidden units, R rows that the
experts compute, C places (of an expert with a capacity, else for a pair of devices), W devices of the expert axis. An
assignment is a token's k-th expert, number n·K + k.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from lm.kernels.dispatch import (
    Across,
    Exchange,
    all_to_all,
    combined,
    dispatched,
    dropless,
    exchange_of,
    in_round,
    permuted,
    weights_of_rows,
    with_capacity,
)  # fmt: skip
from lm.kernels.grouped_matmul import grouped_matmul
from lm.kernels.saved import saved
from lm.parallel.context import length_axis
from lm.parallel.mesh import embed_axes, reshard, spec, token_axes

WEIGHT_AXES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("gate", "up"), ("expert", "embed", "mlp")),
    **dict.fromkeys(("gate_bias", "up_bias"), ("expert", "mlp")),
    "down": ("expert", "mlp", "embed"),
}
SLACK = 1.25  # places for the rows that a device sends to another one in a round, relative to an even share
TILE = 16  # the number of places is a multiple of it: rows of bfloat16 in a TPU's tile
Activation: TypeAlias = Callable[[jax.Array], jax.Array]
Learned: TypeAlias = tuple[jax.Array, jax.Array, dict[str, jax.Array]]  # x [N, D], weights [N, K], those of the experts


def experts(
    x_BTD: jax.Array,
    choice_BTK: jax.Array,
    weight_BTK: jax.Array,
    weights: dict[str, jax.Array],
    *,
    activation: Activation,
    dtype: DTypeLike,
    capacity_factor: float = 0.0,
    limit: float = 0.0,
    weigh_inputs: bool = False,
) -> jax.Array:
    """Compute lm.kernels.ops.experts."""
    unit = functools.partial(_hidden, activation, limit)
    through = functools.partial(_through, unit, jnp.dtype(dtype), weigh_inputs)
    local = functools.partial(_local, through=through, dtype=jnp.dtype(dtype), capacity_factor=capacity_factor)
    axis = length_axis(x_BTD)
    rows, tokens = spec("batch", axis, None), spec("batch", "length", None)
    if tokens is None:
        return local(x_BTD, choice_BTK, weight_BTK, weights)
    arrays = [reshard(x_BTD, "batch", axis, None), *(reshard(a, "batch", "length", None) for a in (choice_BTK, weight_BTK))]
    weights = {name: reshard(w, *WEIGHT_AXES[name]) for name, w in weights.items()}
    of_weights = {name: spec(*WEIGHT_AXES[name]) for name in weights}
    mesh = jax.sharding.get_abstract_mesh()
    axes = frozenset(mesh.axis_names) - frozenset(mesh.manual_axes)
    local = functools.partial(local, layout=Layout(axes, embed_axes(), token_axes(), axis == "sequence"))
    return jax.shard_map(local, in_specs=(rows, tokens, tokens, of_weights), out_specs=rows, axis_names=axes)(*arrays, weights)


class Layout(NamedTuple):
    """How a mesh splits what `_local` gets.

    split: the mesh axes of the shard_map that it is called in, if there is one. columns: those that split the model dimension
    of weights. over: those that split tokens. scatter: whether T of x and of the result is split over tensor, unlike that of
    the other arrays.
    """

    split: frozenset[str] = frozenset()
    columns: str | tuple[str, ...] | None = None
    over: tuple[str, ...] = ()
    scatter: bool = False


def _local(
    x_BTD: jax.Array,
    choice_BTK: jax.Array,
    weight_BTK: jax.Array,
    weights: dict[str, jax.Array],
    *,
    through: Callable[..., jax.Array],
    dtype: jnp.dtype,
    capacity_factor: float,
    layout: Layout = Layout(),  # noqa: B008 (it is immutable)
) -> jax.Array:
    """Compute `experts` on one device."""
    split, columns, over, scatter = layout
    x_ND, choice_NK, weight_NK = (a.reshape(-1, a.shape[-1]) for a in (x_BTD, choice_BTK, weight_BTK))
    x_ND = x_ND.astype(dtype)
    if split:  # makes a weight's gradient a sum over the axes of rows that do not split it
        repeated = tuple(axis for axis in ("stage", "data") if axis in split)
        weights = {name: lax.pcast(w, repeated, to="varying") for name, w in weights.items()}
    ways, K = lax.axis_size("expert") if split else 1, choice_NK.shape[1]
    across, E = Across(("tensor",) if split else (), len(x_BTD) if scatter else 0), weights["up"].shape[0]
    through = functools.partial(through, columns, bool(split))

    if capacity_factor > 0:
        C = min(len(choice_NK), math.ceil(capacity_factor * len(choice_NK) * K / (E * ways)))
        dispatch = with_capacity(choice_NK, E * ways, C)
        x_ECD = dispatched(across, x_ND, dispatch).reshape(E * ways, C, -1)
        weight_EC = weights_of_rows(weight_NK, dispatch).reshape(E * ways, C)
        if split:
            x_ECD, weight_EC = (lax.all_to_all(a, "expert", 0, 1, tiled=True) for a in (x_ECD, weight_EC))
        y_ECD = through(weights, x_ECD, weight_EC)
        if split:
            y_ECD = lax.all_to_all(y_ECD, "expert", 1, 0, tiled=True)
        y_ND = combined(across, y_ECD.reshape(E * ways * C, -1), dispatch)
    elif ways == 1:
        dispatch, sizes_E = dropless(choice_NK, E)
        x_RD, weight_R = dispatched(across, x_ND, dispatch), weights_of_rows(weight_NK, dispatch)
        y_ND = combined(across, through(weights, x_RD, weight_R, sizes_E), dispatch)
    else:
        exchange, C = exchange_of(choice_NK, E, ways), places(len(choice_NK), K, E, ways)
        compute = functools.partial(_round, through, across, C)
        learned = x_ND, weight_NK, weights
        y_ND = compute(exchange, 0, *learned)
        if C < len(choice_NK) * min(K, E):  # else no pair can need more
            rounds = saved(lax.pmax(-(-jnp.max(exchange.sent_W) // C), over))
            y_ND = _further_rounds(compute, rounds, exchange, y_ND, learned)
    return y_ND.astype(dtype).reshape(x_BTD.shape)


def _hidden(activation: Activation, limit: float, up: jax.Array, gate: jax.Array | None = None) -> jax.Array:
    up = limited(up, limit) if limit else up
    return activation(up) if gate is None else activation(gate) * up


def limited(up: jax.Array, limit: float) -> jax.Array:
    """Return clip(up, ±limit) + 1, which a clamped gate is multiplied with (gpt-oss)."""
    return jnp.clip(up, -limit, limit) + 1


def _through(
    unit: Callable[..., jax.Array],
    dtype: jnp.dtype,
    weigh_inputs: bool,
    columns: str | tuple[str, ...] | None,
    split: bool,
    weights: dict[str, jax.Array],
    x: jax.Array,
    weight: jax.Array,
    sizes_E: jax.Array | None = None,
) -> jax.Array:
    """Return the weighted results of the experts for rows in the order of `grouped_matmul`, in `dtype`."""

    def product(x: jax.Array, name: str) -> jax.Array:
        over = (columns, WEIGHT_AXES[name].index("embed")) if split else None
        y = grouped_matmul(x, weights[name], sizes_E, dtype=dtype, over=over)
        return y if f"{name}_bias" not in weights else _plus_bias(y, weights[f"{name}_bias"], sizes_E)

    if weigh_inputs:
        x = (x * weight[..., None]).astype(dtype)
    # Float32 inside, as in lm/model/feed_forward.py.
    h = unit(*(saved(product(x, name), wide=True).astype(jnp.float32) for name in ("up", "gate") if name in weights))
    # Multiply by the weight before `down`: the result is the same, and the gradient does not need the output of `down`.
    return product((h if weigh_inputs else h * weight[..., None]).astype(dtype), "down")


def _plus_bias(y: jax.Array, bias_EF: jax.Array, sizes_E: jax.Array | None) -> jax.Array:
    """Add to each row the bias of its expert; rows after the last group become 0."""
    if sizes_E is None:
        return y + bias_EF[:, None].astype(y.dtype)
    bias_RF = jnp.repeat(bias_EF.astype(y.dtype), sizes_E, axis=0, total_repeat_length=len(y))
    return jnp.where((jnp.arange(len(y)) < jnp.sum(sizes_E))[:, None], y + bias_RF, 0)


def places(N: int, K: int, E: int, W: int) -> int:
    """Return C, how many of its N·K assignments a device can send to each of W devices with E experts in a round."""
    return min(N * min(K, E), -(-math.ceil(SLACK * N * K / W) // TILE) * TILE)


def _round(
    through: Callable[..., jax.Array],
    across: Across,
    C: int,
    exchange: Exchange,
    n: jax.Array | int,
    x_ND: jax.Array,
    weight_NK: jax.Array,
    weights: dict[str, jax.Array],
) -> jax.Array:
    """Return what round n adds to the result of `experts`, float32 [N, D]."""
    dispatch, (order_R, rank_R, sizes_E) = in_round(exchange, n, C)
    x_RD, weight_R = all_to_all(dispatched(across, x_ND, dispatch)), all_to_all(weights_of_rows(weight_NK, dispatch))
    y_RD = through(weights, permuted(x_RD, order_R, rank_R), permuted(weight_R, order_R, rank_R), sizes_E)
    return combined(across, all_to_all(permuted(y_RD, rank_R, order_R)), dispatch)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _further_rounds(
    compute: Callable[..., jax.Array], rounds: jax.Array, exchange: Exchange, y_ND: jax.Array, learned: Learned
) -> jax.Array:
    """Return y + the results of the rounds from 1 on. compute: (exchange, round, *learned) -> float32 [N, D]."""

    def body(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        n, y_ND = carry
        return n + 1, y_ND + compute(exchange, n, *learned)

    return lax.while_loop(lambda carry: carry[0] < rounds, body, (jnp.int32(1), y_ND))[1]


def _further_backward(
    compute: Callable[..., jax.Array], kept: tuple[jax.Array, Exchange, Learned], dy_ND: jax.Array
) -> tuple[None, None, jax.Array, Learned]:
    rounds, exchange, learned = kept

    def body(carry: tuple[jax.Array, Learned]) -> tuple[jax.Array, Learned]:
        n, sums = carry
        gradients = jax.vjp(functools.partial(compute, exchange, n), *learned)[1](dy_ND)
        return n + 1, jax.tree.map(lambda total, one: total + one.astype(total.dtype), sums, gradients)

    zeros = jax.tree.map(lambda x: jnp.zeros_like(x, dtype=jnp.float32), learned)
    sums = lax.while_loop(lambda carry: carry[0] < rounds, body, (jnp.int32(1), zeros))[1]
    return None, None, dy_ND, jax.tree.map(lambda total, x: total.astype(x.dtype), sums, learned)


_further_rounds.defvjp(
    lambda compute, rounds, exchange, y_ND, learned: (
        _further_rounds(compute, rounds, exchange, y_ND, learned),
        (rounds, exchange, learned),
    ),
    _further_backward,
)
