"""The plain twin of each operation of lm/kernels/ops.py: the mathematics in a few lines, with autodiff.

Nothing is split into blocks, so memory grows with the whole score matrix or all logits; what is split over a mesh is gathered
where the sum needs it. `--kernels=reference` runs a whole model on these. Axes as in lm/kernels/ops.py.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from lm.kernels import ops
from lm.kernels.attention import MASKED, Scoring, Visible, by_group, by_head, by_token
from lm.kernels.cpu.packed import Packed, unpack
from lm.kernels.cpu.packed import embedding as packed_embedding
from lm.kernels.cpu.packed import matmul as packed_matmul
from lm.kernels.cpu.pages import Pages, Places
from lm.kernels.head import CrossEntropy, softcapped
from lm.kernels.matmul import product as product  # an einsum is plain already
from lm.kernels.quantize import Integers, dequantize, dequantize_rows, quantize_rows
from lm.kernels.recurrence import Flow, without_padding
from lm.parallel.arrays import AnyArray
from lm.parallel.mesh import reshard, spec, spec_of


def silu_gated(gate: jax.Array, up: jax.Array) -> jax.Array:
    # Float32 inside: a CPU would round every operation of the activation to bfloat16.
    return (up.astype(jnp.float32) * jax.nn.silu(gate.astype(jnp.float32))).astype(up.dtype)


def matmul(
    equation: str,
    x: jax.Array,
    w: jax.Array | Packed | Integers,
    *,
    dtype: DTypeLike,
    out: tuple[str | None, ...],
    precision: str = "none",
) -> jax.Array:
    """The einsum with the whole weight on every device, and autodiff."""
    if isinstance(w, Packed):
        return packed_matmul(equation, x, w, dtype=dtype)
    if isinstance(w, Integers):
        x_axes, w_axes = equation.split("->")[0].split(",")
        last_input = sum(axis in x_axes for axis in w_axes) - 1
        w = dequantize(w.integers, w.scale, last_input, dtype)
    w = w.astype(dtype) if spec() is None else jax.sharding.reshard(w.astype(dtype), jax.sharding.PartitionSpec())
    x = x if spec() is None else reshard(x, "batch", *[None] * (x.ndim - 1))
    y = product(equation, x, w, spec("batch", *[None] * (len(out) - 1)), dtype=dtype, result=dtype)
    return y if spec() is None else reshard(y, *out)


def packed_product(x_MK: jax.Array, packed: Packed, dtype: DTypeLike = jnp.float32) -> jax.Array:
    """The product with the unpacked weight. Its bits may depend on M."""
    return product("mk,kn->mn", x_MK.astype(jnp.float32), unpack(packed)).astype(dtype)


def embedding(table_VD: jax.Array | Packed, tokens_BT: jax.Array, dtype: DTypeLike, axis: str = "length") -> jax.Array:
    """A gather from the whole table."""
    if isinstance(table_VD, Packed):
        return packed_embedding(table_VD, tokens_BT, dtype)
    if spec() is None:
        return table_VD[tokens_BT].astype(dtype)
    return reshard(table_VD, None, None).at[tokens_BT].get(out_sharding=spec("batch", axis, None)).astype(dtype)


def row_logprobs(logits_SV: jax.Array, token_S: jax.Array, divisor_S: jax.Array) -> tuple[jax.Array, jax.Array]:
    """By logsumexp."""
    scaled_SV = logits_SV / divisor_S[:, None]
    logz_S = jax.nn.logsumexp(scaled_SV, axis=-1)
    return jnp.take_along_axis(scaled_SV, token_S[:, None], axis=1)[:, 0] - logz_S, logz_S


def row_sums(x: jax.Array) -> jax.Array:
    """A sum, whose bits may depend on the number of rows."""
    return jnp.sum(x.astype(jnp.float32), axis=-1, keepdims=True)


def rms_norm(x: jax.Array, scale: jax.Array, eps: float, alone: bool = False) -> jax.Array:
    """The formula; its bits may depend on the number of rows."""
    x32 = x.astype(jnp.float32)
    mean = jnp.mean(x32 * x32, axis=tuple(range(-scale.ndim, 0)), keepdims=True)
    return (x32 * jax.lax.rsqrt(mean + eps) * scale.astype(jnp.float32)).astype(x.dtype)


def masked_attention(
    q_BTHK: jax.Array,
    k_BSGK: jax.Array,
    v_BSGV: jax.Array,
    mask_BTS: AnyArray,
    scoring: Scoring,
    sinks_H: jax.Array | None = None,
) -> jax.Array:
    """Return softmax(scale·q·kᵀ)·v where the mask [B, T, S] is True, [B, T, H, V] in q's dtype."""
    G = k_BSGK.shape[2]
    scores = softcapped(scoring.scale * ops.product("bgrtk,bsgk->bgrts", by_head(q_BTHK, G), k_BSGK), scoring.softcap)
    scores = jnp.where(mask_BTS[:, None, None], scores, MASKED)
    logz = jax.nn.logsumexp(scores, axis=-1, keepdims=True)
    if sinks_H is not None:
        logz = jnp.logaddexp(logz, by_group(sinks_H, G))
    weights = jnp.exp(scores - logz).astype(q_BTHK.dtype)
    return by_token(ops.product("bgrts,bsgv->bgrtv", weights, v_BSGV).astype(q_BTHK.dtype))


