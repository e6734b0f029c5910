"""Dispatch tokens to their experts, compute, and combine the results, on one device or across the mesh's expert axis.

Dropless (MegaBlocks, Gale et al. 2022): assignments are sorted by expert and multiplied group by group; a group may have any
size. With a capacity (GShard, Lepikhin et al. 2020) every expert has C places per device; assignments beyond them are dropped.

The devices of an expert axis hold different rows and different experts. Dropless gathers the rows of all devices, computes this
device's experts and reduce-scatters the results. With a capacity each row travels to its expert and back (all-to-all).

Axes: B batch, T time, D model, E experts (of this device), K experts per token, N tokens, F hidden units, R rows that the
experts compute, C places of an expert. An assignment is a token's k-th expert, number n·K + k.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lm.kernels.grouped_matmul import grouped_matmul
from lm.kernels.saved import saved
from lm.parallel.mesh import reshard, spec
from lm.parallel.sequence import length_axis, scattered_rows

WEIGHT_AXES = {"gate": ("expert", "embed", "mlp"), "up": ("expert", "embed", "mlp"), "down": ("expert", "mlp", "embed")}


class Dispatch(NamedTuple):
    """The map between assignments and rows.

    source_R: int32, the assignment in each row; undefined where filled_R (bool) is False.
    place_NK: int32, the row of each assignment; R if it has none.
    """

    source_R: jax.Array
    filled_R: jax.Array
    place_NK: jax.Array


def experts(x_BTD, choice_BTK, weight_BTK, weights, *, activation, dtype, capacity_factor: float = 0.0) -> jax.Array:
    """Return Σ_k weight · expert(x) over the experts `choice` of each token, [B, T, D] in `dtype`.

    Args:
      x_BTD: activations. choice_BTK: int32, distinct within a token; a number outside the experts' range is skipped.
      weight_BTK: float32.
      weights: float32 gate (if gated) and up [E, D, F], down [E, F, D]. expert(x) = down(f(gate(x)) · up(x)), f `activation`.
      dtype: of the products' operands and results; sums are float32.
      capacity_factor: if above 0, an expert takes at most ⌈factor · N · K / E⌉ of a device's N tokens, earliest first.
    """
    local = functools.partial(_local, activation=activation, dtype=jnp.dtype(dtype), capacity_factor=capacity_factor)
    axis = length_axis(x_BTD)
    rows, tokens = spec("batch", axis, None), spec("batch", "length", None)
    if tokens is None:
        return local(x_BTD, choice_BTK, weight_BTK, weights)
    arrays = [reshard(x_BTD, "batch", axis, None), *(reshard(a, "batch", "length", None) for a in (choice_BTK, weight_BTK))]
    weights = {name: reshard(w, *WEIGHT_AXES[name]) for name, w in weights.items()}
    layout = {name: spec(*WEIGHT_AXES[name]) for name in weights}
    mesh = jax.sharding.get_abstract_mesh()
    axes = frozenset(mesh.axis_names) - frozenset(mesh.manual_axes)
    local = functools.partial(local, split=axes, columns=spec("embed")[0], scatter=axis == "sequence")
    return jax.shard_map(local, in_specs=(rows, tokens, tokens, layout), out_specs=rows, axis_names=axes)(*arrays, weights)


def experts_reference(x_BTD, choice_BTK, weight_BTK, weights, *, activation) -> jax.Array:
    """Reference twin: every expert computes every token, in float32; nothing is dropped."""
    dot, y_BTD = functools.partial(jnp.dot, precision="highest"), 0.0
    for e in range(weights["up"].shape[0]):
        up, down = weights["up"][e], weights["down"][e]
        h_BTF = activation(dot(x_BTD, weights["gate"][e])) * dot(x_BTD, up) if "gate" in weights else activation(dot(x_BTD, up))
        y_BTD = y_BTD + jnp.sum(jnp.where(choice_BTK == e, weight_BTK, 0.0), -1, keepdims=True) * dot(h_BTF, down)
    return y_BTD


def _local(
    x_BTD, choice_BTK, weight_BTK, weights, *, activation, dtype, capacity_factor, split=frozenset(), columns=None,
    scatter=False,
):  # fmt: skip
    """Compute `experts` on one device.

    split: the mesh axes of the shard_map that this is called in, if there is one. columns: those that split the model
    dimension of weights. scatter: whether T of x and of the result is split over tensor, unlike that of the other arrays.
    """
    x_ND, choice_NK, weight_NK = (a.reshape(-1, a.shape[-1]) for a in (x_BTD, choice_BTK, weight_BTK))
    if split:  # makes a weight's gradient a sum over the axes of rows that do not split it
        repeated = tuple(axis for axis in ("stage", "data") if axis in split)
        weights = {name: lax.pcast(w, repeated, to="varying") for name, w in weights.items()}
    ways, K = lax.axis_size("expert") if split else 1, choice_NK.shape[1]
    rows = len(x_BTD) if scatter else 0
    E = weights["up"].shape[0]

    def product(x, name, sizes_E=None):
        over = (columns, WEIGHT_AXES[name].index("embed")) if split else None
        return grouped_matmul(x, weights[name], sizes_E, dtype=dtype, over=over)

    def through(x, weight, sizes_E=None):
        up = saved(product(x, "up", sizes_E), wide=True)
        if "gate" in weights:
            h = activation(saved(product(x, "gate", sizes_E), wide=True)) * up
        else:
            h = activation(up)
        # Multiply by the weight before `down`: the result is the same, and the gradient does not need the output of `down`.
        return product((h * weight[..., None]).astype(dtype), "down", sizes_E)

    if capacity_factor > 0:
        C = min(len(choice_NK), math.ceil(capacity_factor * len(choice_NK) * K / (E * ways)))
        dispatch = with_capacity(choice_NK, E * ways, C)
        across = Across(("tensor",) if split else (), rows)
        x_ECD = spread(across, x_ND.astype(dtype), dispatch).reshape(E * ways, C, -1)
        weight_EC = _of_rows(weight_NK, dispatch).reshape(E * ways, C)
        if split:
            x_ECD, weight_EC = (lax.all_to_all(a, "expert", 0, 1, tiled=True) for a in (x_ECD, weight_EC))
        y_ECD = through(x_ECD, weight_EC)
        if split:
            y_ECD = lax.all_to_all(y_ECD, "expert", 1, 0, tiled=True)
        y_ND = collect(across, y_ECD.reshape(E * ways * C, -1), dispatch)
    else:
        across = Across(("expert", "tensor") if split else (), rows)
        if split:
            choice_NK, weight_NK = (lax.all_gather(a, "expert", tiled=True) for a in (choice_NK, weight_NK))
            choice_NK = choice_NK - E * lax.axis_index("expert")
        dispatch, sizes_E = dropless(choice_NK, E)
        y_RD = through(spread(across, x_ND.astype(dtype), dispatch), _of_rows(weight_NK, dispatch), sizes_E)
        y_ND = collect(across, y_RD, dispatch)
    return y_ND.astype(dtype).reshape(x_BTD.shape)


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


def _sorted(choice_NK, E):
    """Return (assignments sorted by expert, rank of each assignment, count per expert). Out-of-range experts sort last."""
    choice_A = choice_NK.reshape(-1)
    known_AE = choice_A[:, None] == jnp.arange(E)
    order_A = jnp.argsort(jnp.where(jnp.any(known_AE, axis=-1), choice_A, E), stable=True).astype(jnp.int32)
    order_A = saved(order_A)  # smaller than any product, and slow to make
    rank_A = jnp.zeros_like(order_A).at[order_A].set(jnp.arange(order_A.size, dtype=jnp.int32), unique_indices=True)
    return order_A, rank_A.reshape(choice_NK.shape), jnp.sum(known_AE, axis=0, dtype=jnp.int32)


# `spread` and `collect` are each other's gradient; autodiff would use a slow scatter instead. Sums are float32.


class Across(NamedTuple):
    """The mesh axes over which tokens are gathered (expert) or repeated (tensor), and results summed.

    rows: B, if the tokens [B, T] of a device are split by T over tensor; 0 if they are whole.
    """

    axes: tuple[str, ...]
    rows: int


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def spread(across: Across, x_ND: jax.Array, dispatch: Dispatch) -> jax.Array:
    """Return the token of each row, [R, D]."""
    axes, B = across
    if B:
        x_BTD = lax.all_gather(x_ND.reshape(B, -1, x_ND.shape[1]), "tensor", axis=1, tiled=True)
        x_ND = x_BTD.reshape(-1, x_ND.shape[1])
    if "expert" in axes:
        x_ND = lax.all_gather(x_ND, "expert", tiled=True)
    if "tensor" in axes and not B:
        x_ND = lax.pcast(x_ND, "tensor", to="varying")
    return x_ND[dispatch.source_R // dispatch.place_NK.shape[1]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def collect(across: Across, y_RD: jax.Array, dispatch: Dispatch) -> jax.Array:
    """Return the sum of each token's K rows, float32 [N, D]."""
    (axes, B), (R, D), y_ND = across, y_RD.shape, 0.0
    for place_N in dispatch.place_NK.T:
        y_ND = y_ND + jnp.where((place_N < R)[:, None], y_RD[jnp.minimum(place_N, R - 1)].astype(jnp.float32), 0.0)
    if "expert" in axes:
        y_ND = lax.psum_scatter(y_ND, "expert", scatter_dimension=0, tiled=True)
    if B:
        return scattered_rows(y_ND.reshape(B, -1, D)).reshape(-1, D)
    return lax.psum(y_ND, "tensor") if "tensor" in axes else y_ND


spread.defvjp(
    lambda across, x_ND, dispatch: (spread(across, x_ND, dispatch), (dispatch, jnp.zeros_like(x_ND, shape=()))),
    lambda across, kept, dy_RD: (collect(across, dy_RD, kept[0]).astype(kept[1].dtype), None),
)
collect.defvjp(
    lambda across, y_RD, dispatch: (collect(across, y_RD, dispatch), (dispatch, jnp.zeros_like(y_RD, shape=()))),
    lambda across, kept, dy_ND: (spread(across, dy_ND.astype(kept[1].dtype), kept[0]), None),
)


def _of_rows(weight_NK, dispatch):
    """Return the weight of each row, 0 for empty rows."""
    return jnp.where(dispatch.filled_R, weight_NK.reshape(-1)[dispatch.source_R], 0.0)
