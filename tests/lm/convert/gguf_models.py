"""Tiny models of every architecture that GGUF has, with the features that llama.cpp computes."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lm.config import ModelConfig
from lm.convert.families import model_config
from lm.convert.to_workdir import write_workdir
from lm.model.transformer import skeleton
from lm.runs.checkpoint import named, nested, plain, unplain
from tests.lm.convert.peer_configs import COMMON, LATENT, LLAMA3, LONG, PLAIN, YARN

SIZES = {**COMMON, "hidden_size": 64, "intermediate_size": 96, "vocab_size": 300}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 32}
DEEPSEEK = {**LATENT, "kv_lora_rank": 32, "moe_intermediate_size": 32, "rms_norm_eps": 1e-6}
# By name: the model_type, and what its config.json holds beyond SIZES.
MODELS = {
    "llama": ("llama", dict(attention_bias=True, mlp_bias=True, head_dim=16, rope_parameters={**LLAMA3, "rope_theta": 1e4})),
    "llama-tied": ("llama", dict(tie_word_embeddings=True, rope_parameters=PLAIN)),
    "llama-linear": ("llama", dict(rope_parameters={"rope_type": "linear", "factor": 3.0, "rope_theta": 1e3})),
    "llama-yarn": ("llama", dict(rope_parameters={**YARN, "rope_theta": 1e3})),
    "mistral": ("mistral", dict(sliding_window=None, rope_parameters=PLAIN)),
    "mixtral": ("mixtral", dict(num_local_experts=6, num_experts_per_tok=3, rope_parameters=PLAIN)),
    "qwen2": ("qwen2", dict(tie_word_embeddings=True, rope_parameters={**YARN, "rope_theta": 1e3})),
    "qwen3": ("qwen3", dict(head_dim=16, rope_parameters=PLAIN)),
    "qwen3-moe": ("qwen3_moe", dict(head_dim=16, norm_topk_prob=True, rope_parameters=PLAIN, **EXPERTS)),
    "gemma2": (
        "gemma2",
        dict(
            num_hidden_layers=4,
            head_dim=16,
            sliding_window=12,
            query_pre_attn_scalar=16,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=4.0,
            tie_word_embeddings=True,
            rope_parameters=PLAIN | {"rope_theta": 1e4},
        ),
    ),
    "gemma3": (
        "gemma3_text",
        dict(
            num_hidden_layers=7,
            head_dim=16,
            sliding_window=12,
            query_pre_attn_scalar=16,
            tie_word_embeddings=True,
            rope_parameters={
                "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        ),
    ),
    "phi3": (
        "phi3",
        dict(original_max_position_embeddings=32, rope_parameters={**LONG, "partial_rotary_factor": 0.5, "rope_theta": 1e3}),
    ),
    "olmo2": ("olmo2", dict(rope_parameters=PLAIN)),
    "deepseek-v2": (
        "deepseek_v2",
        dict(
            DEEPSEEK,
            n_group=1,
            topk_group=1,
            q_lora_rank=32,
            topk_method="greedy",
            n_shared_experts=2,
            rope_parameters={**YARN, "mscale": 0.7, "mscale_all_dim": 0.7, "rope_theta": 1e3},
        ),
    ),
    "deepseek-v3": (
        "deepseek_v3",
        dict(DEEPSEEK, q_lora_rank=32, n_shared_experts=1, num_nextn_predict_layers=0, rope_parameters=PLAIN),
    ),
    "smollm3": ("smollm3", dict(num_hidden_layers=5, rope_parameters=PLAIN)),
    "granite": (
        "granite",
        dict(
            attention_bias=True,
            embedding_multiplier=3.0,
            attention_multiplier=0.5,
            residual_multiplier=0.4,
            logits_scaling=0.5,
            rope_parameters=PLAIN,
        ),
    ),
    "seed-oss": ("seed_oss", dict(head_dim=32, rope_parameters=PLAIN)),
    "ernie4-5": ("ernie4_5", dict(head_dim=32, rope_parameters=PLAIN)),
    "glm4": ("glm4", dict(head_dim=32, rope_parameters={**PLAIN, "partial_rotary_factor": 0.5})),
    "hunyuan": ("hunyuan_v1_dense", dict(head_dim=32, rope_parameters=PLAIN)),
    "gpt2": ("gpt2", dict(n_embd=64, n_layer=2, n_head=4, n_positions=128, n_inner=96, vocab_size=300)),
}


def config_of(name: str, **more) -> ModelConfig:
    model_type, keys = MODELS[name]
    sizes = {} if model_type == "gpt2" else SIZES
    return model_config({**sizes, "model_type": model_type, **keys, **more}, ())


def parameters_of(config: ModelConfig, dtype=jnp.float32, seed: int = 0) -> nnx.State:
    """Random parameters of a dtype, of the sizes that a trained model has."""
    rng, abstract = np.random.default_rng(seed), skeleton(config)[1]

    def drawn(name: str, x: jax.ShapeDtypeStruct) -> jax.Array:
        noise = rng.standard_normal(x.shape).astype(np.float32)
        if name.endswith(("scale", "bias")):
            center = 0.0 if name.endswith("bias") or config.norm_plus_one else 1.0
            center += 1.5 if name == "norm.scale" and config.tie_embeddings else 0.0
            return jax.device_put((center + 0.2 * noise).astype(dtype))
        inputs = x.shape[-1] if "embedding" in name else np.prod(x.shape[1:]) / x.shape[-1] or 1
        # A tied embedding is small, or a token would predict itself for ever.
        scale = (0.4 / inputs**0.5 if config.tie_embeddings else 1.0) if "embedding" in name else 1.5 / inputs**0.5
        return jax.device_put((noise * scale).astype(dtype))

    return unplain(abstract, nested({name: drawn(name, x) for name, x in named(plain(abstract)).items()}))


def written(workdir: Path, name: str, dtype=jnp.float32, **more) -> nnx.State:
    """Write a workdir with such a model. Returns its parameters."""
    config = config_of(name, **more)
    params = parameters_of(config, dtype)
    workdir.mkdir()
    write_workdir(workdir, config, params, published={"model_type": MODELS[name][0]})
    return params
