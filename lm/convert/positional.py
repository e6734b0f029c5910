"""Families whose layers differ in their positions: SmolLM3, EXAONE 4, Cohere (Command R, Command A), Ministral 3."""

from collections.abc import Mapping

from lm.config import LayerKind, ModelConfig
from lm.convert import llama
from lm.convert.llama import biases, derived, layer_types, refuse, repeating, window_of, windows
from lm.convert.relatives import MISTRAL, post_norm_rows
from lm.convert.rotary import parameters_for, parameters_of, rope_of
from lm.convert.rows import Row
from lm.errors import UserError


def _smollm3(hf: Mapping) -> dict:
    L, every = hf["num_hidden_layers"], hf["no_rope_layer_interval"]
    rotary = hf["no_rope_layers"] or [(i + 1) % every != 0 for i in range(L)]
    window = hf["sliding_window"] if hf["use_sliding_window"] else None
    kinds = hf["layer_types"] or ["full_attention" if rotary[i] or not window else "sliding_attention" for i in range(L)]
    return {
        "rope": rope_of(hf, theta=2e6),
        "rotary_pattern": repeating(["rotary" if rotary[i] else "none" for i in range(L)]),
        "mlp_bias": bool(hf["mlp_bias"]),
        **biases(hf),
        **windows(window, kinds),
    }


def _smollm3_keys(config: ModelConfig) -> dict:
    return {
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.mlp_bias,
        "no_rope_layers": [int(kind.rotary) for kind in config.layer_kinds],
        "use_sliding_window": window_of(config) is not None,
        "sliding_window": window_of(config),
        "layer_types": layer_types(config),
    }


# Llama without positions on every fourth layer (Bakouch et al. 2025, after RoPE to NoPE and back, Yang et al. 2025).
SMOLLM3 = derived(
    "smollm3",
    "SmolLM3ForCausalLM",
    {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "sliding_window": None,
        "no_rope_layers": None,
        "no_rope_layer_interval": 4,
        "layer_types": None,
    },
    read=_smollm3,
    write=_smollm3_keys,
    gguf="smollm3",
)


def _local_rotary(hf: Mapping, period: int) -> dict:
    """Return the settings of layers of which only local ones rotate. Without `layer_types` each `period`-th is global."""
    older = ["sliding_attention" if (i + 1) % period else "full_attention" for i in range(hf["num_hidden_layers"])]
    kinds = hf.get("layer_types") or older
    rotary = repeating(["rotary" if kind == "sliding_attention" else "none" for kind in kinds])
    return {"rotary_pattern": rotary, **windows(hf["sliding_window"], kinds)}


def _window_keys(config: ModelConfig) -> dict:
    return {"sliding_window": window_of(config), "layer_types": layer_types(config)}


def _exaone4(hf: Mapping) -> dict:
    pattern = hf["sliding_window_pattern"]
    period = len(pattern) if isinstance(pattern, str) else pattern
    layers = _local_rotary(hf, period) if hf["sliding_window"] else windows(None, hf.get("layer_types"))
    return {"norm_position": "post", "qk_norm": "head", **layers}


# Norms after the sublayers, a norm on each head's query and key, and no positions on global layers (LG AI Research 2025).
EXAONE4 = derived(
    "exaone4",
    "Exaone4ForCausalLM",
    {
        "vocab_size": 102400,
        "intermediate_size": 16384,
        "rms_norm_eps": 1e-5,
        "sliding_window": 4096,
        "sliding_window_pattern": 4,
    },
    read=_exaone4,
    write=_window_keys,
    rows=post_norm_rows,
    gguf="",
)

COHERES = {
    "vocab_size": 256000,
    "hidden_size": 8192,
    "intermediate_size": 22528,
    "num_hidden_layers": 40,
    "num_attention_heads": 64,
    "max_position_embeddings": 8192,
    "layer_norm_eps": 1e-5,
    "logit_scale": 0.0625,
    "tie_word_embeddings": True,
    "use_qk_norm": False,
}


