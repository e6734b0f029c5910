"""Mistral: Llama with a sliding window on all layers or on none."""

from collections.abc import Mapping

from lm.config import ModelConfig
from lm.convert.llama import decoder, described, ends, ignored, refuse, rows, window_of, windows

__all__ = ["MODEL_TYPES", "from_hf", "to_hf", "rows", "ends", "ignored"]

MODEL_TYPES = ("mistral",)

DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "sliding_window": 4096,
}


def from_hf(hf: Mapping) -> ModelConfig:
    hf = {**DEFAULTS, **hf}
    every = "sliding_attention" if hf["sliding_window"] else "full_attention"
    refuse(hf, layer_types=[every] * hf["num_hidden_layers"])
    return decoder(hf, **windows(hf["sliding_window"]))


def to_hf(config: ModelConfig) -> dict:
    return {**described(config, "mistral", "MistralForCausalLM"), "sliding_window": window_of(config)}
