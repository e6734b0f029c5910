"""Self-attention: grouped-query, and multi-head latent, each with an optional cache.

Axes: B batch, T time, S cache slots, D model, H query heads, G key/value heads, K head size, R latent size.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from lm.config import ModelConfig
from lm.kernels.attention import Visible, attention, attention_to_cache
from lm.kernels.matmul import matmul, spec_of
from lm.kernels.quantize import dequantize_rows, quantize_rows
from lm.model.initializers import parameter
from lm.model.linear import Linear, residual_std
from lm.model.norms import RMSNorm
from lm.model.positions import rotate, yarn_mscale
from lm.parallel.mesh import spec

HEADS = ("batch", "length", "heads", None)


class Cache(NamedTuple):
    """What one layer remembers of each token; arrays of a stack of layers carry its repeats in front.

    Grouped-query: {"k": [B, G, S, K], "v": [B, G, S, K]}. Latent: {"latent": [B, 1, S, R], "key": [B, 1, S, K]}, the key that
    turns. In int8, `scales` has an entry [B, G, S, 1] for each array; else it is empty. A head's slots lie together, so that
    no product over them must move them first. before: caches of what stands in front of these slots, one after the other, of
    rows of which each is shared by several of these that stand one after the other.
    """

    values: dict[str, jax.Array]
    scales: dict[str, jax.Array]
    before: tuple["Cache", ...] = ()


class Step(NamedTuple):
    """What every layer of a kind needs to know of the tokens at hand."""

    rotary: tuple[jax.Array, jax.Array] | None  # cos and sin of the T tokens
    visible: Visible
    alone: bool  # the T tokens see only one another, and nothing that a cache holds
    slot: jax.Array | None  # the cache slot of the first of the T tokens
    valid_BT: jax.Array  # bool, False for padding


def attention_sublayer(config: ModelConfig, rngs: nnx.Rngs, window: int):
    kind = LatentAttention if config.mla.kv_rank else Attention
    return kind(config, rngs, window)


def cache_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Heads and size of what a layer remembers of a token, by name."""
    if config.mla.kv_rank:
        return {"latent": (1, config.mla.kv_rank), "key": (1, config.mla.rope_head_dim)}
    return dict.fromkeys(("k", "v"), (config.num_kv_heads, config.head_dim))


def softmax_scale(config: ModelConfig) -> float:
    """1/√K, or the config's; DeepSeek's YaRN multiplies it by the square of what the angles' scaling would be."""
    scale = config.query_scale or config.key_head_dim**-0.5
    rope = config.rope
    if config.mla.kv_rank and rope.scaling == "yarn" and rope.mscale_all_dim:
        scale *= yarn_mscale(rope.factor, rope.mscale_all_dim) ** 2
    return scale


def empty_cache(config: ModelConfig, batch: int, slots: int, dtype: str = "", repeats: tuple[int, ...] = ()) -> Cache:
    """Zeros for a layer, or with (n,) for n of them; `dtype` "int8" stores integers and a scale for each token and head."""
    shapes = {name: (*repeats, batch, heads, slots, size) for name, (heads, size) in cache_shapes(config).items()}
    where = cache_spec(config, "batch", len(repeats))

    def zeros(shape, dtype):
        return jnp.zeros(shape, dtype, out_sharding=where)

    values = {name: zeros(shape, dtype or cache_dtype(config)) for name, shape in shapes.items()}
    scales = {name: zeros((*shape[:-1], 1), jnp.bfloat16) for name, shape in shapes.items()} if dtype == "int8" else {}
    return Cache(values, scales)


def cache_spec(config: ModelConfig, rows: str | None, stacked: int = 0):
    """How a cache lies whose rows are split as `rows` says, with `stacked` axes in front."""
    # The one head of latent attention is shared by all query heads, and so whole on every device.
    return spec(*[None] * stacked, rows, None if config.mla.kv_rank else "kv_heads", None, None)


def cache_dtype(config: ModelConfig) -> jnp.dtype:
    """What a cache keeps."""
    return kept_dtype(config.compute_dtype)


def kept_dtype(dtype) -> jnp.dtype:
    """The compute dtype; on a CPU float32 for bfloat16. It would turn all slots into it for each token, and where several rows
    share a part, XLA (jaxlib 0.10) compiles products of bfloat16 that it cannot run."""
    return jnp.dtype(jnp.float32) if jax.default_backend() == "cpu" and dtype == jnp.bfloat16 else jnp.dtype(dtype)


