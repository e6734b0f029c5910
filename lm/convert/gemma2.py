"""Gemma 2: norms of weight 1 + w on both sides of each sublayer, soft-caps, every other layer local, tied scaled embeddings."""

from collections.abc import Mapping

from lm.config import LayerKind, ModelConfig
from lm.convert import llama
from lm.convert.llama import ends, ignored
from lm.convert.rows import Row, same

__all__ = ["MODEL_TYPES", "from_hf", "to_hf", "rows", "ends", "ignored"]

MODEL_TYPES = ("gemma2",)

DEFAULTS = {
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
}


def from_hf(hf: Mapping) -> ModelConfig:
    hf = {**DEFAULTS, **hf}
    return gemma(hf, period=2, attention_softcap=hf["attn_logit_softcapping"] or 0.0)


def to_hf(config: ModelConfig) -> dict:
    softcap = {"attn_logit_softcapping": config.attention_softcap or None}
    return {**gemma_described(config, "gemma2", "Gemma2ForCausalLM"), **softcap}


def gemma(hf: Mapping, period: int, **more) -> ModelConfig:
    """Return the config that Gemma 2 and 3 share. Without `layer_types` every `period`-th layer is global."""
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


def gemma_described(config: ModelConfig, model_type: str, architecture: str) -> dict:
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


def rows(config: ModelConfig, kind: LayerKind) -> list[Row]:
    norms = (
        ("attention_norm", "input_layernorm"),
        ("post_attention_norm", "post_attention_layernorm"),
        ("feed_forward_norm", "pre_feedforward_layernorm"),
        ("post_feed_forward_norm", "post_feedforward_layernorm"),
    )
    names = [(f"{ours}.scale", f"model.layers.{{layer}}.{theirs}.weight") for ours, theirs in norms]
    return [*llama.attention(config), *(same(*name, config.embed_dim) for name in names), *llama.feed_forward(config)]
