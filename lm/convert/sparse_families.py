"""More families with mixtures of experts: GLM-4-MoE, ERNIE 4.5, Hunyuan, Granite and gpt-oss."""

from collections.abc import Mapping

from lm.config import LayerKind, ModelConfig
from lm.convert import deepseek, llama
from lm.convert.dense_families import (
    ERNIES,
    HUNYUANS,
    MULTIPLIERS,
    ernie_settings,
    hunyuan_attention,
    hunyuan_settings,
    multiplier_keys,
    multipliers,
)
from lm.convert.llama import biases, derived, layer_types, refuse, repeating, windows
from lm.convert.relatives import mixture_keys
from lm.convert.rotary import rope_of
from lm.convert.rows import Row, linear, same
from lm.errors import UserError


def _glm4_moe(hf: Mapping) -> dict:
    L, dense = hf["num_hidden_layers"], hf["first_k_dense_replace"]
    kinds = ["moe" if i >= dense else "dense" for i in range(L)]
    return {
        "qkv_bias": bool(hf["attention_bias"]),
        "qk_norm": "head" if hf["use_qk_norm"] else "none",
        "rope": rope_of(hf, partial=True),
        "mlp_pattern": repeating(kinds),
        "moe": deepseek.mixture(hf, v3=True) if "moe" in kinds else {},
    }


def _glm4_moe_keys(config: ModelConfig) -> dict:
    return {
        "attention_bias": config.qkv_bias,
        "use_qk_norm": config.qk_norm == "head",
        "partial_rotary_factor": config.rope.fraction,
        "num_nextn_predict_layers": 0,
        **deepseek.mixture_keys(config),
    }


# GLM-4.5: DeepSeek-V3's experts behind grouped-query attention that rotates half a head (GLM-4.5 Team 2025).
GLM4_MOE = derived(
    "glm4_moe",
    "Glm4MoeForCausalLM",
    {
        "vocab_size": 151552,
        "intermediate_size": 10944,
        "num_hidden_layers": 46,
        "num_attention_heads": 96,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "partial_rotary_factor": 0.5,
        "use_qk_norm": False,
        "first_k_dense_replace": 1,
        "moe_intermediate_size": 1408,
        "num_experts_per_tok": 8,
        "n_shared_experts": 1,
        "n_routed_experts": 128,
        "routed_scaling_factor": 1.0,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
    },
    read=_glm4_moe,
    write=_glm4_moe_keys,
    rows=lambda config, kind: [
        *llama.attention(config),
        *llama.pre_norms(config),
        *deepseek.feed_forward_rows(config, kind, "model.layers.{layer}.mlp."),
    ],
    ignored=(*llama.LLAMA.ignored, r"model\.layers\.(46|92)\..*"),  # predict a further token in the two published models
    gguf="",
)


def _ernie_moe(hf: Mapping) -> dict:
    refuse(hf, use_bias=False)
    L, every = hf["num_hidden_layers"], hf["moe_layer_interval"]
    first, last = hf["moe_layer_start_index"], hf["moe_layer_end_index"]
    last = L - 1 if last == -1 else last
    kinds = ["moe" if (i + 1) % every == 0 and first <= i <= last else "dense" for i in range(L)]
    moe = {
        "num_experts": hf.get("num_experts", hf["moe_num_experts"]),
        "top_k": hf.get("num_experts_per_tok", hf["moe_k"]),
        "expert_dim": hf["moe_intermediate_size"],
        "shared_dim": hf["moe_intermediate_size"] * hf["moe_num_shared_experts"],
        "balance_bias": True,
    }
    return {**ernie_settings(hf), "mlp_pattern": repeating(kinds), "moe": moe if "moe" in kinds else {}}


def _ernie_moe_keys(config: ModelConfig) -> dict:
    moe, sparse = config.moe, [i for i, kind in enumerate(config.layer_kinds) if kind.moe] or [config.num_layers]
    F = moe.expert_dim or config.mlp_dim
    steps = {b - a for a, b in zip(sparse, sparse[1:])} or {1}
    every = steps.pop() if len(steps) == 1 and (sparse[0] + 1) % min(steps) == 0 else 1
    return {
        "use_bias": False,
        "moe_intermediate_size": F,
        "moe_k": moe.top_k,
        "moe_num_experts": moe.num_experts or 1,
        "moe_num_shared_experts": moe.shared_dim // F,
        "moe_layer_start_index": sparse[0],
        "moe_layer_end_index": sparse[-1],
        "moe_layer_interval": every,
    }


