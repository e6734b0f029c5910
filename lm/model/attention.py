"""Grouped-query self-attention with rotary positions and an optional key/value cache."""

from typing import NamedTuple

import jax
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from lm.config import ModelConfig
from lm.kernels.attention import attention
from lm.kernels.matmul import matmul
from lm.model.initializers import normal
from lm.model.positions import rotate


class Cache(NamedTuple):
    """Keys and values of one layer, [B, S, G, K] in the compute dtype; the whole model's carry L in front."""

    k: jax.Array
    v: jax.Array


class Attention(nnx.Module):
    """Multi-head attention (Vaswani et al. 2017) whose H query heads share G key/value heads (Ainslie et al. 2023)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        D, H, G, K = config.embed_dim, config.num_heads, config.num_kv_heads, config.head_dim
        self.dtype = config.compute_dtype
        self.query = nnx.Param(normal(rngs, (D, H, K)), out_sharding=("embed", "heads", "head"))
        self.key = nnx.Param(normal(rngs, (D, G, K)), out_sharding=("embed", "kv_heads", "head"))
        self.value = nnx.Param(normal(rngs, (D, G, K)), out_sharding=("embed", "kv_heads", "head"))
        self.output = nnx.Param(normal(rngs, (H, K, D), layers=config.num_layers), out_sharding=("heads", "head", "embed"))

    def __call__(self, x_BTD, rotary, mask_BTS, cache: Cache | None = None, slot=None) -> tuple[jax.Array, Cache | None]:
        """rotary: (cos, sin) of the T positions. With a cache, the T new keys are written from slot `slot` on."""

        def project(weight, heads):
            return matmul("btd,dhk->bthk", x_BTD, weight[...], dtype=self.dtype, out=("batch", "length", heads, None))

        q_BTHK = checkpoint_name(rotate(project(self.query, "heads"), *rotary), "matmul")
        k_BSGK = checkpoint_name(rotate(project(self.key, "kv_heads"), *rotary), "matmul")
        v_BSGK = checkpoint_name(project(self.value, "kv_heads"), "matmul")
        if cache is not None:
            k_BSGK = lax.dynamic_update_slice_in_dim(cache.k, k_BSGK, slot, axis=1)
            v_BSGK = lax.dynamic_update_slice_in_dim(cache.v, v_BSGK, slot, axis=1)
            cache = Cache(k_BSGK, v_BSGK)
        mixed_BTHK = attention(q_BTHK, k_BSGK, v_BSGK, mask_BTS)
        out = matmul("bthk,hkd->btd", mixed_BTHK, self.output[...], dtype=self.dtype, out=("batch", "length", None))
        return out, cache
