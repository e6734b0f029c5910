"""Tiny models, and adapters that are away from their start."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lm.config import Adapter, LatentAttention, MixtureOfExperts, ModelConfig
from lm.model.transformer import skeleton
from tests.lm.examples import parameters

TINY = ModelConfig(
    vocab_size=64,
    num_layers=2,
    embed_dim=32,
    num_heads=4,
    num_kv_heads=2,
    mlp_dim=48,
    head_dim=8,
    qkv_bias=True,
    dtype="float32",
)
LATENT = ModelConfig(
    vocab_size=64,
    num_layers=2,
    embed_dim=32,
    num_heads=4,
    num_kv_heads=4,
    mlp_dim=48,
    head_dim=8,
    dtype="float32",
    mla=LatentAttention(kv_rank=12, query_rank=16, rope_head_dim=4, value_head_dim=8),
    mlp_pattern=("moe",),
    moe=MixtureOfExperts(num_experts=4, top_k=2, expert_dim=16, shared_dim=24),
)
TOKENS = np.random.default_rng(0).integers(1, 64, (4, 12))


def forward(config: ModelConfig, params: nnx.State, tokens_BT=TOKENS) -> jax.Array:
    return nnx.merge(skeleton(config)[0], params)(tokens_BT)


logits = jax.jit(forward, static_argnums=0)


def shaken(params: nnx.State, seed: int = 1) -> nnx.State:
    """The parameters with what an adapter starts at zero made random."""
    rng = np.random.default_rng(seed)

    def moved(path, variable):
        name = path[-1]
        if name not in ("lora_b", "magnitude"):
            return variable
        return variable.replace(jnp.asarray(0.1 * rng.standard_normal(variable.get_value().shape), jnp.float32))

    return nnx.from_flat_state([(path, moved(path, variable)) for path, variable in nnx.to_flat_state(params)])


def adapted_model(config: ModelConfig, adapter: Adapter) -> tuple[ModelConfig, nnx.State]:
    """With the base that `parameters` makes; shared, so leave it as it is."""
    config = dataclasses.replace(config, adapter=adapter)
    return config, parameters(config)
