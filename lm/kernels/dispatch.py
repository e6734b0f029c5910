"""The map between assignments of tokens to experts and the rows that experts compute, and how values move along it.

Axes: N tokens, K experts per token, D model, R rows, E experts, C places (of an expert with a capacity, else of a pair of
devices in a round), W devices of the mesh's expert axis, A = N·K assignments. Assignment n·K + k is the k-th expert of token n.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lm.kernels.saved import saved
from lm.parallel.context import scattered_rows


class Dispatch(NamedTuple):
    """The map between assignments and rows.

    source_R: int32, the assignment in each row; undefined where filled_R (bool) is False.
    place_NK: int32, the row of each assignment; R if it has none.
    """

    source_R: jax.Array
    filled_R: jax.Array
    place_NK: jax.Array


class Exchange(NamedTuple):
    """Which assignments a device sends to each device of the expert axis, and how many it receives. int32.

    order_A: assignments sorted by expert, and so by device; skipped ones last. device_NK: the device of each assignment, or
    another number if it is skipped. rank_NK: its number in this order, among those for the same device. sent_W: how many go to
    each device. received_WE: how many come from each device, by expert of this device.
    """

    order_A: jax.Array
    device_NK: jax.Array
    rank_NK: jax.Array
    sent_W: jax.Array
    received_WE: jax.Array


class Arrivals(NamedTuple):
    """The rows that a device receives in a round. int32.

    order_R: the rows sorted by expert, empty ones last. rank_R: the place of each row in this order. sizes_E: rows by expert.
    """

    order_R: jax.Array
    rank_R: jax.Array
    sizes_E: jax.Array


def dropless(choice_NK: jax.Array, E: int) -> tuple[Dispatch, jax.Array]:
    """Sort assignments to experts 0…E−1 by expert. Return (dispatch, sizes_E); R = N · min(K, E) rows, filled ones first."""
    N, K = choice_NK.shape
    R = N * min(K, E)
    order_A, rank_NK, sizes_E = _sorted(choice_NK, E)
    total = jnp.sum(sizes_E)
    return Dispatch(order_A[:R], jnp.arange(R) < total, jnp.where(rank_NK < total, rank_NK, R)), sizes_E


def with_capacity(choice_NK: jax.Array, E: int, C: int) -> Dispatch:
    """Return the dispatch whose rows e·C … e·C + C − 1 hold the first C assignments of expert e, in token order."""
    order_A, rank_NK, sizes_E = _sorted(choice_NK, E)
    starts_E = jnp.cumsum(sizes_E) - sizes_E
    source_EC = starts_E[:, None] + jnp.arange(C)
    filled_EC = jnp.arange(C) < sizes_E[:, None]
    mine_NKE = choice_NK[..., None] == jnp.arange(E)
    rank_NK = rank_NK - jnp.sum(jnp.where(mine_NKE, starts_E, 0), axis=-1)
    kept_NK = jnp.any(mine_NKE, axis=-1) & (rank_NK < C)
    source_R = order_A[jnp.minimum(source_EC, order_A.size - 1).reshape(-1)]
    return Dispatch(source_R, filled_EC.reshape(-1), jnp.where(kept_NK, choice_NK * C + rank_NK, E * C))


def exchange_of(choice_NK: jax.Array, E: int, W: int) -> Exchange:
    """Sort assignments to the experts 0 … E·W − 1, of which device w has w·E … w·E + E − 1, and exchange how many there are.

    Call it in a shard_map over the axis `expert`.
    """
    order_A, rank_NK, sizes = _sorted(choice_NK, E * W)
    sent_WE = sizes.reshape(W, E)
    sent_W = jnp.sum(sent_WE, axis=1)
    device_NK = jnp.floor_divide(choice_NK, E)
    starts_NK = jnp.sum(jnp.where(device_NK[..., None] == jnp.arange(W), jnp.cumsum(sent_W) - sent_W, 0), axis=-1)
    return Exchange(order_A, device_NK, rank_NK - starts_NK, sent_W, saved(all_to_all(sent_WE)))


def in_round(exchange: Exchange, n: jax.Array | int, C: int) -> tuple[Dispatch, Arrivals]:
    """Return which assignments round n sends, and what it receives: of each pair of devices the ranks n·C … n·C + C − 1.

    Rows w·C … w·C + C − 1 of the dispatch are for device w.
    """
    W, E = exchange.received_WE.shape
    ranks_C = n * C + jnp.arange(C)
    source_WC = (jnp.cumsum(exchange.sent_W) - exchange.sent_W)[:, None] + ranks_C
    filled_WC = ranks_C < exchange.sent_W[:, None]
    place_NK = exchange.rank_NK - n * C
    now_NK = (exchange.device_NK >= 0) & (exchange.device_NK < W) & (place_NK >= 0) & (place_NK < C)
    place_NK = jnp.where(now_NK, exchange.device_NK * C + place_NK, W * C)
    source_R = exchange.order_A[jnp.minimum(source_WC, exchange.order_A.size - 1).reshape(-1)]

    # What a device sends is sorted by expert. Empty places get the expert E, which sorts last.
    expert_WC = jnp.sum(ranks_C[:, None] >= jnp.cumsum(exchange.received_WE, axis=1)[:, None], axis=-1)
    return Dispatch(source_R, filled_WC.reshape(-1), place_NK), Arrivals(*_sorted(expert_WC.reshape(-1), E))


def _sorted(choice_NK: jax.Array, E: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return (assignments sorted by expert, rank of each assignment, count per expert). Out-of-range experts sort last."""
    choice_A = choice_NK.reshape(-1)
    known_AE = choice_A[:, None] == jnp.arange(E)
    order_A = jnp.argsort(jnp.where(jnp.any(known_AE, axis=-1), choice_A, E), stable=True).astype(jnp.int32)
    order_A = saved(order_A)  # smaller than any product, and slow to make
    rank_A = jnp.zeros_like(order_A).at[order_A].set(jnp.arange(order_A.size, dtype=jnp.int32), unique_indices=True)
    return order_A, rank_A.reshape(choice_NK.shape), jnp.sum(known_AE, axis=0, dtype=jnp.int32)


