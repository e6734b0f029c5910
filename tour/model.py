"""The decoder: it maps tokens to the logits of the next token (Vaswani et al. 2017; Llama 3; Qwen3).

A model is a Config, nested dicts of arrays (the weights) and pure functions of both. The name of an array ends in its
axes: B batch, T time, S keys, D model, H query heads, G key/value heads, R = H/G query heads that share one, K head
size, F hidden units of the feed-forward, E experts, V vocabulary, L layers, N slots of the cache.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import NamedSharding

from tour.mesh import make_mesh, spec

Params = dict[str, Any]
Batch = dict[str, Any]  # arrays [B, T]; the model reads tokens, segment_ids (0: padding) and positions


@dataclasses.dataclass(frozen=True)
class Config:
    """The sizes of a model."""

    vocab_size: int = 2048
    num_layers: int = 4
    embed_dim: int = 256
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64
    mlp_dim: int = 768
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    qk_norm: bool = True  # a norm of each head's query and key (Qwen3)
    tie_embeddings: bool = False  # the head uses the embedding's weights
    num_experts: int = 0  # 0: a dense feed-forward
    top_k: int = 2  # experts of a token
    balance_loss: float = 0.01  # weight of the loss that keeps the loads of experts even
    dtype: str = "float32"  # of matrix products; bfloat16 on TPUs and GPUs


TINY = Config(vocab_size=256, num_layers=2, embed_dim=64, head_dim=16, mlp_dim=128)  # for examples


class Weight(NamedTuple):
    """A weight, declared once: sharding, initial values and learning follow from it."""

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    std: float | None = None  # of its normal initial values; None: ones, a norm
    inputs: int = 0  # of a matrix of a layer: how many axes behind "layers" and "experts" are inputs, for Muon
    rate: float = 1.0  # its learning rate, relative to others


def declare(c: Config) -> Params:
    """Return all weights of a model. At first a layer changes nothing: its last products have weights of 0."""
    L, E, D, H, G, K, F = c.num_layers, c.num_experts, c.embed_dim, c.num_heads, c.num_kv_heads, c.head_dim, c.mlp_dim
    norm, head_norm = Weight((L, D), ("layers", "norm")), Weight((L, K), ("layers", "norm"))
    query = Weight((L, D, H, K), ("layers", "embed", "heads", "head"), D**-0.5, inputs=1)
    output = Weight((L, H, K, D), ("layers", "heads", "head", "embed"), 0.0, inputs=2)
    layers = {"attention_norm": norm, "query": query, "output": output, "feed_forward_norm": norm}
    layers["key"] = layers["value"] = query._replace(shape=(L, D, G, K))
    layers |= {"query_norm": head_norm, "key_norm": head_norm} if c.qk_norm else {}
    each, axes = ((L, E), ("layers", "experts")) if E else ((L,), ("layers",))
    layers["gate"] = layers["up"] = Weight((*each, D, F), (*axes, "embed", "mlp"), D**-0.5, inputs=1)
    layers["down"] = Weight((*each, F, D), (*axes, "mlp", "embed"), 0.0, inputs=1)
    layers |= {"router": Weight((L, D, E), ("layers", "embed", "experts"), 0.02)} if E else {}
    table = Weight((c.vocab_size, D), ("vocab", "embed"), std=min(0.02, 0.4 * D**-0.5))
    ends = {"embedding": table._replace(std=0.8, rate=15.0), "head": table._replace(std=0.001)}
    ends = {"embedding": table} if c.tie_embeddings else ends
    return ends | {"layers": layers, "norm": Weight((D,), ("norm",))}


def by_weight(f: Callable, weights: Params, *trees: Any) -> Params:
    """Return f(weight, leaf of each tree) for every declared weight."""
    return jax.tree.map(f, weights, *trees, is_leaf=lambda x: isinstance(x, Weight))


def shardings(weights: Params) -> Params:
    """Return how each weight is split over the mesh that is set."""
    return by_weight(lambda w: NamedSharding(jax.sharding.get_mesh(), spec(*w.axes)), weights)


def init(weights: Params, seed: int) -> Params:
    """Return float32 values: a function of the seed, the same on every mesh."""

    def values() -> Params:
        keys, normal = iter(jax.random.split(jax.random.key(seed), 64)), jax.random.normal
        return by_weight(lambda w: jnp.ones(w.shape) if w.std is None else w.std * normal(next(keys), w.shape), weights)

    return jax.jit(values, out_shardings=shardings(weights))()


def product(equation: str, x: Array, w: Array, *axes: str | None) -> Array:
    """Return einsum(equation, x, w) in x's dtype, summed in float32. axes: logical ones of the result."""
    y = jnp.einsum(equation, x, w.astype(x.dtype), preferred_element_type=jnp.float32, out_sharding=spec(*axes))
    return y.astype(x.dtype)


