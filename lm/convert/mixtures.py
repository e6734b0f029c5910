"""Families whose feed-forwards are mixtures of experts, and else like a dense one: Mixtral and Qwen3-MoE."""

from collections.abc import Mapping

from lm.config import LayerKind, ModelConfig
from lm.convert import llama
from lm.convert.dense import MISTRAL_DEFAULTS, QWEN2_DEFAULTS
from lm.convert.llama import LLAMA, decoder, described, window_of, windows
from lm.convert.rotary import rope_of
from lm.convert.rows import Row

# Mixtral: Mistral with experts (Jiang et al. 2024).
MIXTRAL_DEFAULTS = {**MISTRAL_DEFAULTS, "rms_norm_eps": 1e-5, "sliding_window": None}
MIXTRAL_DEFAULTS |= {"num_experts_per_tok": 2, "num_local_experts": 8}


def mixtral_from_hf(hf: Mapping) -> ModelConfig:
    hf = {**MIXTRAL_DEFAULTS, **hf}
    moe = {"num_experts": hf["num_local_experts"], "top_k": hf["num_experts_per_tok"]}
    rope = rope_of(hf, theta=1e6)
    return decoder(hf, rope=rope, mlp_pattern=("moe",), moe=moe, **windows(hf["sliding_window"]))


def mixtral_to_hf(config: ModelConfig) -> dict:
    return {
        **described(config, "mixtral", "MixtralForCausalLM"),
        "intermediate_size": config.moe.expert_dim or config.mlp_dim,
        "num_local_experts": config.moe.num_experts,
        "num_experts_per_tok": config.moe.top_k,
        "sliding_window": window_of(config),
    }


def mixtral_rows(config: ModelConfig, kind: LayerKind) -> list[Row]:
    mixture = llama.experts(config, "model.layers.{layer}.block_sparse_moe.", "gate", ("w1", "w3", "w2"))
    return [*llama.attention(config), *llama.pre_norms(config), *mixture]


MIXTRAL = LLAMA._replace(model_types=("mixtral",), from_hf=mixtral_from_hf, to_hf=mixtral_to_hf, rows=mixtral_rows)

# Qwen3-MoE: Qwen 3 with experts on some or all layers; its window, if any, is on every layer.
QWEN3_MOE_DEFAULTS = {
    **QWEN2_DEFAULTS,
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


def qwen3_moe_from_hf(hf: Mapping) -> ModelConfig:
    hf = {**QWEN3_MOE_DEFAULTS, **hf}
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
    return decoder(
        hf,
        qk_norm="head",
        qkv_bias=bias,
        output_bias=bias,
        mlp_pattern=llama.repeating(kinds),
        moe=moe if "moe" in kinds else {},
        **windows(window),
    )


def qwen3_moe_to_hf(config: ModelConfig) -> dict:
    moe, window = config.moe, window_of(config)
    return {
        **described(config, "qwen3_moe", "Qwen3MoeForCausalLM"),
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


def qwen3_moe_rows(config: ModelConfig, kind: LayerKind) -> list[Row]:
    mlp = llama.experts(config, "model.layers.{layer}.mlp.", "gate") if kind.moe else llama.feed_forward(config)
    return [*llama.attention(config), *llama.pre_norms(config), *mlp]


QWEN3_MOE = LLAMA._replace(
    model_types=("qwen3_moe",), from_hf=qwen3_moe_from_hf, to_hf=qwen3_moe_to_hf, rows=qwen3_moe_rows, gguf="qwen3moe"
)