def written(cache: Cache, new: dict[str, jax.Array], slot) -> Cache:
    """The cache with [B, T, G, …] arrays from `slot` on, which counts what stands before."""
    slot = slot - sum(next(iter(part.values.values())).shape[2] for part in cache.before)

    def put(old, x):
        return lax.dynamic_update_slice_in_dim(old, x.astype(old.dtype), slot, axis=2)

    new = {name: jnp.swapaxes(x, 1, 2) for name, x in new.items()}
    if not cache.scales:
        return cache._replace(values={name: put(cache.values[name], x) for name, x in new.items()})
    rows = {name: quantize_rows(x) for name, x in new.items()}
    return cache._replace(
        values={name: put(cache.values[name], x) for name, (x, _) in rows.items()},
        scales={name: put(cache.scales[name], scale) for name, (_, scale) in rows.items()},
    )


def read(cache: Cache, names: tuple[str, str], dtype) -> list[tuple[jax.Array, ...]]:
    """What a cache keeps by these names, [B, G, S, …], for a compute dtype; what stands before it comes first."""

    def one(cache, name):
        if cache.scales:
            return dequantize_rows(cache.values[name], cache.scales[name]).astype(kept_dtype(dtype))
        return cache.values[name]

    return [tuple(one(part, name) for name in names) for part in (*cache.before, cache)]


def turned(x_BTHK, step: Step, interleaved: bool) -> jax.Array:
    return x_BTHK if step.rotary is None else rotate(x_BTHK, *step.rotary, interleaved)


