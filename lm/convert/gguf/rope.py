"""Rotary scaling in a GGUF file: settings for linear and YaRN, tensors of factors for LongRoPE and Llama 3."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from lm.config import ModelConfig, Rope
from lm.convert.gguf.values import Settings, decimal
from lm.errors import UserError
from lm.files.gguf import StoredTensor

LONG, SHORT, FREQUENCIES = "rope_factors_long.weight", "rope_factors_short.weight", "rope_freqs.weight"
FACTORS = (LONG, SHORT, FREQUENCIES)


def scaling_of(s: Settings, hf: dict, tensors: Mapping[str, StoredTensor]) -> dict | None:
    """Return `rope_scaling` for config.json, or None if positions are not scaled."""
    longest = hf["max_position_embeddings"]
    original = s.get("rope.scaling.original_context_length", int, longest)
    if LONG in tensors or SHORT in tensors:
        factors = {key: _factors(tensors, name, s.path) for key, name in (("long_factor", LONG), ("short_factor", SHORT))}
        usual = Rope(scaling="longrope", factor=longest / max(1, original), original_positions=original)
        attention = s.get("rope.scaling.attn_factor", float, _longrope_attention(usual))
        return {
            "rope_type": "longrope",
            "original_max_position_embeddings": original,
            "attention_factor": None if math.isclose(attention, _longrope_attention(usual), rel_tol=1e-6) else attention,
            **factors,
        }
    if FREQUENCIES in tensors:
        return llama3_scaling(_factors(tensors, FREQUENCIES, s.path), hf["rope_theta"], s.path)
    kind, factor = s.get("rope.scaling.type", str, "none"), s.get("rope.scaling.factor", float, 0.0)
    if kind == "none" or not factor:
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind != "yarn":
        raise UserError(f"{s.path}: {s.architecture}.rope.scaling.type={kind!r} is none of none, linear, yarn")
    found = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    found |= {key: s.get(f"rope.scaling.yarn_{key}", float, usual) for key, usual in (("beta_fast", 32.0), ("beta_slow", 1.0))}
    if s.architecture == "deepseek2":
        mscale = round(10 * s.get("rope.scaling.yarn_log_multiplier", float, 0.0), 6)
        return found | {"mscale": mscale, "mscale_all_dim": mscale}
    attention = s.get("rope.scaling.attn_factor", float, 1.0)
    return found | ({} if attention == 1 else {"attention_factor": decimal(attention * _yarn_attention(factor))})


def _factors(tensors: Mapping[str, StoredTensor], name: str, path) -> list[float]:
    if name not in tensors or tensors[name].dtype != np.float32 or len(tensors[name].shape) != 1:
        raise UserError(f"{path}: {name} is missing, or is no list of float32")
    found = [decimal(x) for x in tensors[name].read()]
    if not all(0 < x < math.inf for x in found):
        raise UserError(f"{path}: {name} holds numbers that are not above 0")
    return found


def _yarn_attention(factor: float) -> float:
    """Return the factor of cosines and sines that llama.cpp applies by itself (Peng et al. 2023, YaRN, equation 22)."""
    return 0.1 * math.log(factor) + 1 if factor > 1 else 1.0


def _longrope_attention(rope: Rope) -> float:
    """Return the usual factor of cosines and sines (Ding et al. 2024, LongRoPE; as in Phi-3's own code)."""
    if rope.factor <= 1 or rope.original_positions < 2:
        return 1.0
    return math.sqrt(1 + math.log(rope.factor) / math.log(rope.original_positions))


def llama3_factors(rope: Rope, head_dim: int) -> list[float]:
    """Return what Llama 3's scaling divides each frequency by, [K/2].

    1 for wavelengths below original / high_freq_factor, `factor` above original / low_freq_factor; between them the frequency
    is interpolated.
    """
    wavelengths = 2 * math.pi * rope.theta ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = (rope.original_positions / wavelengths - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    smooth = np.clip(smooth, 0, 1)
    return (1 / ((1 - smooth) / rope.factor + smooth)).tolist()


def llama3_scaling(factors: list[float], theta: float, path) -> dict:
    """Return Llama 3's `rope_scaling` from its factors; the inverse of `llama3_factors`.

    The file does not hold the other numbers. low_freq_factor is 1 and high_freq_factor 4, as in all published models, and the
    original context, 8192 tokens in these, is the power of two that gives the factors.
    """
    for original in (8192, *(1 << n for n in range(4, 24))):
        rope = Rope(theta=theta, scaling="llama3", factor=max(factors), original_positions=original)
        if rope.factor > 1 and np.allclose(llama3_factors(rope, 2 * len(factors)), factors, rtol=1e-4):
            return {
                "rope_type": "llama3",
                "factor": rope.factor,
                "low_freq_factor": rope.low_freq_factor,
                "high_freq_factor": rope.high_freq_factor,
                "original_max_position_embeddings": original,
            }
    raise UserError(f"{path}: the factors in {FREQUENCIES} are not those of Llama 3's scaling of a power of two of positions")


def scaling_settings(config: ModelConfig, arch: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    rope = config.rope
    if rope.scaling == "none":
        return {}, {}
    if rope.scaling == "linear":
        return {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope.factor)}, {}
    if rope.scaling == "llama3":
        return {}, {FREQUENCIES: np.asarray(llama3_factors(rope, config.head_dim), np.float32)}
    if rope.scaling == "longrope":
        found = {
            "rope.scaling.original_context_length": rope.original_positions,
            "rope.scaling.attn_factor": float(rope.attention_factor or _longrope_attention(rope)),
        }
        factors = {LONG: rope.long_factor, SHORT: rope.short_factor}
        return found, {name: np.asarray(values, np.float32) for name, values in factors.items()}
    if rope.scaling != "yarn":
        raise UserError(f"model.rope.scaling={rope.scaling} has no form in GGUF")
    found = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": float(rope.factor),
        "rope.scaling.original_context_length": rope.original_positions,
        "rope.scaling.yarn_beta_fast": float(rope.beta_fast),
        "rope.scaling.yarn_beta_slow": float(rope.beta_slow),
    }
    if arch == "deepseek2":
        found["rope.scaling.yarn_log_multiplier"] = 0.1 * rope.mscale_all_dim
    elif rope.attention_factor:
        found["rope.scaling.attn_factor"] = rope.attention_factor / _yarn_attention(rope.factor)
    return found, {}
