"""Qwen 2 and 2.5: Llama with biases on queries, keys and values, and windows on the upper layers."""

from collections.abc import Mapping

from lm.config import ModelConfig
from lm.convert.llama import decoder, described, ends, ignored, layer_types, rows, window_of, windows

__all__ = ["MODEL_TYPES", "from_hf", "to_hf", "rows", "ends", "ignored"]

MODEL_TYPES = ("qwen2",)

DEFAULTS = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}


def from_hf(hf: Mapping) -> ModelConfig:
    hf = {**DEFAULTS, **hf}
    return decoder(hf, qkv_bias=True, **upper_windows(hf))


def to_hf(config: ModelConfig) -> dict:
    return {**described(config, "qwen2", "Qwen2ForCausalLM"), **upper_window_keys(config)}


def upper_windows(hf: Mapping) -> dict:
    """Return attention_pattern and window from `layer_types`, or with a window from layer `max_window_layers` on."""
    window, L = hf["sliding_window"] if hf["use_sliding_window"] else None, hf["num_hidden_layers"]
    globals_first = hf["max_window_layers"] if window else L
    older = ["full_attention" if i < globals_first else "sliding_attention" for i in range(L)]
    return windows(window, hf.get("layer_types") or older)


def upper_window_keys(config: ModelConfig) -> dict:
    window, kinds = window_of(config), config.layer_kinds
    return {
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "layer_types": layer_types(config),
        "max_window_layers": next((i for i, kind in enumerate(kinds) if kind.local), config.num_layers),
    }