def attention(
    q_BTHK: jax.Array,
    k_BSGK: jax.Array,
    v_BSGV: jax.Array,
    visible: Visible,
    scoring: Scoring,
    sinks_H: jax.Array | None = None,
) -> jax.Array:
    """The whole score matrix, with all keys on every device of a context axis."""
    if visible.branches is None:  # sequences that are split over devices are not in order
        k_BSGK, v_BSGV = (reshard(x, "batch", None, "kv_heads", None) for x in (k_BSGK, v_BSGV))
        key_segments_BS, distance = reshard(visible.key_segments_BS, "batch", None), visible.slots_T[:, None] - visible.slots_T
        mask_BTS = (distance >= 0) & (visible.segments_BT[:, :, None] == key_segments_BS[:, None])
        mask_BTS = mask_BTS & (distance < scoring.window) if scoring.window else mask_BTS
        mask_BTS = mask_BTS if visible.chosen_BTS is None else mask_BTS & visible.chosen_BTS
    else:
        mask_BTS = visible.mask(scoring.window)
    sinks_H = None if sinks_H is None else reshard(sinks_H, "heads")
    return masked_attention(q_BTHK, k_BSGK, v_BSGV, mask_BTS, scoring, sinks_H)


def cached_attention(
    q_BTHK: jax.Array,
    parts: Sequence[tuple[jax.Array, jax.Array]],
    visible: Visible,
    scoring: Scoring,
    sinks_H: jax.Array | None = None,
) -> jax.Array:
    """The whole score matrix, with shared parts of the cache repeated for each row."""
    B, dtype = q_BTHK.shape[0], parts[0][0].dtype

    def of_all_rows(x: jax.Array) -> jax.Array:
        rows = np.repeat(np.arange(x.shape[0]), B // x.shape[0])
        return x if x.shape[0] == B else x.at[rows].get(out_sharding=spec_of(x))

    whole = (jnp.concatenate([of_all_rows(part[i]) for part in parts], axis=2) for i in (0, 1))
    k_BSGK, v_BSGV = (jnp.swapaxes(x, 1, 2) for x in whole)
    sinks_H = None if sinks_H is None else reshard(sinks_H, "heads")
    mask_BTS = visible.mask(scoring.window)
    return masked_attention(q_BTHK.astype(dtype), k_BSGK, v_BSGV, mask_BTS, scoring, sinks_H).astype(q_BTHK.dtype)


def bidirectional_attention(q_RTHK: jax.Array, k_RTHK: jax.Array, v_RTHK: jax.Array, scale: float) -> jax.Array:
    """The whole score matrix without a mask."""
    p = jax.nn.softmax(scale * ops.product("rthk,rshk->rhts", q_RTHK, k_RTHK), axis=-1)
    return ops.product("rhts,rshk->rthk", p.astype(q_RTHK.dtype), v_RTHK).astype(q_RTHK.dtype)


def write_pages(pages: Pages, new_TGK: jax.Array, slots_T: AnyArray) -> Pages:
    """A scatter."""

    def written(pool: jax.Array, new: jax.Array) -> jax.Array:
        flat = pool.reshape(-1, *pool.shape[2:])
        places = jnp.where(slots_T < 0, flat.shape[0], slots_T)
        return flat.at[places].set(new, mode="drop", unique_indices=True).reshape(pool.shape)

    if pages.scales is None:
        return Pages(written(pages.values, new_TGK.astype(pages.values.dtype)))
    values, scales = quantize_rows(new_TGK)
    return Pages(written(pages.values, values), written(pages.scales, scales[..., 0]))


def paged_attention(
    q_THK: jax.Array,
    k: Pages,
    v: Pages | None,
    places: Places,
    scoring: Scoring,
    sinks_H: jax.Array | None = None,
    value_size: int = 0,
) -> jax.Array:
    """Gathers all pages of each token's sequence, for a few tokens at a time."""
    G = k.values.shape[2]

    def floats(pages: Pages, table: jax.Array) -> jax.Array:
        values, scales = pages.values[table], None if pages.scales is None else pages.scales[table]
        x = values.astype(jnp.float32) if scales is None else dequantize_rows(values, scales[..., None])
        return x.reshape(-1, *x.shape[2:])

    def one(token: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        q_HK, row, place = token
        table = jnp.clip(jnp.asarray(places.tables_RP)[row], 0, k.values.shape[0] - 1)
        k_SGK = floats(k, table)
        v_SGV = k_SGK[..., :value_size] if v is None else floats(v, table)
        places_S = jnp.arange(k_SGK.shape[0])
        begin = place // scoring.window * scoring.window if scoring.chunked else place - scoring.window + 1
        seen_S = (places_S <= place) & (places_S >= begin if scoring.window else True)
        q_GRK = q_HK.astype(jnp.float32).reshape(G, -1, q_HK.shape[-1])
        scores = softcapped(scoring.scale * jnp.einsum("grk,sgk->grs", q_GRK, k_SGK), scoring.softcap)
        scores = jnp.where(seen_S, scores, MASKED)
        logz = jax.nn.logsumexp(scores, axis=-1, keepdims=True)
        if sinks_H is not None:
            logz = jnp.logaddexp(logz, sinks_H.astype(jnp.float32).reshape(G, -1, 1))
        mixed = jnp.einsum("grs,sgv->grv", jnp.exp(scores - logz), jnp.where(seen_S[:, None, None], v_SGV, 0))
        return jnp.where(row < 0, 0, mixed.reshape(-1, mixed.shape[-1]))

    return lax.map(one, (q_THK, places.rows_T, places.places_T), batch_size=16)


def combined_attention(q_THK: jax.Array, pages: Pages, places: Places, scoring: Scoring) -> jax.Array:
    """Takes the pool apart."""
    k, v = (Pages(pages.values[:, :, n::2]) for n in (0, 1))
    return paged_attention(q_THK, k, v, places, scoring)


def short_convolution(
    x_BTC: jax.Array, taps_CW: jax.Array, bias_C: jax.Array | None, tail_BCW: jax.Array | None, flow: Flow, silu: bool = False
) -> tuple[jax.Array, jax.Array | None]:
    """One shift of the row after the other. Of S = W − 1 + T inputs the first are the tail."""
    (B, T, C), W = x_BTC.shape, taps_CW.shape[1]
    before_BWC = jnp.zeros((B, W - 1, C), jnp.float32) if tail_BCW is None else jnp.swapaxes(tail_BCW, 1, 2)
    x_BSC = jnp.concatenate((before_BWC, x_BTC.astype(jnp.float32)), axis=1)
    number_BS = jnp.pad(jnp.cumsum(flow.fresh_BT.astype(jnp.int32), axis=1), ((0, 0), (W - 1, 0)))  # of the sequence
    y_BTC = x_BSC[:, W - 1 :] * taps_CW[:, -1]
    for j in range(1, W):
        at = slice(W - 1 - j, W - 1 - j + T)
        same_BT1 = (number_BS[:, at] == number_BS[:, W - 1 :])[..., None]
        y_BTC += jnp.where(same_BT1, x_BSC[:, at], 0.0) * taps_CW[:, W - 1 - j]
    y_BTC = y_BTC if bias_C is None else y_BTC + bias_C
    y_BTC = (jax.nn.silu(y_BTC) if silu else y_BTC).astype(x_BTC.dtype)
    if tail_BCW is None:
        return y_BTC, None
    # After the last token that is valid; padding stands before the first one or after the last one.
    end_B1 = jnp.max(jnp.where(flow.valid_BT, jnp.arange(1, T + 1), 0), axis=1, keepdims=True)
    last_BW = end_B1 + jnp.arange(W - 1)
    same_BW = jnp.take_along_axis(number_BS, last_BW, axis=1) == jnp.take_along_axis(number_BS, end_B1 + W - 2, axis=1)
    next_BWC = jnp.where(same_BW[..., None], jnp.take_along_axis(x_BSC, last_BW[..., None], axis=1), 0.0)
    return y_BTC, jnp.swapaxes(next_BWC, 1, 2)


def recurrence(
    q_BTGK: jax.Array,
    k_BTGK: jax.Array,
    v_BTGRV: jax.Array,
    decay_BTGR: jax.Array,
    beta_BTGR: jax.Array | None,
    state_BGRKV: jax.Array | None,
    flow: Flow,
    chunk: int = 64,
) -> tuple[jax.Array, jax.Array | None]:
    """One token after the other. Sums, not products: a token has the same bits alone and in any batch."""
    B, _, G, R, V = v_BTGRV.shape
    begin = jnp.zeros((B, G, R, k_BTGK.shape[-1], V), jnp.float32) if state_BGRKV is None else state_BGRKV
    k_BTGK, decay_BTGR = without_padding(k_BTGK, decay_BTGR, flow)
    q_BTGK, k_BTGK, v32_BTGRV = (x.astype(jnp.float32) for x in (q_BTGK, k_BTGK, v_BTGRV))
    has_beta, beta_BTGR = beta_BTGR is not None, jnp.ones_like(decay_BTGR) if beta_BTGR is None else beta_BTGR

    def one(S: jax.Array, token: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        q_BGK, k_BGK, v_BGRV, decay_BGR, beta_BGR, fresh_B = token
        k = k_BGK[:, :, None, :, None]
        S = jnp.where(fresh_B[:, None, None, None, None], 0.0, S) * jnp.exp(decay_BGR)[..., None, None]
        known_BGRV = jnp.sum(S * k, axis=3) if has_beta else 0.0
        S = S + k * ((v_BGRV - known_BGRV) * beta_BGR[..., None])[:, :, :, None]
        return S, jnp.sum(S * q_BGK[:, :, None, :, None], axis=3)

    tokens = (q_BTGK, k_BTGK, v32_BTGRV, decay_BTGR, beta_BTGR, flow.fresh_BT)
    S, y = lax.scan(one, begin, jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), tokens))
    return jnp.moveaxis(y, 0, 1).astype(v_BTGRV.dtype), None if state_BGRKV is None else S


def cross_entropy(
    x_BTD: jax.Array,
    head_VD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    objective: CrossEntropy,
    *,
    dtype: DTypeLike = jnp.float32,
) -> tuple[jax.Array, ...]:
    """Whole logits, float32."""
    if spec() is not None:
        x_BTD, head_VD = reshard(x_BTD, "batch", "length", None), reshard(head_VD, None, None)
    logits_BTV = softcapped(ops.product("btd,vd->btv", x_BTD, head_VD, dtype=dtype), objective.softcap)
    logp_BTV = jax.nn.log_softmax(logits_BTV)
    logz_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    is_target = jnp.arange(head_VD.shape[0]) == targets_BT[..., None]
    nll_BT = -jnp.sum(jnp.where(is_target, logp_BTV, 0.0), axis=-1)
    scale_BT = lax.stop_gradient(jnp.exp(-nll_BT)) if objective.dft else 1.0
    sums: tuple[jax.Array, ...] = (
        jnp.sum(weights_BT * (scale_BT * nll_BT + objective.z_loss * logz_BT**2)),
        jnp.sum(weights_BT * nll_BT),
    )
    if objective.measured:
        entropy_BT = -jnp.sum(jnp.exp(logp_BTV) * logp_BTV, axis=-1)
        sums += (jnp.sum(weights_BT * entropy_BT), jnp.sum(weights_BT * (jnp.argmax(logits_BTV, axis=-1) == targets_BT)))
    return sums[0], *lax.stop_gradient(sums[1:])


def experts(
    x_BTD: jax.Array,
    choice_BTK: jax.Array,
    weight_BTK: jax.Array,
    weights: dict[str, jax.Array],
    *,
    activation: Callable[[jax.Array], jax.Array],
    dtype: DTypeLike = jnp.float32,
    capacity_factor: float = 0.0,
    limit: float = 0.0,
    weigh_inputs: bool = False,
) -> jax.Array:
    """Every expert computes every token, in float32; nothing is dropped, whatever the capacity."""
    if spec() is not None:
        x_BTD, choice_BTK, weight_BTK = (reshard(x, "batch", "length", None) for x in (x_BTD, choice_BTK, weight_BTK))
        weights = {name: reshard(w, *[None] * w.ndim) for name, w in weights.items()}
    dot, parts = functools.partial(jnp.dot, precision="highest"), []
    for e in range(weights["up"].shape[0]):
        of_e = {name: w[e] for name, w in weights.items()}
        weight_BT1 = jnp.sum(jnp.where(choice_BTK == e, weight_BTK, 0.0), -1, keepdims=True)
        read_BTD = x_BTD * weight_BT1 if weigh_inputs else x_BTD
        by_name = {n: dot(read_BTD, of_e[n]) + of_e.get(f"{n}_bias", 0) for n in ("gate", "up") if n in of_e}
        up = jnp.clip(by_name["up"], -limit, limit) + 1 if limit else by_name["up"]
        h_BTF = activation(by_name["gate"]) * up if "gate" in by_name else activation(up)
        parts.append(dot(h_BTF, of_e["down"]) * (1.0 if weigh_inputs else weight_BT1))
    return sum(parts[1:], start=parts[0]).astype(dtype)
