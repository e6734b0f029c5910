"""Families of dense decoders derived from Llama: Mistral, Qwen 2 and 3, OLMo 2, Phi-3. Each says how it differs."""

from collections.abc import Mapping

from lm.config import LayerKind, ModelConfig
from lm.convert import llama
from lm.convert.llama import LLAMA, decoder, described, layer_types, refuse, window_of, windows
from lm.convert.rotary import parameters_of, rope_of
from lm.convert.rows import Row, linear, same

# Mistral: a sliding window on all layers or on none.
MISTRAL_DEFAULTS = {
    **llama.DEFAULTS,
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
}


def mistral_from_hf(hf: Mapping) -> ModelConfig:
    hf = {**MISTRAL_DEFAULTS, **hf}
    every = "sliding_attention" if hf["sliding_window"] else "full_attention"
    refuse(hf, layer_types=[every] * hf["num_hidden_layers"])
    return decoder(hf, **windows(hf["sliding_window"]))


def mistral_to_hf(config: ModelConfig) -> dict:
    return {**described(config, "mistral", "MistralForCausalLM"), "sliding_window": window_of(config)}


MISTRAL = LLAMA._replace(model_types=("mistral",), from_hf=mistral_from_hf, to_hf=mistral_to_hf)

# Qwen 2 and 2.5: biases on queries, keys and values, and windows on the upper layers.
QWEN2_DEFAULTS = {
    **llama.DEFAULTS,
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}


def qwen2_from_hf(hf: Mapping) -> ModelConfig:
    hf = {**QWEN2_DEFAULTS, **hf}
    return decoder(hf, qkv_bias=True, **_upper_windows(hf))


def qwen2_to_hf(config: ModelConfig) -> dict:
    return {**described(config, "qwen2", "Qwen2ForCausalLM"), **_upper_window_keys(config)}


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


QWEN2 = LLAMA._replace(model_types=("qwen2",), from_hf=qwen2_from_hf, to_hf=qwen2_to_hf, gguf="qwen2")


# Qwen 3: Qwen 2 with a norm on each head's query and key instead of biases.
def qwen3_from_hf(hf: Mapping) -> ModelConfig:
    hf = {**QWEN2_DEFAULTS, "head_dim": 128, **hf}
    bias = bool(hf["attention_bias"])
    return decoder(hf, qk_norm="head", qkv_bias=bias, output_bias=bias, **_upper_windows(hf))


def qwen3_to_hf(config: ModelConfig) -> dict:
    keys = {"attention_bias": config.qkv_bias, **_upper_window_keys(config)}
    return {**described(config, "qwen3", "Qwen3ForCausalLM"), **keys}


QWEN3 = LLAMA._replace(model_types=("qwen3",), from_hf=qwen3_from_hf, to_hf=qwen3_to_hf, gguf="qwen3")


# OLMo 2: norms after each sublayer, and QK-norm over all heads together (OLMo et al. 2024).
def olmo2_from_hf(hf: Mapping) -> ModelConfig:
    hf = {**llama.DEFAULTS, "vocab_size": 50304, "rms_norm_eps": 1e-5, **hf}
    bias = bool(hf["attention_bias"])
    return decoder(hf, norm_position="post", qk_norm="full", qkv_bias=bias, output_bias=bias)


def olmo2_to_hf(config: ModelConfig) -> dict:
    return {**described(config, "olmo2", "Olmo2ForCausalLM"), "attention_bias": config.qkv_bias}


def olmo2_rows(config: ModelConfig, kind: LayerKind) -> list[Row]:
    D, at = config.embed_dim, "model.layers.{layer}."
    norms = [
        same("post_attention_norm.scale", f"{at}post_attention_layernorm.weight", D),
        same("post_feed_forward_norm.scale", f"{at}post_feedforward_layernorm.weight", D),
    ]
    return [*llama.attention(config), *norms, *llama.feed_forward(config)]


OLMO2 = LLAMA._replace(model_types=("olmo2",), from_hf=olmo2_from_hf, to_hf=olmo2_to_hf, rows=olmo2_rows, gguf="olmo2")

# Phi-3 and Phi-4: fused projections, LongRoPE, and partial rotary positions.
PHI3_DEFAULTS = {
    **llama.DEFAULTS,
    "vocab_size": 32064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "sliding_window": None,
}


def phi3_from_hf(hf: Mapping) -> ModelConfig:
    hf = {**PHI3_DEFAULTS, **hf}
    parameters = parameters_of(hf)
    name = parameters.pop("rope_type", None) or parameters.pop("type", None) or "default"
    parameters["rope_type"] = "longrope" if name in ("su", "yarn") else name
    if parameters["rope_type"] != "default":
        refuse(parameters, rope_type="longrope")
    rope = rope_of({**hf, "rope_scaling": parameters}, partial=True)
    return decoder(hf, rope=rope, **windows(hf["sliding_window"]))


def phi3_to_hf(config: ModelConfig) -> dict:
    return {
        **described(config, "phi3", "Phi3ForCausalLM"),
        "sliding_window": window_of(config),
        "original_max_position_embeddings": config.rope.original_positions or config.max_positions,
    }


def phi3_rows(config: ModelConfig, kind: LayerKind) -> list[Row]:
    D, F, K, H, G = config.embed_dim, config.mlp_dim, config.head_dim, config.num_heads, config.num_kv_heads
    qkv, gate_up = "model.layers.{layer}.self_attn.qkv_proj.weight", "model.layers.{layer}.mlp.gate_up_proj.weight"
    heads = (H + 2 * G, K)
    return [
        linear("attention.query.weight", qkv, (D,), heads, (0, H)),
        linear("attention.key.weight", qkv, (D,), heads, (H, H + G)),
        linear("attention.value.weight", qkv, (D,), heads, (H + G, H + 2 * G)),
        linear("attention.output.weight", "model.layers.{layer}.self_attn.o_proj.weight", (H, K), (D,)),
        *llama.pre_norms(config),
        linear("feed_forward.gate.weight", gate_up, (D,), (2 * F,), (0, F)),
        linear("feed_forward.up.weight", gate_up, (D,), (2 * F,), (F, 2 * F)),
        linear("feed_forward.down.weight", "model.layers.{layer}.mlp.down_proj.weight", (F,), (D,)),
    ]


PHI3 = LLAMA._replace(model_types=("phi3",), from_hf=phi3_from_hf, to_hf=phi3_to_hf, rows=phi3_rows, gguf="phi3")
