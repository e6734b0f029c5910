"""Self-attention: grouped-query and multi-head latent, each with an optional cache (lm/model/cache.py, lm/model/pages.py).

Axes: B batch, T time, S key slots, D model, H query heads, G key/value heads, K head size, R latent size.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from lm.config import LayerKind, ModelConfig
from lm.files.user_files import layer_part
from lm.kernels.attention import Scoring
from lm.kernels.ops import attention, embedding, matmul
from lm.kernels.saved import saved
from lm.model.cache import Cache
from lm.model.indexer import Indexer, narrowed
from lm.model.initializers import STD, normal, parameter
from lm.model.inputs import Step
from lm.model.linear import Linear, residual_std, together
from lm.model.norms import RMSNorm, UnitNorm
from lm.model.pages import PagedCache
from lm.model.positions import rotate, yarn_mscale
from lm.parallel.context import length_axis, whole_rows
from lm.parallel.mesh import reshard, spec_of

HEADS = ("batch", "length", "heads", None)
GATE_INPUTS, GATE_RANGE = 12, 3.0  # of a value embedding (nanochat)


def attention_sublayer(config: ModelConfig, rngs: nnx.Rngs, kind: LayerKind) -> nnx.Module:
    """Return a new attention of a layer of this kind, as the config says, or the user's own."""
    if kind.recurrent:
        from lm.model.recurrent import RECURRENT_LAYERS  # here, because most models have none

        return RECURRENT_LAYERS[kind.recurrent](config, rngs)
    window = config.window if kind.local else 0
    if config.attention:
        return layer_part("model.attention", config.attention, "FILE.py:CLASS")(config, rngs, window)
    if config.mla.kv_rank:
        return LatentAttention(config, rngs, window)
    return (TakingAttention if kind.takes else Attention)(config, rngs, window, kind)


def softmax_scale(config: ModelConfig) -> float:
    """Return 1/√K or the config's scale. DeepSeek's YaRN multiplies it by yarn_mscale(factor, mscale_all_dim)²."""
    scale = config.query_scale or config.key_head_dim**-0.5
    rope = config.rope
    if config.mla.kv_rank and rope.scaling == "yarn" and rope.mscale_all_dim:
        scale *= yarn_mscale(rope.factor, rope.mscale_all_dim) ** 2
    return scale


def rotated(x_BTHK: jax.Array, rotary: tuple[jax.Array, jax.Array] | None, interleaved: bool) -> jax.Array:
    """Return the heads rotated by their positions, or unchanged in a layer without rotary positions."""
    return x_BTHK if rotary is None else rotate(x_BTHK, *rotary, interleaved)


