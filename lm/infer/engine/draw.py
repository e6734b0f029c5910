"""Draw the next token of each row of logits, each with its own settings, in a compiled program.

Axes: S rows, V vocabulary, K reported alternatives.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from lm.kernels.ops import row_logprobs
from lm.parallel.arrays import AnyArray, PyTree
from lm.parallel.mesh import reshard, spec

CANDIDATES = 128  # likeliest tokens of a row, which nearly always hold the last one that stays
GREEDY, PLAIN, TRUNCATED = range(3)


class Settings(NamedTuple):
    """Settings of each row; see lm.infer.engine.request.Request.

    n: number of tokens that its request has sampled before. divisor: of the logits that log-probabilities are reported of.
    """

    temperature_S: np.ndarray  # float32
    top_p_S: np.ndarray  # float32
    top_k_S: np.ndarray  # int32
    min_p_S: np.ndarray  # float32
    seed_S: np.ndarray  # uint32
    n_S: np.ndarray  # int32
    divisor_S: np.ndarray  # float32


class Adjust(NamedTuple):
    """Changes of the logits of each row.

    bias: added last, −inf for what is not allowed. seen: the tokens that the penalty `repeat` concerns.
    """

    bias_SV: np.ndarray  # float32
    seen_SV: np.ndarray  # bool
    repeat_S: np.ndarray  # float32


class Drawn(NamedTuple):
    """token_S: int32. logp_S: float32, of the token by the logits / divisor; 0 if nobody asked. top: (log-probabilities, ids)
    [S, K], or None.

    lost_S: bool, these logits were not finite, so the token is invalid.
    """

    token_S: AnyArray
    logp_S: AnyArray
    lost_S: AnyArray
    top: tuple[AnyArray, AnyArray] | None


@functools.partial(jax.jit, static_argnums=1)
def draw(
    how: np.int32,
    top: int,
    logits_SV: jax.Array,
    size: np.int32,
    settings: Settings,
    adjust: Adjust | None,
    forced_S: np.ndarray,
) -> Drawn:
    """Return the next token of each row, on all devices. On a mesh each device draws for its own rows.

    how: GREEDY if all rows are; PLAIN if none limits the tokens by top_k, top_p or min_p; else TRUNCATED. One program serves
    all three, because each takes megabytes. top: K; −1: no log-probability at all.
    size: only ids below it are drawn. forced_S: int32, tokens whose log-probability is wanted in place of a drawn one, or −1.
    """
    rows = by_rows((logits_SV, settings, adjust, forced_S))
    if (where := spec("batch")) is None:
        return _drawn(top, how, size, *rows)
    specs = (PartitionSpec(), PartitionSpec(), *[where] * len(rows))
    found = jax.shard_map(functools.partial(_drawn, top), in_specs=specs, out_specs=where, check_vma=False)(how, size, *rows)
    return jax.tree.map(lambda x: reshard(x, *[None] * x.ndim), found)


def by_rows(arrays: PyTree) -> PyTree:
    """Return arrays [rows, …] that are split by rows over the current mesh; without a mesh as they are."""
    return jax.tree.map(lambda x: reshard(jnp.asarray(x), "batch", *[None] * (x.ndim - 1)), arrays)


def _drawn(
    top: int,
    how: jax.Array | np.int32,
    size: jax.Array | np.int32,
    logits_SV: jax.Array,
    settings: Settings,
    adjust: Adjust | None,
    forced_S: jax.Array,
) -> Drawn:
    """Compute `draw` for the rows of one device."""
    S, V = logits_SV.shape

    def next_token(how: int) -> jax.Array:
        changed_SV = logits_SV if adjust is None else adjusted(logits_SV, adjust)
        changed_SV = jnp.where(jnp.arange(V) < size, changed_SV, -jnp.inf)
        token_S = first_of_most(changed_SV)
        if how == GREEDY:
            return token_S
        return jnp.where(settings.temperature_S > 0, _sampled(changed_SV, settings, how == TRUNCATED), token_S)

    token_S = lax.switch(how, [functools.partial(next_token, kind) for kind in (GREEDY, PLAIN, TRUNCATED)])
    token_S = jnp.where(forced_S >= 0, forced_S, token_S).astype(jnp.int32)
    if top < 0:
        largest_S = jnp.max(logits_SV, axis=-1) / jnp.where(settings.temperature_S > 0, settings.temperature_S, 1.0)
        return Drawn(token_S, jnp.zeros(S), ~jnp.isfinite(largest_S), None)
    logp_S, logz_S = row_logprobs(logits_SV, token_S, settings.divisor_S)
    found = None
    if top:
        values, ids = lax.top_k(logits_SV, top)
        found = values / settings.divisor_S[:, None] - logz_S[:, None], ids
    return Drawn(token_S, logp_S, ~jnp.isfinite(logz_S), found)


def adjusted(logits_SV: jax.Array, adjust: Adjust) -> jax.Array:
    """Return the logits after the repetition penalty and the bias.

    The penalty is that of CTRL (Keskar et al. 2019, §4.1), in its later form that also lowers negative logits.
    """
    repeat_S1 = adjust.repeat_S[:, None]
    penalised_SV = jnp.where(logits_SV > 0, logits_SV / repeat_S1, logits_SV * repeat_S1)
    return jnp.where(adjust.seen_SV, penalised_SV, logits_SV) + adjust.bias_SV


def first_of_most(x: jax.Array) -> jax.Array:
    """Return the argmax of the last axis, int32; the first of equal values.

    It takes two plain reductions, because one over (value, index) pairs is much slower on a CPU.
    """
    ids = lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
    return jnp.min(jnp.where(x == jnp.max(x, axis=-1, keepdims=True), ids, x.shape[-1] - 1), axis=-1)


def _sampled(logits_SV: jax.Array, settings: Settings, truncated: bool) -> jax.Array:
    """Return one sample of each row by inversion of its distribution function, from one uniform number a row."""
    scaled_SV = logits_SV / jnp.where(settings.temperature_S > 0, settings.temperature_S, 1.0)[:, None]
    p_SV = jnp.exp(scaled_SV - jnp.max(scaled_SV, axis=-1, keepdims=True))
    if truncated:
        p_SV = jnp.where(kept(scaled_SV, p_SV, settings), p_SV, 0.0)
    uniform_S = jax.vmap(lambda seed, n: jax.random.uniform(jax.random.fold_in(jax.random.key(seed), n)))(
        settings.seed_S, settings.n_S
    )
    return inverse(p_SV, uniform_S)


def kept(scaled_SV: jax.Array, p_SV: jax.Array, settings: Settings) -> jax.Array:
    """Return bool [S, V]: the tokens that remain after top-k, nucleus sampling (Holtzman et al. 2020) and min-p (Nguyen 2024).

    p_SV: exp(scaled − its maximum). The nucleus is the smallest set of tokens whose share of what top-k left reaches top_p.
    Tokens with equal logits stay or go together. A row whose last token to stay is among its likeliest CANDIDATES is done with
    these; only if there is another row, its last token is searched among all.
    """
    top = lax.top_k(scaled_SV, min(CANDIDATES, scaled_SV.shape[1]))
    # Without the barrier XLA would drop the ids, and then sort the whole vocabulary on a CPU. On a mesh it would fail with it.
    few, _ = lax.optimization_barrier(top) if spec() is None else top
    least_S, found_S = least_of_few(few, jnp.sum(p_SV, axis=-1), settings)
    least_S = lax.cond(
        found_S.all(), lambda: least_S, lambda: jnp.where(found_S, least_S, least_of_all(scaled_SV, p_SV, settings))
    )
    return (scaled_SV >= least_S[:, None]) & (p_SV >= settings.min_p_S[:, None])


def least_of_few(few_SC: jax.Array, total_S: jax.Array, settings: Settings) -> tuple[jax.Array, jax.Array]:
    """Return (the smallest logit that top-k and top-p leave, whether it is among few_SC). few_SC: the largest, sorted."""
    C = few_SC.shape[1]
    p_SC = jnp.exp(few_SC - few_SC[:, :1])
    sums_SC = jnp.cumsum(p_SC, axis=-1)
    kth_S1 = jnp.take_along_axis(few_SC, jnp.clip(settings.top_k_S, 1, C)[:, None] - 1, axis=1)
    # Tokens as likely as the k-th stay with it; there may be more of them if the last of the few is one.
    has_k_S = (settings.top_k_S > 0) & (settings.top_k_S <= C) & (few_SC[:, -1] < kth_S1[:, 0])
    by_k_S = jnp.where(has_k_S, kth_S1[:, 0], -jnp.inf)
    left_S = jnp.where(has_k_S, jnp.sum(jnp.where(few_SC >= kth_S1, p_SC, 0.0), axis=-1), total_S)
    # Before the last token that stays, the sum does not reach top_p.
    before_SC = sums_SC < (settings.top_p_S * left_S)[:, None]
    reached_S = (settings.top_p_S < 1) & ~before_SC[:, -1]
    last_S1 = jnp.minimum(jnp.sum(before_SC, axis=-1), C - 1)[:, None]
    by_p_S = jnp.where(reached_S, jnp.take_along_axis(few_SC, last_S1, axis=1)[:, 0], -jnp.inf)
    found_S = (has_k_S | (settings.top_k_S == 0)) & (reached_S | (settings.top_p_S >= 1))
    unlikely_S = p_SC[:, -1] < settings.min_p_S  # min-p removes whatever is not among the few
    # Without top_k, what is left out by min-p counts for top_p, so all tokens are needed unless the few reach it.
    return jnp.maximum(by_k_S, by_p_S), found_S | (unlikely_S & (settings.top_p_S >= 1) & (settings.top_k_S > C))


def least_of_all(scaled_SV: jax.Array, p_SV: jax.Array, settings: Settings) -> jax.Array:
    """Return the smallest logit that top-k and top-p leave, found bit by bit: nothing is sorted."""
    order_SV, (S, V) = ordered(scaled_SV), scaled_SV.shape
    k_S = jnp.where(settings.top_k_S > 0, jnp.minimum(settings.top_k_S, V), V)
    least_S = _largest(lambda at_S: jnp.sum(order_SV >= at_S[:, None], axis=-1) >= k_S, S)
    left_SV = jnp.where(order_SV >= least_S[:, None], p_SV, 0.0)
    enough_S = settings.top_p_S * jnp.sum(left_SV, axis=-1)

    def reaches(at_S: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(order_SV >= at_S[:, None], left_SV, 0.0), axis=-1) >= enough_S

    least_S = jnp.maximum(least_S, jnp.where(settings.top_p_S < 1, _largest(reaches, S), 0))
    return jnp.min(jnp.where(order_SV >= least_S[:, None], scaled_SV, jnp.inf), axis=-1)


def ordered(x: jax.Array) -> jax.Array:
    """Return uint32 that compare as the float32 do."""
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def _largest(holds: Callable[[jax.Array], jax.Array], rows: int) -> jax.Array:
    """Return for each row the largest uint32 for which `holds` is true; it is true up to that number, and at 0."""

    def add_bit(n: jax.Array, found_S: jax.Array) -> jax.Array:
        with_bit_S = found_S | (jnp.uint32(1 << 31) >> n.astype(jnp.uint32))
        return jnp.where(holds(with_bit_S), with_bit_S, found_S)

    return lax.fori_loop(0, 32, add_bit, jnp.zeros(rows, jnp.uint32))


def inverse(p_SV: jax.Array, uniform_S: jax.Array) -> jax.Array:
    """Return the first index of each row whose cumulative sum exceeds uniform · total; p ≥ 0 need not sum to 1.

    The sums are taken over √V groups first, and then within one group.
    """
    S, V = p_SV.shape
    width = int(np.ceil(np.sqrt(V)))
    p = jnp.pad(p_SV, ((0, 0), (0, width * width - V))).reshape(S, width, width)
    sums = jnp.cumsum(jnp.sum(p, axis=-1), axis=-1)
    wanted_S = uniform_S * sums[:, -1]
    group_S = jnp.minimum(jnp.sum(sums <= wanted_S[:, None], axis=-1), width - 1)
    rows = jnp.arange(S)
    before_S = jnp.where(group_S > 0, sums[rows, group_S - 1], 0.0)
    within = before_S[:, None] + jnp.cumsum(p[rows, group_S], axis=-1)
    # Rounding may leave no sum above; then the last token with a probability is taken.
    inside_S = jnp.sum(within <= wanted_S[:, None], axis=-1)
    last_S = width - 1 - jnp.argmax(p[rows, group_S, ::-1] > 0, axis=-1)
    return group_S * width + jnp.minimum(inside_S, last_S)
