"""Convert between the settings of a GGUF file and config.json.

A GGUF architecture is a program of llama.cpp. What that program does always (Gemma's alternating windows, SiLU in Llama) is no
setting of the file. So export writes the settings, reads them back, and refuses a model that comes back different.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from lm.config import ModelConfig
from lm.convert.essence import differences
from lm.convert.families import TEXT, model_config
from lm.convert.gguf.rope import scaling_of, scaling_settings
from lm.convert.gguf.values import REQUIRED, Settings
from lm.convert.rows import Family
from lm.errors import UserError
from lm.files.gguf import GGUFFile, StoredTensor


class Key(NamedTuple):
    """The key of config.json that a setting is. default: of a file without it; a function gets the keys before it."""

    name: str
    kind: type = int
    default: Any = REQUIRED


ARCHITECTURES = dict.fromkeys(family.gguf for family in TEXT) | {family.gguf: family.name for family in reversed(TEXT)}
ARCHITECTURES.pop("", None)  # of families without
# The settings of every architecture but GPT-2's, in the order in which they are written; then those of each family.
SHARED = {
    "block_count": Key("num_hidden_layers"),
    "context_length": Key("max_position_embeddings"),
    "embedding_length": Key("hidden_size"),
    "feed_forward_length": Key("intermediate_size", int, 0),
    "attention.head_count": Key("num_attention_heads"),
    "attention.head_count_kv": Key("num_key_value_heads", int, lambda hf: hf["num_attention_heads"]),
    "vocab_size": Key("vocab_size", int, 0),
    "attention.layer_norm_rms_epsilon": Key("rms_norm_eps", float),
    "rope.freq_base": Key("rope_theta", float, 10_000.0),
    "attention.key_length": Key("head_dim", int, lambda hf: hf["hidden_size"] // hf["num_attention_heads"]),
}
GPT2 = {
    "block_count": Key("n_layer"),
    "context_length": Key("n_positions"),
    "embedding_length": Key("n_embd"),
    "feed_forward_length": Key("n_inner", int, 0),
    "attention.head_count": Key("n_head"),
    "attention.head_count_kv": Key("n_head_kv", int, lambda hf: hf["n_head"]),  # never read: it is n_head
    "vocab_size": Key("vocab_size", int, 0),
    "attention.layer_norm_epsilon": Key("layer_norm_epsilon", float),
}
GEMMA = {
    "attention.sliding_window": Key("sliding_window"),
    "attn_logit_softcapping": Key("attn_logit_softcapping", float, 0.0),
    "final_logit_softcapping": Key("final_logit_softcapping", float, 0.0),
}
OF_FAMILY = {
    "mixtral": {"expert_count": Key("num_local_experts"), "expert_used_count": Key("num_experts_per_tok")},
    "qwen3_moe": {
        "expert_count": Key("num_experts"),
        "expert_used_count": Key("num_experts_per_tok"),
        "expert_feed_forward_length": Key("moe_intermediate_size"),
    },
    "gemma2": GEMMA,
    "gemma3_text": {
        "rope.freq_base": Key("rope_theta", float, 1e6),
        "attention.sliding_window": Key("sliding_window"),
        "rope.freq_base_swa": Key("rope_local_base_freq", float, 10_000.0),
        "attention.sliding_window_pattern": Key("sliding_window_pattern", int, 6),  # not written: llama.cpp takes 6
        **GEMMA,
    },
    "granite": {
        "attention.scale": Key("attention_multiplier", float, lambda hf: hf["head_dim"] ** -0.5),
        "embedding_scale": Key("embedding_multiplier", float, 1.0),
        "residual_scale": Key("residual_multiplier", float, 1.0),
        "logit_scale": Key("logits_scaling", float, 1.0),
    },
    "phi3": {"attention.sliding_window": Key("sliding_window", int, 0)},
    "deepseek_v3": {
        "attention.value_length_mla": Key("v_head_dim", int, 0),
        "attention.kv_lora_rank": Key("kv_lora_rank"),
        "rope.dimension_count": Key("qk_rope_head_dim"),
        "leading_dense_block_count": Key("first_k_dense_replace", int, 0),
        "attention.q_lora_rank": Key("q_lora_rank", int, 0),
        "expert_count": Key("n_routed_experts", int, 0),
        "expert_used_count": Key("num_experts_per_tok", int, 1),
        "expert_feed_forward_length": Key("moe_intermediate_size", int, lambda hf: hf["intermediate_size"]),
        "expert_shared_count": Key("n_shared_experts", int, 0),
        "expert_weights_scale": Key("routed_scaling_factor", float, 1.0),
        "expert_weights_norm": Key("norm_topk_prob", bool, None),
    },
}
OF_EXPERTS = ("expert_count", "expert_used_count", "expert_feed_forward_length")  # not written for a model without experts
GATES = {"softmax": 1, "sigmoid": 2}  # expert_gating_func
LITE = (26, 27)  # layers of DeepSeek-V2-Lite and its like, by which llama.cpp knows that queries are not compressed
LARGEST_GEMMA = {"gemma2": 46, "gemma3": 62}  # layers of the 27B models, whose queries llama.cpp scales by the model's width


def config_json_of(file: GGUFFile) -> dict:
    """Return the config.json that describes the model of a file.

    Raises: UserError if no family reads its architecture, or a setting is missing or of the wrong kind.
    """
    s, tensors = Settings(file), file.tensors
    if s.architecture not in ARCHITECTURES:
        raise UserError(f"{file.path}: general.architecture={s.architecture!r} is none of {', '.join(ARCHITECTURES)}")
    if len(getattr(tensors.get("token_embd.weight"), "shape", ())) != 2:
        raise UserError(f"{file.path} holds no language model: it has no matrix token_embd.weight")
    _check_counts(s, tensors)
    is_mixtral = s.architecture == "llama" and s.get("expert_count", int, 0)
    hf: dict[str, Any] = {"model_type": "mixtral" if is_mixtral else ARCHITECTURES[s.architecture]}
    shared = GPT2 if s.architecture == "gpt2" else SHARED
    for name, key in (shared | OF_FAMILY.get(hf["model_type"], {})).items():
        hf[key.name] = s.get(name, key.kind, key.default(hf) if callable(key.default) else key.default)
        if name in ("attention.head_count", "rope.freq_base") and not hf[key.name]:
            raise UserError(f"{file.path}: {s.architecture}.{name}=0 must be above 0")
    matrices = [tensor.type for tensor in tensors.values() if len(tensor.shape) > 1]
    hf |= {
        "vocab_size": tensors["token_embd.weight"].shape[0],
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "mlp_bias": "blk.0.ffn_down.bias" in tensors,
        "dtype": "bfloat16" if matrices.count("BF16") > len(matrices) / 2 else "float32",
    }
    if s.architecture == "gpt2":
        return hf
    if scaling := scaling_of(s, hf, tensors):
        hf["rope_scaling"] = scaling
    if s.architecture in LARGEST_GEMMA:
        wide = hf["num_hidden_layers"] == LARGEST_GEMMA[s.architecture]
        hf["query_pre_attn_scalar"] = hf["hidden_size"] / hf["num_attention_heads"] if wide else hf["head_dim"]
    elif s.architecture in ("phi3", "glm4"):
        hf["partial_rotary_factor"] = s.get("rope.dimension_count", int, hf["head_dim"]) / max(1, hf["head_dim"])
    if s.architecture == "phi3":
        original = s.get("rope.scaling.original_context_length", int, hf["max_position_embeddings"])
        hf["original_max_position_embeddings"] = original
    if s.architecture == "qwen3moe":
        hf["norm_topk_prob"] = True
    elif s.architecture == "deepseek2":
        hf |= _deepseek(s, hf)
    return hf


def _check_counts(s: Settings, tensors: Mapping[str, StoredTensor]) -> None:
    """Raise UserError for more layers or experts than the tensors can hold, before a list of them is made."""
    layers, experts = s.get("block_count", int), s.get("expert_count", int, 0)
    if layers > len(tensors):
        raise UserError(f"{s.path}: {s.architecture}.block_count={layers}, but the file has only {len(tensors)} tensors")
    if experts and not any(tensor.shape[0] == experts for tensor in tensors.values() if len(tensor.shape) == 3):
        raise UserError(f"{s.path}: {s.architecture}.expert_count={experts}, but no tensor holds so many experts")


def _deepseek(s: Settings, hf: Mapping) -> dict[str, Any]:
    gate = s.get("expert_gating_func", int, GATES["softmax"])
    if gate not in GATES.values():
        raise UserError(f"{s.path}: deepseek2.expert_gating_func={gate} is neither softmax (1) nor sigmoid (2)")
    v3 = gate == GATES["sigmoid"]
    if hf["norm_topk_prob"] and not v3:
        raise UserError(f"{s.path}: deepseek2.expert_weights_norm with softmax gates cannot be expressed")
    groups = s.get("expert_group_count", int, 0)
    return {
        "model_type": "deepseek_v3" if v3 else "deepseek_v2",
        "num_key_value_heads": hf["num_attention_heads"],
        "head_dim": None,
        "qk_nope_head_dim": s.get("attention.key_length_mla", int, hf["head_dim"]) - hf["qk_rope_head_dim"],
        "v_head_dim": hf["v_head_dim"] or s.get("attention.value_length", int, 0),
        "norm_topk_prob": v3 if hf["norm_topk_prob"] is None else hf["norm_topk_prob"],
        "n_group": groups or 1,
        "topk_group": s.get("expert_group_used_count", int, 0) or 1,
        "topk_method": "noaux_tc" if v3 else "group_limited_greedy" if groups > 1 else "greedy",
        "num_nextn_predict_layers": 0,
    }


def settings_of(config: ModelConfig, family: Family) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the settings of a model of this family, and its rotary factors: tensors by name, float32.

    The reverse of `config_json_of`; check the result with `check_same`. The family must have a form in GGUF.
    """
    hf, arch, sparse = family.to_hf(config), family.gguf, any(kind.moe for kind in config.layer_kinds)

    def written(keys: Mapping[str, Key]) -> dict[str, Any]:
        used = {name: key for name, key in keys.items() if sparse or name not in OF_EXPERTS}
        return {name: key.kind(hf[key.name]) for name, key in used.items() if hf.get(key.name) is not None}

    if arch == "gpt2":
        hf = hf | {"n_head_kv": hf["n_head"]}
        return _named(arch, written(GPT2)), {}
    found = written(SHARED)
    if config.mla.kv_rank:
        found |= _latent_settings(config)
    else:
        found |= {
            "attention.value_length": config.head_dim,
            "rope.dimension_count": round(config.head_dim * config.rope.fraction),
        }
    found |= written(OF_FAMILY.get(family.name, {}))
    if arch == "deepseek2":
        found["expert_gating_func"] = GATES[hf["scoring_func"]]
        if config.moe.num_groups > 1:
            found |= {"expert_group_count": config.moe.num_groups, "expert_group_used_count": config.moe.top_groups}
    scaling, tensors = scaling_settings(config, arch)
    return _named(arch, found | scaling), tensors


def _latent_settings(config: ModelConfig) -> dict[str, Any]:
    """Return the settings of latent attention that are no keys of config.json."""
    mla = config.mla
    if config.norm_eps != mla.norm_eps:
        raise UserError(f"model.norm_eps={config.norm_eps}: llama.cpp uses it for latents too, which have {mla.norm_eps}")
    if not mla.query_rank and config.num_layers not in LITE:
        raise UserError(f"model.mla.query_rank=0: llama.cpp runs such a model only with {' or '.join(map(str, LITE))} layers")
    # llama.cpp multiplies the key's up-projection into the query: one key head of the latent's width.
    return {
        "attention.head_count_kv": 1,
        "attention.key_length": mla.kv_rank + mla.rope_head_dim,
        "attention.value_length": mla.kv_rank,
        "attention.key_length_mla": config.head_dim + mla.rope_head_dim,
    }


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