class Attention(nnx.Module):
    """Multi-head attention (Vaswani et al. 2017) whose H query heads share G key/value heads (Ainslie et al. 2023).

    kind: of the layer; None: a rotary one.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, window: int, kind: LayerKind | None = None):
        kind = kind or LayerKind(local=window > 0, moe=False)
        D, H, G, K = config.embed_dim, config.num_heads, config.num_kv_heads, config.head_dim
        chunked = config.chunked and window > 0
        self.scoring = Scoring(softmax_scale(config), window, config.attention_softcap, config.context_attention, chunked)
        self.interleaved, self.rotates, self.norms_last = config.rope.interleaved, kind.rotary, config.qk_norm_last
        self.tempered = not (config.temperature_nope and kind.rotary)
        bias = config.qkv_bias

        def project(name: str, heads: int, axis: str) -> Linear:
            axes = ("embed", axis, "head")
            return Linear(config, rngs, f"attention.{name}", "btd,dhk->bthk", (D, heads, K), axes, bias=bias)

        self.query = project("query", H, "heads")
        self.key = project("key", G, "kv_heads")
        self.value = project("value", G, "kv_heads")
        self.gates = config.output_gate
        if self.gates:
            self.gate = project("gate", H, "heads")
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
        if config.qk_norm == "unit" and kind.rotary:
            self.query_norm, self.key_norm = UnitNorm(config.norm_eps), UnitNorm(config.norm_eps)
        if config.qk_norm in ("head", "full"):
            full = config.qk_norm == "full"
            plus_one = config.norm_plus_one
            for name, heads, axis in (("query_norm", H, "heads"), ("key_norm", G, "kv_heads")):
                shape, axes = ((heads, K), (axis, "head")) if full else ((K,), ("head",))
                setattr(self, name, RMSNorm(shape, config.norm_eps, plus_one=plus_one, axes=axes))
        if config.value_norm:
            self.value_norm = UnitNorm(config.norm_eps)
        if kind.has_table:
            self.value_embedding = ValueEmbedding(config, rngs)
        if config.attention_sinks:
            self.sinks = parameter(jnp.zeros((H,), jnp.float32), ("heads",), "vector")

    def __call__(
        self, x_BTD: jax.Array, step: Step, cache: Cache | PagedCache | None = None
    ) -> tuple[jax.Array, Cache | PagedCache | None]:
        """Return the mixed values [B, T, D] and the cache with the new keys and values."""
        joined = together(x_BTD, self.query, self.key, self.value)
        q_BTHK, k_BSGK, v_BSGK = joined or (self.query(x_BTD), self.key(x_BTD), self.value(x_BTD))
        rotary = step.rotary if self.rotates else None
        if hasattr(self, "query_norm") and hasattr(self, "key_norm") and not self.norms_last:
            # The gradients of norms need what they normed.
            q_BTHK, k_BSGK = self.query_norm(saved(q_BTHK)), self.key_norm(saved(k_BSGK))
            q_BTHK, k_BSGK = (rotated(x, rotary, self.interleaved) for x in (q_BTHK, k_BSGK))
        else:
            q_BTHK, k_BSGK = (saved(rotated(x, rotary, self.interleaved)) for x in (q_BTHK, k_BSGK))
            if hasattr(self, "query_norm") and hasattr(self, "key_norm"):
                q_BTHK, k_BSGK = self.query_norm(q_BTHK), self.key_norm(k_BSGK)
        if step.temperature_BT11 is not None and self.tempered:
            q_BTHK = (q_BTHK * step.temperature_BT11).astype(q_BTHK.dtype)
        if hasattr(self, "value_embedding"):
            assert step.tokens_BT is not None
            v_BSGK = v_BSGK + self.value_embedding(x_BTD, step.tokens_BT)
        v_BSGK = saved(v_BSGK)
        if hasattr(self, "value_norm"):
            v_BSGK = self.value_norm(v_BSGK)
        sinks = self.sinks[...] if hasattr(self, "sinks") else None
        if cache is not None:
            cache = cache.write({"k": k_BSGK, "v": v_BSGK}, step)
        if cache is not None and step.reads_cache:
            mixed_BTHK = cache.attend(q_BTHK, step, self.scoring, sinks)
        else:
            assert step.visible is not None
            mixed_BTHK = attention(q_BTHK, k_BSGK, v_BSGK, step.visible, self.scoring, sinks)
        if self.gates:
            gate_BTHK = jax.nn.sigmoid(saved(self.gate(x_BTD)).astype(jnp.float32))
            mixed_BTHK = (mixed_BTHK.astype(jnp.float32) * gate_BTHK).astype(mixed_BTHK.dtype)
        return self.output(mixed_BTHK, length_axis(x_BTD)), cache


class TakingAttention(Attention):
    """Attention to the keys and values that an earlier layer gives (model.shared_kv_layers)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, window: int, kind: LayerKind):
        super().__init__(config, rngs, window, kind)
        for name in ("key", "value", "key_norm", "value_norm"):
            if hasattr(self, name):
                delattr(self, name)

    def __call__(
        self, x_BTD: jax.Array, step: Step, cache: Cache | PagedCache | None = None
    ) -> tuple[jax.Array, Cache | PagedCache | None]:
        """Return the mixed values [B, T, D], and None: this layer has no cache."""
        assert step.given is not None
        q_BTHK = self.query(x_BTD)
        q_BTHK = self.query_norm(saved(q_BTHK)) if hasattr(self, "query_norm") else q_BTHK
        q_BTHK = rotated(q_BTHK, step.rotary if self.rotates else None, self.interleaved)
        sinks = self.sinks[...] if hasattr(self, "sinks") else None
        return self.output(step.given.attend(saved(q_BTHK), step, self.scoring, sinks), length_axis(x_BTD)), None


