"""Qwen3-MoE: Qwen3 with mixtures of experts on some or all layers; its window, if any, is on every layer."""

from collections.abc import Mapping

from lm.config import LayerKind, ModelConfig
from lm.convert import llama
from lm.convert.llama import ends, ignored
from lm.convert.rows import Row

__all__ = ["MODEL_TYPES", "from_hf", "to_hf", "rows", "ends", "ignored"]

MODEL_TYPES = ("qwen3_moe",)

DEFAULTS = {
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "decoder_sparse_step": 1,
    "mlp_only_layers": None,
    "moe_intermediate_size": 768,
    "num_experts_per_tok": 8,
    "norm_topk_prob": False,
}


def from_hf(hf: Mapping) -> ModelConfig:
    hf = {**DEFAULTS, **hf}
    E = hf.get("num_experts", hf.get("num_local_experts", 128))
    dense, step, L = hf["mlp_only_layers"] or (), hf["decoder_sparse_step"], hf["num_hidden_layers"]
    kinds = ["moe" if E and i not in dense and (i + 1) % step == 0 else "dense" for i in range(L)]
    moe = {
        "num_experts": E,
        "top_k": hf["num_experts_per_tok"],
        "expert_dim": hf["moe_intermediate_size"],
        "normalize": bool(hf["norm_topk_prob"]),
    }
    bias, window = bool(hf["attention_bias"]), hf["sliding_window"] if hf["use_sliding_window"] else None
    return llama.decoder(
        hf,
        qk_norm="head",
        qkv_bias=bias,
        output_bias=bias,
        mlp_pattern=llama.repeating(kinds),
        moe=moe if "moe" in kinds else {},
        **llama.windows(window),
    )


def to_hf(config: ModelConfig) -> dict:
    moe, window = config.moe, llama.window_of(config)
    return {
        **llama.described(config, "qwen3_moe", "Qwen3MoeForCausalLM"),
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


def rows(config: ModelConfig, kind: LayerKind) -> list[Row]:
    mlp = llama.experts(config, "model.layers.{layer}.mlp.", "gate") if kind.moe else llama.feed_forward(config)
    return [*llama.attention(config), *llama.pre_norms(config), *mlp]
