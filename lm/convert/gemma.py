"""Gemma 2 and 3: norms of weight 1 + w on both sides of each sublayer, local layers, tied scaled embeddings.

Gemma 2 has soft-caps, and every other layer is local. Gemma 3 has a norm per head instead, five local layers per global one,
and a theta for each kind. From a vision checkpoint (`model_type` gemma3) only the language model is read: `text_config` and its
weights, without the vision tower and its projector.
"""

from collections.abc import Mapping

from lm.config import LayerKind, ModelConfig
from lm.convert import llama
from lm.convert.llama import LLAMA
from lm.convert.rotary import keys_by_kind, ropes_of
from lm.convert.rows import Row

GEMMA2_DEFAULTS = {
    "vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "attention_bias": False, "query_pre_attn_scalar": 256,
    "sliding_window": 4096, "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0,
}  # fmt: skip
GEMMA3_DEFAULTS = {
    **GEMMA2_DEFAULTS,
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "final_logit_softcapping": None,
    "sliding_window_pattern": 6,
}
NORMS = {
    "attention_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "feed_forward_norm": "pre_feedforward_layernorm",
    "post_feed_forward_norm": "post_feedforward_layernorm",
}


def gemma2_from_hf(hf: Mapping) -> ModelConfig:
    hf = {**GEMMA2_DEFAULTS, **hf}
    return _decoder(hf, period=2, attention_softcap=hf["attn_logit_softcapping"] or 0.0)


def gemma2_to_hf(config: ModelConfig) -> dict:
    softcap = {"attn_logit_softcapping": config.attention_softcap or None}
    return {**_described(config, "gemma2", "Gemma2ForCausalLM"), **softcap}


def gemma3_from_hf(hf: Mapping) -> ModelConfig:
    hf = {**GEMMA3_DEFAULTS, **llama.text_config(hf, "tie_word_embeddings")}
    return _decoder(hf, hf["sliding_window_pattern"], qk_norm="head", **ropes_of(hf, theta=1e6, local_theta=1e4))


def gemma3_to_hf(config: ModelConfig) -> dict:
    keys = _described(config, "gemma3_text", "Gemma3ForCausalLM")
    return {**keys, **keys_by_kind(config), "rope_local_base_freq": config.local_rope.theta}


def rows(config: ModelConfig, kind: LayerKind) -> list[Row]:
    return [*llama.attention(config), *llama.norms(config, NORMS), *llama.feed_forward(config)]


def _decoder(hf: Mapping, period: int, **more) -> ModelConfig:
    """Return a config. Without `layer_types` every `period`-th layer is global."""
    llama.refuse(hf, use_bidirectional_attention=False)
    older = ["sliding_attention" if (i + 1) % period else "full_attention" for i in range(hf["num_hidden_layers"])]
    bias = bool(hf["attention_bias"])
    return llama.decoder(
        hf,
        activation=llama.activation(hf, "hidden_activation"),
        norm_position="sandwich",
        norm_plus_one=True,
        embed_scale=hf["hidden_size"] ** 0.5,
        query_scale=hf["query_pre_attn_scalar"] ** -0.5,
        logit_softcap=hf["final_logit_softcapping"] or 0.0,
        qkv_bias=bias,
        output_bias=bias,
        **llama.windows(hf["sliding_window"], hf.get("layer_types") or older),
        **more,
    )


def _described(config: ModelConfig, model_type: str, architecture: str) -> dict:
    keys = llama.described(config, model_type, architecture)
    keys["hidden_activation"] = keys.pop("hidden_act")
    return {
        **keys,
        "attention_bias": config.qkv_bias,
        "final_logit_softcapping": config.logit_softcap or None,
        "query_pre_attn_scalar": max(1, round(config.query_scale**-2)) if config.query_scale else config.head_dim,
        "sliding_window": llama.window_of(config),
        "layer_types": llama.layer_types(config),
    }


GEMMA2 = LLAMA._replace(model_types=("gemma2",), from_hf=gemma2_from_hf, to_hf=gemma2_to_hf, rows=rows, gguf="gemma2")
GEMMA3 = GEMMA2._replace(
    model_types=("gemma3", "gemma3_text"),
    from_hf=gemma3_from_hf,
    to_hf=gemma3_to_hf,
    ignored=(*LLAMA.ignored, llama.OF_IMAGES),
    canonical=llama.text_name,
    classifier="Gemma3TextForSequenceClassification",
    gguf="gemma3",
)