def rms_norm(x: Array, scale: Array, eps: float) -> Array:
    """Return x / √(mean(x²) + ε) · scale, computed in float32 (Zhang and Sennrich 2019)."""
    x32 = x.astype(jnp.float32)
    return (x32 * lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps) * scale).astype(x.dtype)


def rotate(x_BTHK: Array, positions_BT: Array, theta: float) -> Array:
    """Rotate pairs (x_i, x_{i + K/2}) by position · θ^(−2i/K): q·k then depends on distance (RoPE, Su et al. 2021)."""
    half = x_BTHK.shape[-1] // 2
    frequencies = (theta ** (-np.arange(half) / half)).astype(np.float32)
    angles = positions_BT[:, :, None, None].astype(jnp.float32) * frequencies
    a, b = jnp.split(x_BTHK.astype(jnp.float32), 2, axis=-1)
    turned = (a * jnp.cos(angles) - b * jnp.sin(angles), b * jnp.cos(angles) + a * jnp.sin(angles))
    return jnp.concatenate(turned, axis=-1).astype(x_BTHK.dtype)


def attention(q_BTHK: Array, k_BSGK: Array, v_BSGK: Array, mask_BTS: Array) -> Array:
    """Return softmax(q·kᵀ/√K)·v over the keys where the mask is True, [B, T, H, K].

    Every R query heads share a key/value head, so the cache is R times smaller (grouped queries, Ainslie et al. 2023).
    """
    (B, T, H, K), G = q_BTHK.shape, k_BSGK.shape[2]
    q_BTGRK = lax.reshape(q_BTHK, (B, T, G, H // G, K), out_sharding=spec("batch", None, "heads", None, None))
    scores = jnp.einsum("btgrk,bsgk->bgrts", q_BTGRK, k_BSGK, preferred_element_type=jnp.float32) * K**-0.5
    weights = jax.nn.softmax(jnp.where(mask_BTS[:, None, None], scores, -1e30), axis=-1).astype(v_BSGK.dtype)
    mixed = jnp.einsum("bgrts,bsgk->btgrk", weights, v_BSGK, preferred_element_type=jnp.float32).astype(q_BTHK.dtype)
    return lax.reshape(mixed, (B, T, H, K), out_sharding=spec("batch", None, "heads", None))


def feed_forward(x_BTD: Array, w: Params) -> Array:
    """Return down(silu(gate(x)) · up(x)) (SwiGLU, Shazeer 2020), with the activation in float32."""
    gate, up = (product("btd,df->btf", x_BTD, w[name], "batch", None, "mlp") for name in ("gate", "up"))
    h_BTF = jax.nn.silu(gate.astype(jnp.float32)) * up.astype(jnp.float32)
    return product("btf,fd->btd", h_BTF.astype(x_BTD.dtype), w["down"], "batch", None, None)


def experts(x_BTD: Array, w: Params, config: Config, valid_BT: Array) -> tuple[Array, Array]:
    """Return Σ p_e · expert_e(x) over the top_k experts of each token, and the balance loss, summed over tokens.

    p: the router's softmax, of the chosen experts, divided by its sum (Shazeer et al. 2017). The balance loss of a
    row of n tokens is Σ_e f_e·P_e with f_e = E/(k·n) · (tokens that chose e), P_e the mean probability of e
    (DeepSeek-V3 2024, eq. 17–20). Here every expert computes every token, and most results are multiplied by 0.
    """
    E, k = config.num_experts, config.top_k
    logits = jnp.einsum("btd,de->bte", x_BTD.astype(jnp.float32), w["router"], out_sharding=spec("batch", None, None))
    p_BTE, valid_BT1 = jax.nn.softmax(logits), valid_BT[..., None].astype(jnp.float32)
    chosen_BTE = jnp.sum(jax.nn.one_hot(lax.top_k(lax.stop_gradient(p_BTE), k)[1], E), axis=-2)
    weight_BTE = valid_BT1 * p_BTE * chosen_BTE / jnp.sum(p_BTE * chosen_BTE, axis=-1, keepdims=True)
    gate, up = (product("btd,edf->btef", x_BTD, w[name], "batch", None, None, "mlp") for name in ("gate", "up"))
    h_BTEF = jax.nn.silu(gate.astype(jnp.float32)) * up.astype(jnp.float32) * weight_BTE[..., None]
    y_BTD = product("btef,efd->btd", h_BTEF.astype(x_BTD.dtype), w["down"], "batch", None, None)
    load_BE, share_BE = (jnp.sum(x_BTE * valid_BT1, axis=1) for x_BTE in (chosen_BTE, p_BTE))
    return y_BTD, jnp.sum(E / (k * jnp.maximum(jnp.sum(valid_BT1, axis=1), 1)) * load_BE * share_BE)


class Cache(NamedTuple):
    """Keys and values of earlier tokens. Later tokens do not change them, so they are computed once and kept.

    All rows share one pool of N slots. Position p of row b is in slot slots_BS[b, p]. So rows of any length fit
    together, and a row that has ended gives its slots back; serve.py does so (Kwon et al. 2023, "PagedAttention").
    """

    keys_LNGK: Array
    values_LNGK: Array
    slots_BS: Array


def hidden(params: Params, c: Config, batch: Batch, cache: Cache | None = None) -> tuple[Array, Any, Array]:
    """Return the states [B, T, D] after the last norm, the next cache, and the sum of balance losses.

    With a cache a token sees all positions of its row up to its own; else those of its segment.
    """
    tokens_BT, segments_BT, positions_BT = batch["tokens"], batch["segment_ids"], batch["positions"]
    table_VD = jax.sharding.reshard(params["embedding"], spec(None, None))
    x_BTD = table_VD.at[tokens_BT].get(out_sharding=spec("batch", None, None)).astype(c.dtype)
    if cache is None:
        mask_BTS = jnp.tri(tokens_BT.shape[1], dtype=bool) & (segments_BT[:, :, None] == segments_BT[:, None, :])
    else:
        mask_BTS = positions_BT[:, :, None] >= jnp.arange(cache.slots_BS.shape[1])
        slot_BT = jnp.take_along_axis(cache.slots_BS, positions_BT, axis=1)
        slot_BT = jnp.where(segments_BT > 0, slot_BT, cache.keys_LNGK.shape[1])  # padding: no slot, so it is dropped
        slot_BT = jax.sharding.reshard(slot_BT, spec(None, None))  # every device writes the new tokens of all rows

    def layer(x_BTD: Array, inputs: tuple[Params, Any]) -> tuple[Array, Any]:
        w, pools = inputs
        y = rms_norm(x_BTD, w["attention_norm"], c.norm_eps)
        q, k, v = (product("btd,dhk->bthk", y, w[n], "batch", None, "heads", None) for n in ("query", "key", "value"))
        if c.qk_norm:
            q, k = rms_norm(q, w["query_norm"], c.norm_eps), rms_norm(k, w["key_norm"], c.norm_eps)
        q, k = rotate(q, positions_BT, c.rope_theta), rotate(k, positions_BT, c.rope_theta)
        if cache is not None:
            k, v = (jax.sharding.reshard(x, spec(None, None, "heads", None)) for x in (k, v))
            pools = [pool_NGK.at[slot_BT].set(x, mode="drop") for pool_NGK, x in zip(pools, (k, v))]
            k, v = (pool.at[cache.slots_BS].get(out_sharding=spec("batch", None, "heads", None)) for pool in pools)
        x_BTD += product("bthk,hkd->btd", attention(q, k, v, mask_BTS), w["output"], "batch", None, None)
        y = rms_norm(x_BTD, w["feed_forward_norm"], c.norm_eps)
        y, balance = experts(y, w, c, segments_BT > 0) if c.num_experts else (feed_forward(y, w), jnp.zeros(()))
        return x_BTD + y, (pools, balance)

    # For the backward pass keep what matrix products returned and compute the rest again: scores take too much memory.
    layer = jax.checkpoint(layer, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable)
    pools = cache and [cache.keys_LNGK, cache.values_LNGK]
    x_BTD, (pools, balance_L) = lax.scan(layer, x_BTD, (params["layers"], pools))
    cache = cache and Cache(pools[0], pools[1], cache.slots_BS)
    return rms_norm(x_BTD, params["norm"], c.norm_eps), cache, jnp.sum(balance_L)


def logits(params: Params, c: Config, x_BTD: Array) -> Array:
    """Return float32 logits [B, T, V] of hidden states."""
    head_VD, where = params["embedding" if c.tie_embeddings else "head"].astype(c.dtype), spec("batch", None, "vocab")
    return jnp.einsum("btd,vd->btv", x_BTD, head_VD, preferred_element_type=jnp.float32, out_sharding=where)


if __name__ == "__main__":
    jax.set_mesh(make_mesh())
    params, ones = init(declare(TINY), seed=0), jnp.ones((8, 8), jnp.int32)
    states = hidden(params, TINY, {"tokens": ones, "segment_ids": ones, "positions": ones})[0]
    print(logits(params, TINY, states))