# `dispatched` and `combined` are each other's gradient; autodiff would use a slow scatter instead. Sums are float32.


class Across(NamedTuple):
    """The mesh axes over which tokens are repeated, and results summed: tensor, or none.

    rows: B, if the tokens [B, T] of a device are split by T over tensor (lm/parallel/context.py); 0 if they are whole.
    """

    axes: tuple[str, ...]
    rows: int


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def dispatched(across: Across, x_ND: jax.Array, dispatch: Dispatch) -> jax.Array:
    """Return the token of each row, [R, D]."""
    if across.rows:
        x_BTD = lax.all_gather(x_ND.reshape(across.rows, -1, x_ND.shape[1]), "tensor", axis=1, tiled=True)
        x_ND = x_BTD.reshape(-1, x_ND.shape[1])
    elif across.axes:
        x_ND = lax.pcast(x_ND, across.axes, to="varying")
    return x_ND[dispatch.source_R // dispatch.place_NK.shape[1]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def combined(across: Across, y_RD: jax.Array, dispatch: Dispatch) -> jax.Array:
    """Return the sum of each token's K rows, float32 [N, D]."""
    R, D = y_RD.shape
    parts = [
        jnp.where((place_N < R)[:, None], y_RD[jnp.minimum(place_N, R - 1)].astype(jnp.float32), 0.0)
        for place_N in dispatch.place_NK.T
    ]
    y_ND = sum(parts[1:], start=parts[0])
    if across.rows:
        return scattered_rows(y_ND.reshape(across.rows, -1, D)).reshape(-1, D)
    return lax.psum(y_ND, across.axes) if across.axes else y_ND


dispatched.defvjp(
    lambda across, x_ND, dispatch: (dispatched(across, x_ND, dispatch), (dispatch, jnp.zeros_like(x_ND, shape=()))),
    lambda across, kept, dy_RD: (combined(across, dy_RD, kept[0]).astype(kept[1].dtype), None),
)
combined.defvjp(
    lambda across, y_RD, dispatch: (combined(across, y_RD, dispatch), (dispatch, jnp.zeros_like(y_RD, shape=()))),
    lambda across, kept, dy_ND: (dispatched(across, dy_ND.astype(kept[1].dtype), kept[0]), None),
)


def weights_of_rows(weight_NK: jax.Array, dispatch: Dispatch) -> jax.Array:
    """Return the weight of each row, 0 for empty rows."""
    return jnp.where(dispatch.filled_R, weight_NK.reshape(-1)[dispatch.source_R], 0.0)


@jax.custom_vjp
def permuted(x: jax.Array, order_R: jax.Array, rank_R: jax.Array) -> jax.Array:
    """Return x[order]. rank: the inverse of `order`; the gradient is that permutation."""
    return x[order_R]


permuted.defvjp(
    lambda x, order_R, rank_R: (x[order_R], (order_R, rank_R)), lambda kept, dy: (permuted(dy, *kept[::-1]), None, None)
)


def all_to_all(x: jax.Array) -> jax.Array:
    """Send equal parts of the first axis, one to each device of the expert axis; return the parts from all, in the same order.

    It is its own inverse, and its own gradient.
    """
    return lax.all_to_all(x, "expert", 0, 0, tiled=True)