class ValueEmbedding(nnx.Module):
    """g · table[token], which attention adds to its values: a vector of the token that no layer has mixed (Zhou et al. 2024).

    The gate g = 3·σ(W·x[:12]) of each head is nanochat's.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        V, G, K = config.vocab_size, config.num_kv_heads, config.head_dim
        self.dtype, self.heads, self.inputs = config.compute_dtype, (G, K), min(GATE_INPUTS, config.embed_dim)
        values = normal(rngs, (V, G * K), config.embed_dim**-0.5)
        self.table = parameter(values, ("vocab", "embed"), "embedding")
        self.gate = Linear(config, rngs, "attention.value_gate", "btc,cg->btg", (self.inputs, G), ("replicated", "kv_heads"))

    def __call__(self, x_BTD: jax.Array, tokens_BT: jax.Array) -> jax.Array:
        """Return what is added to the values, [B, T, G, K]."""
        rows = embedding(self.table.get_value(), tokens_BT, self.dtype)
        rows_BTGK = reshard(rows.reshape(*rows.shape[:2], *self.heads), "batch", "length", "kv_heads", None)
        gate_BTG = GATE_RANGE * jax.nn.sigmoid(self.gate(x_BTD[..., : self.inputs]).astype(jnp.float32))
        return gate_BTG.astype(self.dtype)[..., None] * rows_BTGK


class LatentAttention(nnx.Module):
    """Multi-head latent attention (DeepSeek-V2, 2024, §2.1).

    The cache keeps only c = norm(x·W_latent), R numbers, and one rotated key for all heads. The key of a head is
    [c·W_key_up, rotated key] ("nope" and "rope" dimensions), its value c·W_value_up. Without a cache, keys and values are
    computed. Attention to the cache multiplies W_key_up into the queries and W_value_up into the result instead, so
    all heads attend to the latents as to one shared head. An indexer may choose the keys that a query attends to.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, window: int):
        mla, D, H, K = config.mla, config.embed_dim, config.num_heads, config.head_dim
        R, Q, rope, V = mla.kv_rank, mla.query_rank, mla.rope_head_dim, mla.value_head_dim
        self.nope_dim, self.rank = K, R
        chunked = config.chunked and window > 0
        self.scoring = Scoring(softmax_scale(config), window, config.attention_softcap, config.context_attention, chunked)
        self.interleaved = config.rope.interleaved

        def linear(name: str, equation: str, shape: tuple[int, ...], axes: tuple[str, ...], std: float = STD) -> Linear:
            return Linear(config, rngs, f"attention.{name}", equation, shape, axes, std=std)

        heads = ("embed", "heads", "head")
        if Q:
            self.query_down = linear("query_down", "btd,dr->btr", (D, Q), ("embed", "replicated"))
            self.query_latent_norm = RMSNorm(Q, mla.norm_eps)
            self.query_up = linear("query_up", "btr,rhk->bthk", (Q, H, K + rope), heads)
        else:
            self.query = linear("query", "btd,dhk->bthk", (D, H, K + rope), ("embed", "heads", "head"))
        self.latent = linear("latent", "btd,dr->btr", (D, R + rope), ("embed", "replicated"))
        self.latent_norm = RMSNorm(R, mla.norm_eps)
        self.key_up = linear("key_up", "btr,rhk->bthk", (R, H, K), heads)
        self.value_up = linear("value_up", "btr,rhk->bthk", (R, H, V), heads)
        self.output = linear("output", "bthk,hkd->btd", (H, V, D), ("heads", "head", "embed"), std=residual_std(config))
        if mla.index_topk:
            self.indexer = Indexer(config, rngs)

    def __call__(
        self, x_BTD: jax.Array, step: Step, cache: Cache | PagedCache | None = None
    ) -> tuple[jax.Array, Cache | PagedCache | None]:
        axis = length_axis(x_BTD)
        sought, index = None, {}
        if hasattr(self, "query"):
            q_BTHK = self.query(x_BTD)
        else:
            query_BTR = self.query_latent_norm(self.query_down(x_BTD, axis))
            q_BTHK = self.query_up(query_BTR)
            if hasattr(self, "indexer"):
                sought, index["index"] = self.indexer(x_BTD, query_BTR, step.rotary)
        nope_BTHK = q_BTHK[..., : self.nope_dim]
        rope_BTHK = rotated(q_BTHK[..., self.nope_dim :], step.rotary, self.interleaved)
        both_BTR = saved(self.latent(x_BTD, axis))
        latent_BTR = self.latent_norm(both_BTR[..., : self.rank])
        key_BS1K = rotated(whole_rows(both_BTR[..., self.rank :])[:, :, None], step.rotary, self.interleaved)
        if cache is not None:
            cache = cache.write({"latent": latent_BTR[:, :, None], "key": key_BS1K, **index}, step)
        if cache is not None and step.reads_cache:
            q_BTHR = self._absorbing(nope_BTHK, rope_BTHK)
            mixed_BTHV = self._values(cache.attend(q_BTHR, step, self.scoring, sought=sought))
        else:
            if sought is not None:
                assert step.visible is not None
                step = step._replace(visible=narrowed(step.visible, sought, index["index"][:, :, 0]))
            mixed_BTHV = self._expanded(nope_BTHK, rope_BTHK, latent_BTR, key_BS1K, step)
        return self.output(mixed_BTHV, axis), cache

    def _expanded(
        self, nope_BTHK: jax.Array, rope_BTHK: jax.Array, latent_BTR: jax.Array, key_BT1K: jax.Array, step: Step
    ) -> jax.Array:
        assert step.visible is not None
        k_BTHK = self.key_up(latent_BTR)
        shared = jnp.broadcast_to(key_BT1K, (*k_BTHK.shape[:3], key_BT1K.shape[-1]), out_sharding=spec_of(k_BTHK))
        q_BTHK = saved(jnp.concatenate((nope_BTHK, rope_BTHK), axis=-1))
        k_BTHK = saved(jnp.concatenate((k_BTHK, shared), axis=-1))
        v_BTHV = saved(self.value_up(latent_BTR))
        return attention(q_BTHK, k_BTHK, v_BTHV, step.visible, self.scoring)

    def _absorbing(self, nope_BTHK: jax.Array, rope_BTHK: jax.Array) -> jax.Array:
        """Return the queries with W_key_up in them, to compare with [latent, rotated key]."""
        q_BTHR = matmul("bthk,rhk->bthr", nope_BTHK, self.key_up.full(), dtype=nope_BTHK.dtype, out=HEADS)
        return jnp.concatenate((q_BTHR, rope_BTHK), axis=-1)

    def _values(self, mixed_BTHR: jax.Array) -> jax.Array:
        return matmul("bthr,rhk->bthk", mixed_BTHR, self.value_up.full(), dtype=mixed_BTHR.dtype, out=HEADS)
