"""Mixtral: Mistral with mixture-of-experts feed-forwards (Jiang et al. 2024)."""

from collections.abc import Mapping

from lm.config import LayerKind, ModelConfig
from lm.convert.llama import attention, decoder, described, ends, experts, ignored, pre_norms, window_of, windows
from lm.convert.rotary import rope_of
from lm.convert.rows import Row

__all__ = ["MODEL_TYPES", "from_hf", "to_hf", "rows", "ends", "ignored"]

MODEL_TYPES = ("mixtral",)

DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "sliding_window": None,
    "num_experts_per_tok": 2,
    "num_local_experts": 8,
}


def from_hf(hf: Mapping) -> ModelConfig:
    hf = {**DEFAULTS, **hf}
    moe = {"num_experts": hf["num_local_experts"], "top_k": hf["num_experts_per_tok"]}
    rope = rope_of(hf, theta=1e6)
    return decoder(hf, rope=rope, mlp_pattern=("moe",), moe=moe, **windows(hf["sliding_window"]))


def to_hf(config: ModelConfig) -> dict:
    return {
        **described(config, "mixtral", "MixtralForCausalLM"),
        "intermediate_size": config.moe.expert_dim or config.mlp_dim,
        "num_local_experts": config.moe.num_experts,
        "num_experts_per_tok": config.moe.top_k,
        "sliding_window": window_of(config),
    }


def rows(config: ModelConfig, kind: LayerKind) -> list[Row]:
    mixture = experts(config, "model.layers.{layer}.block_sparse_moe.", "gate", ("w1", "w3", "w2"))
    return [*attention(config), *pre_norms(config), *mixture]