def _cohere(hf: Mapping, theta: float = 5e5) -> dict:
    refuse(hf, use_qk_norm=False)
    return {
        "rope": rope_of(hf, theta=theta, interleaved=True),
        "norm": "layer",
        "norm_bias": False,
        "norm_eps": hf["layer_norm_eps"],
        "norm_position": "parallel",
        "logit_scale": hf["logit_scale"],
        **biases(hf),
    }


def _cohere_keys(config: ModelConfig) -> dict:
    return {"attention_bias": config.qkv_bias, "layer_norm_eps": config.norm_eps, "logit_scale": config.logit_scale}


def _cohere_rows(config: ModelConfig, kind: LayerKind) -> list[Row]:
    norm = llama.norms(config, {"attention_norm": "input_layernorm"})
    return [*llama.attention(config), *norm, *llama.feed_forward(config)]


# Attention and feed-forward side by side, after one LayerNorm without bias (Command R).
COHERE = derived("cohere", "CohereForCausalLM", COHERES, read=_cohere, write=_cohere_keys, rows=_cohere_rows, gguf="")
# Command R7B and A: also windows, and no positions on global layers (Cohere et al. 2025).
COHERE2 = derived(
    "cohere2",
    "Cohere2ForCausalLM",
    {**COHERES, "sliding_window": 4096, "sliding_window_pattern": 4},
    read=lambda hf: {**_cohere(hf, theta=1e4), **_local_rotary(hf, hf["sliding_window_pattern"])},
    write=lambda config: {**_cohere_keys(config), **_window_keys(config), "sliding_window": config.window or 4096},
    rows=_cohere_rows,
    gguf="",
)


def _ministral3(hf: Mapping) -> dict:
    parameters = parameters_of(hf) or MINISTRAL3_ROPE
    return {
        "rope": rope_of({**hf, "rope_scaling": None, "rope_parameters": parameters}, theta=1e6),
        "attention_temperature": float(parameters.get("llama_4_scaling_beta") or 0.0),
        "temperature_length": parameters.get("original_max_position_embeddings") or 0,
        **windows(hf["sliding_window"]),
    }


def _ministral3_keys(config: ModelConfig) -> dict:
    parameters = parameters_for(config.rope) | {"llama_4_scaling_beta": config.attention_temperature}
    parameters.setdefault("original_max_position_embeddings", config.temperature_length or config.max_positions)
    return {"rope_parameters": parameters, "rope_scaling": None, "sliding_window": window_of(config)}


MINISTRAL3_ROPE = {
    "rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 16384, "mscale": 1.0,
    "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1,
}  # fmt: skip
# Mistral whose queries grow with their position (Mistral AI 2025).
MINISTRAL3 = derived(
    "ministral3",
    "Ministral3ForCausalLM",
    {
        "vocab_size": 131072,
        "intermediate_size": 14336,
        "num_hidden_layers": 34,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 262144,
        "rms_norm_eps": 1e-5,
        "sliding_window": None,
    },
    read=_ministral3,
    write=_ministral3_keys,
    gguf="",
)


def _mistral3(hf: Mapping) -> ModelConfig:
    text = hf
    if "text_config" in hf:
        text = llama.text_config(hf)
        text["tie_word_embeddings"] = hf.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
    kind = text.get("model_type")
    if kind not in ("mistral", "ministral3"):
        raise UserError(f"model_type={kind!r} of the language model in config.json is neither 'mistral' nor 'ministral3'")
    return (MISTRAL if kind == "mistral" else MINISTRAL3).from_hf(text)


# Mistral Small 3.1, Ministral 3 with images: only the language model is read.
MISTRAL3 = MINISTRAL3._replace(
    model_types=("mistral3",),
    from_hf=_mistral3,
    to_hf=lambda config: (MINISTRAL3 if config.attention_temperature else MISTRAL).to_hf(config),
    ignored=(*llama.LLAMA.ignored, llama.OF_IMAGES),
    canonical=llama.text_name,
)
