"""OLMo 2: norms after each sublayer, and QK-norm over all heads together (OLMo et al. 2024)."""

from collections.abc import Mapping

from lm.config import LayerKind, ModelConfig
from lm.convert.llama import attention, decoder, described, ends, feed_forward, ignored
from lm.convert.rows import Row, same

__all__ = ["MODEL_TYPES", "from_hf", "to_hf", "rows", "ends", "ignored"]

MODEL_TYPES = ("olmo2",)

DEFAULTS = {
    "vocab_size": 50304,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "attention_bias": False,
}


def from_hf(hf: Mapping) -> ModelConfig:
    hf = {**DEFAULTS, **hf}
    bias = bool(hf["attention_bias"])
    return decoder(hf, norm_position="post", qk_norm="full", qkv_bias=bias, output_bias=bias)


def to_hf(config: ModelConfig) -> dict:
    return {**described(config, "olmo2", "Olmo2ForCausalLM"), "attention_bias": config.qkv_bias}


def rows(config: ModelConfig, kind: LayerKind) -> list[Row]:
    D, at = config.embed_dim, "model.layers.{layer}."
    norms = [
        same("post_attention_norm.scale", f"{at}post_attention_layernorm.weight", D),
        same("post_feed_forward_norm.scale", f"{at}post_feedforward_layernorm.weight", D),
    ]
    return [*attention(config), *norms, *feed_forward(config)]