class Attention(nnx.Module):
    """Multi-head attention (Vaswani et al. 2017) whose H query heads share G key/value heads (Ainslie et al. 2023)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, window: int):
        D, H, G, K = config.embed_dim, config.num_heads, config.num_kv_heads, config.head_dim
        self.scale, self.window, self.softcap = softmax_scale(config), window, config.attention_softcap
        self.interleaved = config.rope.interleaved
        bias = config.qkv_bias

        def project(name, heads, axis):
            axes = ("embed", axis, "head")
            return Linear(config, rngs, f"attention.{name}", "btd,dhk->bthk", (D, heads, K), axes, bias=bias)

        self.query = project("query", H, "heads")
        self.key = project("key", G, "kv_heads")
        self.value = project("value", G, "kv_heads")
        self.output = Linear(
            config,
            rngs,
            "attention.output",
            "bthk,hkd->btd",
            (H, K, D),
            ("heads", "head", "embed"),
            std=residual_std(config),
            bias=config.output_bias,
        )
        if config.qk_norm != "none":
            full = config.qk_norm == "full"
            plus_one = config.norm_plus_one
            for name, heads, axis in (("query_norm", H, "heads"), ("key_norm", G, "kv_heads")):
                shape, axes = ((heads, K), (axis, "head")) if full else ((K,), ("head",))
                setattr(self, name, RMSNorm(shape, config.norm_eps, plus_one=plus_one, axes=axes))
        if config.attention_sinks:
            self.sinks = parameter(jnp.zeros((H,), jnp.float32), ("heads",), "vector")

    def __call__(self, x_BTD, step: Step, cache: Cache | None = None) -> tuple[jax.Array, Cache | None]:
        """With a cache, the T new keys and values are written from slot `step.slot` on, and all slots are attended to; the new
        ones alone if `step.alone`."""
        q_BTHK, k_BSGK = self.query(x_BTD), self.key(x_BTD)
        if hasattr(self, "query_norm"):
            q_BTHK, k_BSGK = self.query_norm(q_BTHK), self.key_norm(k_BSGK)
        q_BTHK = checkpoint_name(turned(q_BTHK, step, self.interleaved), "matmul")
        k_BSGK = checkpoint_name(turned(k_BSGK, step, self.interleaved), "matmul")
        v_BSGK = checkpoint_name(self.value(x_BTD), "matmul")
        if cache is not None:
            cache = written(cache, {"k": k_BSGK, "v": v_BSGK}, step.slot)
        sinks = self.sinks[...] if hasattr(self, "sinks") else None
        options = dict(scale=self.scale, window=self.window, softcap=self.softcap, sinks_H=sinks)
        if step.alone:
            mixed_BTHK = attention(q_BTHK, k_BSGK, v_BSGK, step.visible, **options)
        else:
            mixed_BTHK = attention_to_cache(q_BTHK, read(cache, ("k", "v"), x_BTD.dtype), step.visible, **options)
        return self.output(mixed_BTHK), cache


class LatentAttention(nnx.Module):
    """Multi-head latent attention (DeepSeek-V2, 2024, §2.1).

    c = norm(x·W_latent) of R numbers, and one key of the rotary dimensions for all heads, are all that is cached. A head's
    key is [c·W_key_up, that key], its value c·W_value_up. Without a cache keys and values are made; with one, W_key_up is
    multiplied into the queries and W_value_up into what attention gives, so that attention runs over the latents as over one
    shared head.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, window: int):
        mla, D, H, K = config.mla, config.embed_dim, config.num_heads, config.head_dim
        R, Q, turning, V = mla.kv_rank, mla.query_rank, mla.rope_head_dim, mla.value_head_dim
        self.fixed_dim, self.rank = K, R
        self.scale, self.window, self.softcap = softmax_scale(config), window, config.attention_softcap
        self.interleaved = config.rope.interleaved

        def linear(name, equation, shape, axes, **options):
            return Linear(config, rngs, f"attention.{name}", equation, shape, axes, **options)

        heads = ("embed", "heads", "head")
        if Q:
            self.query_down = linear("query_down", "btd,dr->btr", (D, Q), ("embed", "norm"))
            self.query_latent_norm = RMSNorm(Q, mla.norm_eps)
            self.query_up = linear("query_up", "btr,rhk->bthk", (Q, H, K + turning), heads)
        else:
            self.query = linear("query", "btd,dhk->bthk", (D, H, K + turning), ("embed", "heads", "head"))
        self.latent = linear("latent", "btd,dr->btr", (D, R + turning), ("embed", "norm"))
        self.latent_norm = RMSNorm(R, mla.norm_eps)
        self.key_up = linear("key_up", "btr,rhk->bthk", (R, H, K), heads)
        self.value_up = linear("value_up", "btr,rhk->bthk", (R, H, V), heads)
        self.output = linear("output", "bthk,hkd->btd", (H, V, D), ("heads", "head", "embed"), std=residual_std(config))

    def __call__(self, x_BTD, step: Step, cache: Cache | None = None) -> tuple[jax.Array, Cache | None]:
        if hasattr(self, "query"):
            q_BTHK = self.query(x_BTD)
        else:
            q_BTHK = self.query_up(self.query_latent_norm(self.query_down(x_BTD)))
        fixed_BTHK = q_BTHK[..., : self.fixed_dim]
        turning_BTHK = turned(q_BTHK[..., self.fixed_dim :], step, self.interleaved)
        both_BTR = checkpoint_name(self.latent(x_BTD), "matmul")
        latent_BTR = self.latent_norm(both_BTR[..., : self.rank])
        key_BS1K = turned(both_BTR[:, :, None, self.rank :], step, self.interleaved)
        if cache is not None:
            cache = written(cache, {"latent": latent_BTR[:, :, None], "key": key_BS1K}, step.slot)
        if step.alone:
            mixed = self._expanded(fixed_BTHK, turning_BTHK, latent_BTR, key_BS1K, step)
        else:
            mixed = self._absorbed(fixed_BTHK, turning_BTHK, read(cache, ("latent", "key"), x_BTD.dtype), step)
        return self.output(mixed), cache

    def _expanded(self, fixed_BTHK, turning_BTHK, latent_BTR, key_BT1K, step):
        k_BTHK = self.key_up(latent_BTR)
        shared = jnp.broadcast_to(key_BT1K, (*k_BTHK.shape[:3], key_BT1K.shape[-1]), out_sharding=spec_of(k_BTHK))
        q_BTHK = checkpoint_name(jnp.concatenate((fixed_BTHK, turning_BTHK), axis=-1), "matmul")
        k_BTHK = checkpoint_name(jnp.concatenate((k_BTHK, shared), axis=-1), "matmul")
        v_BTHV = checkpoint_name(self.value_up(latent_BTR), "matmul")
        return attention(q_BTHK, k_BTHK, v_BTHV, step.visible, scale=self.scale, window=self.window, softcap=self.softcap)

    def _absorbed(self, fixed_BTHK, turning_BTHK, kept, step):
        dtype = fixed_BTHK.dtype
        q_BTHR = matmul("bthk,rhk->bthr", fixed_BTHK, self.key_up.full(), dtype=dtype, out=HEADS)
        q_BTHK = jnp.concatenate((q_BTHR, turning_BTHK), axis=-1)
        kept = [(jnp.concatenate((latent_B1SR, key_B1SK), axis=-1), latent_B1SR) for latent_B1SR, key_B1SK in kept]
        options = dict(scale=self.scale, window=self.window, softcap=self.softcap)
        mixed_BTHR = attention_to_cache(q_BTHK, kept, step.visible, **options)
        return matmul("bthr,rhk->bthk", mixed_BTHR, self.value_up.full(), dtype=dtype, out=HEADS)