def _ernie_moe_rows(config: ModelConfig, kind: LayerKind) -> list[Row]:
    at, E = "model.layers.{layer}.mlp.", config.moe.num_experts
    found = [*llama.attention(config), *llama.pre_norms(config)]
    if not kind.moe:
        return [*found, *llama.feed_forward(config)]
    found += llama.experts(config, at, "gate")
    bias = f"{at}moe_statics.e_score_correction_bias"
    found.append(Row("feed_forward.balance_bias", bias, (1, E), (E,), (0,), float32=True))
    if config.moe.shared_dim:
        found += llama.feed_forward(config, f"{at}shared_experts.", "feed_forward.shared", config.moe.shared_dim)
    return found


# ERNIE 4.5 with experts chosen by softmax and a bias, and shared ones (Baidu 2025).
ERNIE_MOE = derived(
    "ernie4_5_moe",
    "Ernie4_5_MoeForCausalLM",
    {
        **ERNIES,
        "hidden_size": 2560,
        "intermediate_size": 12288,
        "num_hidden_layers": 28,
        "num_attention_heads": 20,
        "num_key_value_heads": 4,
        "moe_intermediate_size": 1536,
        "moe_k": 6,
        "moe_num_experts": 64,
        "moe_num_shared_experts": 2,
        "moe_layer_start_index": 1,
        "moe_layer_end_index": -1,
        "moe_layer_interval": 1,
    },
    read=_ernie_moe,
    write=_ernie_moe_keys,
    rows=_ernie_moe_rows,
    ignored=(*llama.LLAMA.ignored, r".*\bmtp_.*"),
    gguf="",
)


def _of_all_layers(hf: Mapping, *names: str) -> int:
    """Return a number that config.json may give for each layer, if all have the same."""
    value = next(hf[name] for name in names if name in hf)
    values = set(value) if isinstance(value, list) else {value}
    if len(values) != 1:
        raise UserError(f"{names[-1]}={value!r} in config.json cannot be expressed: all layers must have the same")
    return values.pop()


def _hunyuan_moe(hf: Mapping) -> dict:
    E, K = _of_all_layers(hf, "num_local_experts", "num_experts"), _of_all_layers(hf, "num_experts_per_tok", "moe_topk")
    moe = {"num_experts": E, "top_k": K, "expert_dim": hf["intermediate_size"], "shared_dim": hf["intermediate_size"]}
    return {**hunyuan_settings(hf), "mlp_pattern": ("moe",), "moe": moe}


def _hunyuan_moe_rows(config: ModelConfig, kind: LayerKind) -> list[Row]:
    at = "model.layers.{layer}.mlp."
    shared = llama.feed_forward(config, f"{at}shared_mlp.", "feed_forward.shared", config.moe.shared_dim)
    return [*hunyuan_attention(config), *llama.pre_norms(config), *llama.experts(config, at, "gate.wg"), *shared]


# Hunyuan with experts, and a shared one of the same size (Sun et al. 2024).
HUNYUAN_MOE = derived(
    "hunyuan_v1_moe",
    "HunYuanMoEV1ForCausalLM",
    {**HUNYUANS, "num_experts": 1, "moe_topk": 1},
    read=_hunyuan_moe,
    write=lambda config: {
        "attention_bias": config.qkv_bias,
        "intermediate_size": config.moe.expert_dim or config.mlp_dim,
        "num_experts": config.moe.num_experts,
        "moe_topk": config.moe.top_k,
    },
    rows=_hunyuan_moe_rows,
    gguf="",
)


def granite_experts(config: ModelConfig, at: str) -> list[Row]:
    """Return the rows of a layer's router and experts, whose gates and ups are one tensor."""
    D, E, F = config.embed_dim, config.moe.num_experts, config.moe.expert_dim or config.mlp_dim
    into, both = f"{at}input_linear.weight", (E, 2 * F, D)
    return [
        linear("feed_forward.router", f"{at}router.layer.weight", (D,), (E,)),
        Row("feed_forward.gate", into, both, both, (0, 2, 1), (1, 0, F)),
        Row("feed_forward.up", into, both, both, (0, 2, 1), (1, F, 2 * F)),
        Row("feed_forward.down", f"{at}output_linear.weight", (E, D, F), (E, D, F), (0, 2, 1)),
    ]


