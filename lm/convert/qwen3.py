"""Qwen3: Qwen 2 with a norm on each head's query and key instead of biases."""

from collections.abc import Mapping

from lm.config import ModelConfig
from lm.convert.llama import decoder, described, ends, ignored, rows
from lm.convert.qwen2 import DEFAULTS as QWEN2
from lm.convert.qwen2 import upper_window_keys, upper_windows

__all__ = ["MODEL_TYPES", "from_hf", "to_hf", "rows", "ends", "ignored"]

MODEL_TYPES = ("qwen3",)

DEFAULTS = {**QWEN2, "head_dim": 128, "attention_bias": False}


def from_hf(hf: Mapping) -> ModelConfig:
    hf = {**DEFAULTS, **hf}
    bias = bool(hf["attention_bias"])
    return decoder(hf, qk_norm="head", qkv_bias=bias, output_bias=bias, **upper_windows(hf))


def to_hf(config: ModelConfig) -> dict:
    keys = {"attention_bias": config.qkv_bias, **upper_window_keys(config)}
    return {**described(config, "qwen3", "Qwen3ForCausalLM"), **keys}
