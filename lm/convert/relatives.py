"""Families derived from Llama. Each says how it differs: Mistral, Mixtral, Qwen 2, Qwen 3 and its mixtures, OLMo 2, Phi-3."""

from collections.abc import Mapping

from lm.config import LayerKind, ModelConfig, Rope
from lm.convert import llama
from lm.convert.llama import biases, derived, layer_types, refuse, window_of, windows
from lm.convert.rotary import keys_by_kind, parameters_of, rope_of, ropes_of
from lm.convert.rows import Row, linear

# Defaults of transformers' classes, where they are not Llama's.
MISTRALS = {"intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 131072}
QWENS = {
    "vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32, "max_position_embeddings": 32768,
    "use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28,
}  # fmt: skip


def _mistral(hf: Mapping) -> dict:
    every = "sliding_attention" if hf["sliding_window"] else "full_attention"
    refuse(hf, layer_types=[every] * hf["num_hidden_layers"])
    return windows(hf["sliding_window"])


# A sliding window on all layers or on none.
MISTRAL = derived(
    "mistral",
    "MistralForCausalLM",
    {**MISTRALS, "sliding_window": 4096},
    read=_mistral,
    write=lambda config: {"sliding_window": window_of(config)},
)


# Ministral: a window on some layers.
MINISTRAL = derived(
    "ministral",
    "MinistralForCausalLM",
    {**MISTRALS, "sliding_window": 4096},
    read=lambda hf: windows(hf["sliding_window"], hf.get("layer_types")),
    write=lambda config: {"sliding_window": config.window or 4096, "layer_types": layer_types(config)},
    gguf="",
)


def _mixtral(hf: Mapping) -> dict:
    moe = {"num_experts": hf["num_local_experts"], "top_k": hf["num_experts_per_tok"]}
    return {"rope": rope_of(hf, theta=1e6), "mlp_pattern": ("moe",), "moe": moe, **windows(hf["sliding_window"])}


def mixture_keys(config: ModelConfig) -> dict:
    """Return the keys of experts on all layers, by Mixtral's names."""
    return {
        "intermediate_size": config.moe.expert_dim or config.mlp_dim,
        "num_local_experts": config.moe.num_experts,
        "num_experts_per_tok": config.moe.top_k,
    }


def _mixtral_rows(config: ModelConfig, kind: LayerKind) -> list[Row]:
    mixture = llama.experts(config, "model.layers.{layer}.block_sparse_moe.", "gate", ("w1", "w3", "w2"))
    return [*llama.attention(config), *llama.pre_norms(config), *mixture]


# Mistral with a mixture of experts (Jiang et al. 2024).
MIXTRAL = derived(
    "mixtral",
    "MixtralForCausalLM",
    {**MISTRALS, "rms_norm_eps": 1e-5, "sliding_window": None, "num_experts_per_tok": 2, "num_local_experts": 8},
    read=_mixtral,
    write=lambda config: {**mixture_keys(config), "sliding_window": window_of(config)},
    rows=_mixtral_rows,
)


def _upper_windows(hf: Mapping) -> dict:
    """Return attention_pattern and window from `layer_types`, or with a window from layer `max_window_layers` on."""
    window, L = hf["sliding_window"] if hf["use_sliding_window"] else None, hf["num_hidden_layers"]
    globals_first = hf["max_window_layers"] if window else L
    older = ["full_attention" if i < globals_first else "sliding_attention" for i in range(L)]
    return windows(window, hf.get("layer_types") or older)


def _upper_window_keys(config: ModelConfig) -> dict:
    window, kinds = window_of(config), config.layer_kinds
    return {
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "layer_types": layer_types(config),
        "max_window_layers": next((i for i, kind in enumerate(kinds) if kind.local), config.num_layers),
    }


# Biases on queries, keys and values, and windows on the upper layers.
QWEN2 = derived(
    "qwen2",
    "Qwen2ForCausalLM",
    QWENS,
    read=lambda hf: {"qkv_bias": True, **_upper_windows(hf)},
    write=_upper_window_keys,
    gguf="qwen2",
)
# Qwen 2 with a norm on each head's query and key instead of biases.
QWEN3 = derived(
    "qwen3",
    "Qwen3ForCausalLM",
    {**QWENS, "head_dim": 128},
    read=lambda hf: {"qk_norm": "head", **biases(hf), **_upper_windows(hf)},
    write=lambda config: {"attention_bias": config.qkv_bias, **_upper_window_keys(config)},
    gguf="qwen3",
)


def qwen3_moe(hf: Mapping) -> dict:
    E = hf.get("num_experts", hf.get("num_local_experts", 128))
    dense, step, L = hf["mlp_only_layers"] or (), hf["decoder_sparse_step"], hf["num_hidden_layers"]
    kinds = ["moe" if E and i not in dense and (i + 1) % step == 0 else "dense" for i in range(L)]
    moe = {
        "num_experts": E,
        "top_k": hf["num_experts_per_tok"],
        "expert_dim": hf["moe_intermediate_size"],
        "normalize": bool(hf["norm_topk_prob"]),
    }
    mixture = {"mlp_pattern": llama.repeating(kinds), "moe": moe if "moe" in kinds else {}}
    return {"qk_norm": "head", **biases(hf), **mixture, **windows(hf["sliding_window"] if hf["use_sliding_window"] else None)}


def qwen3_moe_keys(config: ModelConfig) -> dict:
    moe, window = config.moe, window_of(config)
    return {
        "attention_bias": config.qkv_bias,
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "mlp_only_layers": [i for i, kind in enumerate(config.layer_kinds) if not kind.moe],
        "decoder_sparse_step": 1,
        "num_experts": moe.num_experts,
        "num_experts_per_tok": moe.top_k,
        "norm_topk_prob": moe.normalize,
        "moe_intermediate_size": moe.expert_dim or config.mlp_dim,
    }


def _qwen3_moe_rows(config: ModelConfig, kind: LayerKind) -> list[Row]:
    mlp = llama.experts(config, "model.layers.{layer}.mlp.", "gate") if kind.moe else llama.feed_forward(config)
    return [*llama.attention(config), *llama.pre_norms(config), *mlp]


QWEN3_MOE_DEFAULTS = {
    **QWENS,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 24,
    "num_key_value_heads": 4,
    "decoder_sparse_step": 1,
    "mlp_only_layers": None,
    "moe_intermediate_size": 768,
    "num_experts_per_tok": 8,
    "norm_topk_prob": False,
}

# Qwen 3 with mixtures of experts on some or all layers; its window, if any, is on every layer.
QWEN3_MOE = derived(
    "qwen3_moe",
    "Qwen3MoeForCausalLM",
    QWEN3_MOE_DEFAULTS,
    read=qwen3_moe,
    write=qwen3_moe_keys,
    rows=_qwen3_moe_rows,
    gguf="qwen3moe",
)


def post_norm_rows(config: ModelConfig, kind: LayerKind) -> list[Row]:
    names = {"post_attention_norm": "post_attention_layernorm", "post_feed_forward_norm": "post_feedforward_layernorm"}
    return [*llama.attention(config), *llama.norms(config, names), *llama.feed_forward(config)]


# Norms after each sublayer, and QK-norm over all heads together (OLMo et al. 2024).
OLMO2 = derived(
    "olmo2",
    "Olmo2ForCausalLM",
    {"vocab_size": 50304, "rms_norm_eps": 1e-5},
    read=lambda hf: {"norm_position": "post", "qk_norm": "full", **biases(hf)},
    write=lambda config: {"attention_bias": config.qkv_bias},
    rows=post_norm_rows,
    gguf="olmo2",
)


def _olmo3(hf: Mapping) -> dict:
    kinds = hf.get("layer_types") or [
        "full_attention" if (i + 1) % 4 == 0 else "sliding_attention" for i in range(hf["num_hidden_layers"])
    ]
    ropes = ropes_of(hf, theta=5e5, local_theta=5e5)
    return {"norm_position": "post", "qk_norm": "full", **biases(hf), **ropes, **windows(hf["sliding_window"], kinds)}


# OLMo 2 with windows on three of four layers, and scaled rotary positions on the others (Ettinger et al. 2025).
OLMO3 = derived(
    "olmo3",
    "Olmo3ForCausalLM",
    {"vocab_size": 50304, "rms_norm_eps": 1e-5, "sliding_window": 4096},
    read=_olmo3,
    write=lambda config: {
        "attention_bias": config.qkv_bias,
        "sliding_window": config.window or 4096,  # must be there, used or not
        "layer_types": layer_types(config),
        **keys_by_kind(config),
    },
    rows=post_norm_rows,
    gguf="",
)


def _phi3_rope(hf: Mapping) -> Rope:
    parameters = parameters_of(hf)
    name = parameters.pop("rope_type", None) or parameters.pop("type", None) or "default"
    parameters["rope_type"] = "longrope" if name in ("su", "yarn") else name
    if parameters["rope_type"] != "default":
        refuse(parameters, rope_type="longrope")
    return rope_of({**hf, "rope_scaling": parameters}, partial=True)


def _phi3_keys(config: ModelConfig) -> dict:
    original = config.rope.original_positions or config.max_positions
    return {"sliding_window": window_of(config), "original_max_position_embeddings": original}


def _phi3_rows(config: ModelConfig, kind: LayerKind) -> list[Row]:
    D, K, H, G = config.embed_dim, config.head_dim, config.num_heads, config.num_kv_heads
    qkv = "model.layers.{layer}.self_attn.qkv_proj.weight"
    heads = (H + 2 * G, K)
    return [
        linear("attention.query.weight", qkv, (D,), heads, (0, H)),
        linear("attention.key.weight", qkv, (D,), heads, (H, H + G)),
        linear("attention.value.weight", qkv, (D,), heads, (H + G, H + 2 * G)),
        linear("attention.output.weight", "model.layers.{layer}.self_attn.o_proj.weight", (H, K), (D,)),
        *llama.pre_norms(config),
        *llama.fused_feed_forward(config),
    ]


# Phi-3 and Phi-4: fused projections, LongRoPE, and partial rotary positions.
PHI3 = derived(
    "phi3",
    "Phi3ForCausalLM",
    {
        "vocab_size": 32064,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "sliding_window": None,
    },
    read=lambda hf: {"rope": _phi3_rope(hf), **windows(hf["sliding_window"])},
    write=_phi3_keys,
    rows=_phi3_rows,
    gguf="phi3",
)
