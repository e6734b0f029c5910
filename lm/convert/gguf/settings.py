"""Convert between the settings of a GGUF file and config.json, and between them and the rotary factors that are tensors.

A GGUF architecture is a program of llama.cpp. What that program does always (Gemma's alternating windows, SiLU in Llama) is no
setting of the file. So export writes the settings, reads them back, and refuses a model that comes back different.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lm.config import ModelConfig
from lm.convert.essence import differences
from lm.convert.families import TEXT, model_config
from lm.convert.gguf.rope import scaling_of, scaling_settings
from lm.convert.gguf.values import Settings
from lm.errors import UserError
from lm.files.gguf import GGUFFile, StoredTensor

GATES = {"softmax": 1, "sigmoid": 2}  # expert_gating_func
LITE = (26, 27)  # layers of DeepSeek-V2-Lite and its like, by which llama.cpp knows that queries are not compressed
LARGEST_GEMMA = {"gemma2": 46, "gemma3": 62}  # layers of the 27B models, whose queries llama.cpp scales by the model's width


def config_json_of(file: GGUFFile) -> dict:
    """Return the config.json that describes the model of a file.

    Raises: UserError if no family reads its architecture, or a setting is missing or of the wrong kind.
    """
    s, tensors = Settings(file), file.tensors
    known = dict.fromkeys(family.gguf for family in TEXT)
    if s.architecture not in known:
        raise UserError(f"{file.path}: general.architecture={s.architecture!r} is none of {', '.join(known)}")
    if len(getattr(tensors.get("token_embd.weight"), "shape", ())) != 2:
        raise UserError(f"{file.path} holds no language model: it has no matrix token_embd.weight")
    _check_counts(s, tensors)
    matrices = [tensor.type for tensor in tensors.values() if len(tensor.shape) > 1]
    heads, width = s.get("attention.head_count", int), s.get("embedding_length", int)
    if not heads:
        raise UserError(f"{file.path}: {s.architecture}.attention.head_count=0 must be at least 1")
    theta = s.get("rope.freq_base", float, 10_000.0)
    if not theta:
        raise UserError(f"{file.path}: {s.architecture}.rope.freq_base=0 must be above 0")
    hf = {
        "vocab_size": tensors["token_embd.weight"].shape[0],
        "hidden_size": width,
        "intermediate_size": s.get("feed_forward_length", int, 0),
        "num_hidden_layers": s.get("block_count", int),
        "num_attention_heads": heads,
        "num_key_value_heads": s.get("attention.head_count_kv", int, heads),
        "head_dim": s.get("attention.key_length", int, width // heads),
        "max_position_embeddings": s.get("context_length", int),
        "tie_word_embeddings": "output.weight" not in tensors,
        "rope_theta": theta,
        "dtype": "bfloat16" if matrices.count("BF16") > len(matrices) / 2 else "float32",
    }
    if s.architecture == "gpt2":
        return _gpt2(s, hf)
    hf["rms_norm_eps"] = s.get("attention.layer_norm_rms_epsilon", float)
    if scaling := scaling_of(s, hf, tensors):
        hf["rope_scaling"] = scaling
    experts = s.get("expert_count", int, 0)
    more = {
        "llama": lambda: _llama(s, tensors, experts),
        "qwen2": lambda: {"model_type": "qwen2"},
        "qwen3": lambda: {"model_type": "qwen3", "attention_bias": "blk.0.attn_q.bias" in tensors},
        "qwen3moe": lambda: _qwen3_moe(s, experts),
        "gemma2": lambda: _gemma(s, hf, "gemma2"),
        "gemma3": lambda: _gemma(s, hf, "gemma3_text"),
        "phi3": lambda: _phi3(s, hf),
        "olmo2": lambda: {"model_type": "olmo2", "attention_bias": "blk.0.attn_q.bias" in tensors},
        "deepseek2": lambda: _deepseek(s, hf, experts),
    }
    return hf | more[s.architecture]()


def _check_counts(s: Settings, tensors: Mapping[str, StoredTensor]) -> None:
    """Raise UserError for more layers or experts than the tensors can hold, before a list of them is made."""
    layers, experts = s.get("block_count", int), s.get("expert_count", int, 0)
    if layers > len(tensors):
        raise UserError(f"{s.path}: {s.architecture}.block_count={layers}, but the file has only {len(tensors)} tensors")
    if experts and not any(tensor.shape[0] == experts for tensor in tensors.values() if len(tensor.shape) == 3):
        raise UserError(f"{s.path}: {s.architecture}.expert_count={experts}, but no tensor holds so many experts")


def _llama(s: Settings, tensors: Mapping, experts: int) -> dict:
    if experts:
        return {"model_type": "mixtral", "num_local_experts": experts, "num_experts_per_tok": s.get("expert_used_count", int)}
    biases = {"attention_bias": "blk.0.attn_q.bias" in tensors, "mlp_bias": "blk.0.ffn_down.bias" in tensors}
    return {"model_type": "llama", **biases}


def _qwen3_moe(s: Settings, experts: int) -> dict:
    return {
        "model_type": "qwen3_moe",
        "num_experts": experts,
        "num_experts_per_tok": s.get("expert_used_count", int),
        "moe_intermediate_size": s.get("expert_feed_forward_length", int),
        "norm_topk_prob": True,
    }


def _gemma(s: Settings, hf: dict, model_type: str) -> dict:
    wide = hf["num_hidden_layers"] == LARGEST_GEMMA[s.architecture]
    found = {
        "model_type": model_type,
        "query_pre_attn_scalar": hf["hidden_size"] / hf["num_attention_heads"] if wide else hf["head_dim"],
        "sliding_window": s.get("attention.sliding_window", int),
        "final_logit_softcapping": s.get("final_logit_softcapping", float, 0.0) or None,
        "attn_logit_softcapping": s.get("attn_logit_softcapping", float, 0.0) or None,
    }
    if s.architecture == "gemma3":
        found["sliding_window_pattern"] = s.get("attention.sliding_window_pattern", int, 6)
        found["rope_theta"] = s.get("rope.freq_base", float, 1e6)
        found["rope_local_base_freq"] = s.get("rope.freq_base_swa", float, 10_000.0)
    return found


def _phi3(s: Settings, hf: dict) -> dict:
    rotated = s.get("rope.dimension_count", int, hf["head_dim"])
    return {
        "model_type": "phi3",
        "partial_rotary_factor": rotated / max(1, hf["head_dim"]),
        "sliding_window": s.get("attention.sliding_window", int, 0) or None,
        "original_max_position_embeddings": s.get("rope.scaling.original_context_length", int, hf["max_position_embeddings"]),
    }


def _deepseek(s: Settings, hf: dict, experts: int) -> dict:
    gate = s.get("expert_gating_func", int, GATES["softmax"])
    if gate not in GATES.values():
        raise UserError(f"{s.path}: deepseek2.expert_gating_func={gate} is neither softmax (1) nor sigmoid (2)")
    v3, rotated = gate == GATES["sigmoid"], s.get("rope.dimension_count", int)
    normalize, groups = s.get("expert_weights_norm", bool, v3), s.get("expert_group_count", int, 0)
    if normalize and not v3:
        raise UserError(f"{s.path}: deepseek2.expert_weights_norm with softmax gates cannot be expressed")
    found = {
        "model_type": "deepseek_v3" if v3 else "deepseek_v2",
        "num_key_value_heads": hf["num_attention_heads"],
        "q_lora_rank": s.get("attention.q_lora_rank", int, 0) or None,
        "kv_lora_rank": s.get("attention.kv_lora_rank", int),
        "qk_rope_head_dim": rotated,
        "qk_nope_head_dim": s.get("attention.key_length_mla", int, hf["head_dim"]) - rotated,
        "v_head_dim": s.get("attention.value_length_mla", int, s.get("attention.value_length", int, 0)),
        "first_k_dense_replace": s.get("leading_dense_block_count", int, 0),
        "n_routed_experts": experts,
        "num_experts_per_tok": s.get("expert_used_count", int, 1),
        "n_shared_experts": s.get("expert_shared_count", int, 0),
        "moe_intermediate_size": s.get("expert_feed_forward_length", int, hf["intermediate_size"]),
        "routed_scaling_factor": s.get("expert_weights_scale", float, 1.0),
        "norm_topk_prob": normalize,
        "n_group": groups or 1,
        "topk_group": s.get("expert_group_used_count", int, 0) or 1,
        "topk_method": "noaux_tc" if v3 else "group_limited_greedy" if groups > 1 else "greedy",
        "num_nextn_predict_layers": 0,
    }
    del hf["head_dim"]
    return found


def _gpt2(s: Settings, hf: dict) -> dict:
    return {
        "model_type": "gpt2",
        "vocab_size": hf["vocab_size"],
        "n_positions": hf["max_position_embeddings"],
        "n_embd": hf["hidden_size"],
        "n_layer": hf["num_hidden_layers"],
        "n_head": hf["num_attention_heads"],
        "n_inner": hf["intermediate_size"] or None,
        "layer_norm_epsilon": s.get("attention.layer_norm_epsilon", float),
        "tie_word_embeddings": hf["tie_word_embeddings"],
        "dtype": hf["dtype"],
    }


def settings_of(config: ModelConfig, arch: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the settings of a model of this architecture, and its rotary factors: tensors by name, float32.

    The reverse of `config_json_of`; check the result with `check_same`.
    """
    rope, moe, mla = config.rope, config.moe, config.mla
    K, heads, sparse = config.head_dim, config.num_heads, any(kind.moe for kind in config.layer_kinds)
    found: dict[str, Any] = {
        "block_count": config.num_layers,
        "context_length": config.max_positions,
        "embedding_length": config.embed_dim,
        "feed_forward_length": config.mlp_dim,
        "attention.head_count": heads,
        "attention.head_count_kv": config.num_kv_heads,
        "vocab_size": config.vocab_size,
    }
    if arch == "gpt2":
        return _named(arch, found | {"attention.layer_norm_epsilon": config.norm_eps}), {}
    found |= {"attention.layer_norm_rms_epsilon": config.norm_eps, "rope.freq_base": float(rope.theta)}
    if mla.kv_rank:
        found |= _latent_settings(config)
    else:
        rotated = round(K * rope.fraction)
        found |= {"attention.key_length": K, "attention.value_length": K, "rope.dimension_count": rotated}
    if sparse:
        F = moe.expert_dim or config.mlp_dim
        found |= {"expert_count": moe.num_experts, "expert_used_count": moe.top_k}
        found |= {"feed_forward_length": F} if arch == "llama" else {"expert_feed_forward_length": F}
    if arch == "deepseek2":
        v3 = not sparse or moe.scores == "sigmoid"
        found |= {
            "expert_shared_count": moe.shared_dim // (moe.expert_dim or config.mlp_dim),
            "expert_weights_scale": float(moe.weight_scale),
            "expert_weights_norm": moe.normalize,
            "expert_gating_func": GATES["sigmoid" if v3 else "softmax"],
        }
        if moe.num_groups > 1:
            found |= {"expert_group_count": moe.num_groups, "expert_group_used_count": moe.top_groups}
    if arch in ("gemma2", "gemma3", "phi3") and config.window:
        found["attention.sliding_window"] = config.window
    if arch == "gemma3":
        found["rope.freq_base_swa"] = float(config.local_rope.theta)
    for name, cap in (("attn_logit", config.attention_softcap), ("final_logit", config.logit_softcap)):
        found |= {f"{name}_softcapping": float(cap)} if cap else {}
    scaling, tensors = scaling_settings(config, arch)
    return _named(arch, found | scaling), tensors