def mixture_of_all(hf: Mapping, **more) -> dict:
    """Return the settings of experts on all layers, of which a token's have the softmax of their logits."""
    moe = {"num_experts": hf["num_local_experts"], "top_k": hf["num_experts_per_tok"], **more}
    return {"mlp_pattern": ("moe",), "moe": moe}


# Granite 3 with experts.
GRANITE_MOE = derived(
    "granitemoe",
    "GraniteMoeForCausalLM",
    {**MULTIPLIERS, "num_local_experts": 8, "num_experts_per_tok": 2},
    read=lambda hf: {**multipliers(hf), **biases(hf), **mixture_of_all(hf)},
    write=lambda config: {"attention_bias": config.qkv_bias, **multiplier_keys(config), **mixture_keys(config)},
    rows=lambda config, kind: [
        *llama.attention(config),
        *llama.pre_norms(config),
        *granite_experts(config, "model.layers.{layer}.block_sparse_moe."),
    ],
    gguf="",
)

GPT_OSS_ROPE = {"rope_type": "yarn", "factor": 32.0, "truncate": False, "original_max_position_embeddings": 4096}


def _gpt_oss(hf: Mapping) -> dict:
    refuse(hf, swiglu_alpha=1.702, hidden_act="silu")
    older = ["full_attention" if i % 2 else "sliding_attention" for i in range(hf["num_hidden_layers"])]
    if not (hf.get("rope_parameters") or hf.get("rope_scaling")):
        hf = {**hf, "rope_parameters": GPT_OSS_ROPE}
    return {
        "activation": "quick_gelu",
        "gate_limit": float(hf["swiglu_limit"]),
        "attention_sinks": True,
        "rope": rope_of(hf, theta=150_000.0),
        **biases(hf),
        **mixture_of_all(hf, biases=True),
        **windows(hf["sliding_window"], hf.get("layer_types") or older),
    }


def _gpt_oss_keys(config: ModelConfig) -> dict:
    return {
        "hidden_act": "silu",
        "swiglu_limit": config.gate_limit,
        "attention_bias": config.qkv_bias,
        "sliding_window": config.window or 128,
        "layer_types": layer_types(config),
        **mixture_keys(config),
    }


def _gpt_oss_rows(config: ModelConfig, kind: LayerKind) -> list[Row]:
    at, D, E = "model.layers.{layer}.", config.embed_dim, config.moe.num_experts
    F, experts = config.moe.expert_dim or config.mlp_dim, f"{at}mlp.experts."

    def alternating(ours: str, theirs: str, place: int, *sizes: int) -> Row:
        """Return the row of gate (place 0) or up (1), whose columns alternate."""
        order = tuple(range(len(sizes)))
        whole = (*sizes[:-1], 2 * sizes[-1])
        return Row(f"feed_forward.{ours}", experts + theirs, whole, (*sizes, 2), order, (len(sizes), place, place + 1))

    return [
        *llama.attention(config),
        same("attention.sinks", f"{at}self_attn.sinks", config.num_heads),
        *llama.pre_norms(config),
        linear("feed_forward.router", f"{at}mlp.router.weight", (D,), (E,)),
        same("feed_forward.router_bias", f"{at}mlp.router.bias", E),
        alternating("gate", "gate_up_proj", 0, E, D, F),
        alternating("up", "gate_up_proj", 1, E, D, F),
        alternating("gate_bias", "gate_up_proj_bias", 0, E, F),
        alternating("up_bias", "gate_up_proj_bias", 1, E, F),
        Row("feed_forward.down", f"{experts}down_proj", (E, F, D), (E, F, D), (0, 1, 2)),
        Row("feed_forward.down_bias", f"{experts}down_proj_bias", (E, D), (E, D), (0, 1)),
    ]


# Attention sinks, experts with biases and a clamped gate, weights in MXFP4 (OpenAI 2025).
GPT_OSS = derived(
    "gpt_oss",
    "GptOssForCausalLM",
    {
        "vocab_size": 201088,
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "num_hidden_layers": 36,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "attention_bias": True,
        "sliding_window": 128,
        "swiglu_limit": 7.0,
        "num_local_experts": 128,
        "num_experts_per_tok": 4,
    },
    read=_gpt_oss,
    write=_gpt_oss_keys,
    rows=_gpt_oss_rows,
    gguf="",
)