def _latent_settings(config: ModelConfig) -> dict[str, Any]:
    """Return the settings of latent attention."""
    mla = config.mla
    if config.norm_eps != mla.norm_eps:
        raise UserError(f"model.norm_eps={config.norm_eps}: llama.cpp uses it for latents too, which have {mla.norm_eps}")
    # llama.cpp multiplies the key's up-projection into the query: one key head of the latent's width.
    found = {
        "attention.head_count_kv": 1,
        "attention.key_length": mla.kv_rank + mla.rope_head_dim,
        "attention.value_length": mla.kv_rank,
        "attention.key_length_mla": config.head_dim + mla.rope_head_dim,
        "attention.value_length_mla": mla.value_head_dim,
        "attention.kv_lora_rank": mla.kv_rank,
        "rope.dimension_count": mla.rope_head_dim,
        "leading_dense_block_count": next((i for i, kind in enumerate(config.layer_kinds) if kind.moe), config.num_layers),
    }
    if mla.query_rank:
        found["attention.q_lora_rank"] = mla.query_rank
    elif config.num_layers not in LITE:
        raise UserError(f"model.mla.query_rank=0: llama.cpp runs such a model only with {' or '.join(map(str, LITE))} layers")
    return found


def _named(arch: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {"general.architecture": arch} | {f"{arch}.{key}": value for key, value in settings.items()}


def check_same(config: ModelConfig, arch: str, file: GGUFFile) -> None:
    """Raise UserError if llama.cpp would compute another function: if the file, read back, is not this model."""
    lost = differences(config, model_config(config_json_of(file), ()), _same)
    if lost:
        raise UserError(f"GGUF's architecture {arch} cannot hold this model: it lacks {', '.join(lost)}")


def _same(one: Any, other: Any) -> bool:
    """Return whether two values are equal in float32."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, float) or isinstance(other, float):
        return bool(np.isclose(float(one), float(other), rtol=1e-6, atol=0))
    return one == other
