"""More dense families derived from Llama: Granite 3, Seed-OSS, ERNIE 4.5, GLM-4, Hunyuan and Nemotron."""

from collections.abc import Mapping

from lm.config import LayerKind, ModelConfig, Rope
from lm.convert import llama
from lm.convert.llama import biases, derived
from lm.convert.rotary import parameters_of, rope_of
from lm.convert.rows import Row


def multipliers(hf: Mapping) -> dict:
    """Return Granite's factors of embeddings, attention scores, sublayers and logits."""
    return {
        "embed_scale": float(hf["embedding_multiplier"]),
        "query_scale": float(hf["attention_multiplier"]),
        "residual_scale": float(hf["residual_multiplier"]),
        "logit_scale": 1 / hf["logits_scaling"],
    }


def multiplier_keys(config: ModelConfig) -> dict:
    return {
        "embedding_multiplier": config.embed_scale,
        "attention_multiplier": config.query_scale or config.head_dim**-0.5,
        "residual_multiplier": config.residual_scale,
        "logits_scaling": round(1 / config.logit_scale, 9),  # a short decimal, as it was
    }


MULTIPLIERS = dict.fromkeys(("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling"), 1.0)
# Llama with four factors (IBM 2024, Granite 3.0; after μP).
GRANITE = derived(
    "granite",
    "GraniteForCausalLM",
    MULTIPLIERS,
    read=lambda hf: {**multipliers(hf), **biases(hf), "mlp_bias": bool(hf["mlp_bias"])},
    write=lambda config: {"attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias, **multiplier_keys(config)},
    gguf="granite",
)

# Llama with biases on queries, keys and values, and a switch for each other bias.
SEED_OSS = derived(
    "seed_oss",
    "SeedOssForCausalLM",
    {
        "vocab_size": 155136,
        "intermediate_size": 27648,
        "num_hidden_layers": 64,
        "num_attention_heads": 80,
        "num_key_value_heads": 8,
        "max_position_embeddings": 524288,
        "attention_bias": True,
        "attention_out_bias": False,
        "head_dim": 128,
    },
    read=lambda hf: {
        "qkv_bias": bool(hf["attention_bias"]),
        "output_bias": bool(hf["attention_out_bias"]),
        "mlp_bias": bool(hf["mlp_bias"]),
    },
    write=lambda config: {
        "attention_bias": config.qkv_bias,
        "attention_out_bias": config.output_bias,
        "mlp_bias": config.mlp_bias,
    },
    gguf="seed_oss",
)


def ernie_settings(hf: Mapping) -> dict:
    bias = bool(hf["use_bias"])
    return {"rope": rope_of(hf, theta=5e5, interleaved=True), "qkv_bias": bias, "output_bias": bias, "mlp_bias": bias}


ERNIES = {"vocab_size": 103424, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "tie_word_embeddings": True}
ERNIES |= {"use_bias": False}
# Llama that rotates neighbouring dimensions (Baidu 2025).
ERNIE = derived(
    "ernie4_5",
    "Ernie4_5ForCausalLM",
    {
        **ERNIES,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 18,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "head_dim": 128,
    },
    read=ernie_settings,
    write=lambda config: {"use_bias": config.qkv_bias},
    gguf="ernie4_5",
)


def _glm(hf: Mapping) -> dict:
    return {"qkv_bias": bool(hf["attention_bias"]), "rope": rope_of(hf, partial=True, interleaved=True)}


def _glm_keys(config: ModelConfig) -> dict:
    return {"attention_bias": config.qkv_bias, "partial_rotary_factor": config.rope.fraction}


def _glm_rows(config: ModelConfig, kind: LayerKind) -> list[Row]:
    names = {"attention_norm": "input_layernorm", "feed_forward_norm": "post_attention_layernorm"}
    if config.norm_position == "sandwich":
        names |= {"post_attention_norm": "post_self_attn_layernorm", "post_feed_forward_norm": "post_mlp_layernorm"}
    return [*llama.attention(config), *llama.norms(config, names), *llama.fused_feed_forward(config)]


GLMS = {
    "vocab_size": 151552, "intermediate_size": 13696, "num_hidden_layers": 40, "num_key_value_heads": 2, "head_dim": 128,
    "max_position_embeddings": 131072, "rms_norm_eps": 1.5625e-7, "attention_bias": True, "partial_rotary_factor": 0.5,
}  # fmt: skip
# Neighbouring dimensions of half a head rotate; gate and up are one matrix (GLM et al. 2024).
GLM = derived("glm", "GlmForCausalLM", GLMS, read=_glm, write=_glm_keys, rows=_glm_rows, gguf="")
# GLM-4-0414: norms on both sides of each sublayer.
GLM4 = derived(
    "glm4",
    "Glm4ForCausalLM",
    GLMS,
    read=lambda hf: {**_glm(hf), "norm_position": "sandwich"},
    write=_glm_keys,
    rows=_glm_rows,
    gguf="glm4",
)


def hunyuan_settings(hf: Mapping) -> dict:
    """Return the settings of attention. NTK's fixed `alpha` is another theta (bloc97 2023): θ · alpha^(d / (d − 2))."""
    parameters = parameters_of(hf)
    alpha = parameters.get("alpha")
    if alpha and (parameters.get("rope_type") or parameters.get("type")) == "dynamic":
        head_dim = hf.get("head_dim") or hf["hidden_size"] // hf["num_attention_heads"]
        theta = float(parameters.get("rope_theta") or hf.get("rope_theta") or 1e4)
        rope = Rope(theta=theta * alpha ** (head_dim / (head_dim - 2)))
    else:
        rope = rope_of(hf)
    return {"qk_norm": "head", "qk_norm_last": True, "rope": rope, **biases(hf)}


def hunyuan_attention(config: ModelConfig) -> list[Row]:
    return llama.attention(config, names=("query_layernorm", "key_layernorm"))


HUNYUANS = {"vocab_size": 290943, "rms_norm_eps": 1e-5}
# Llama with a norm on each head's query and key after their rotation (Tencent 2025).
HUNYUAN = derived(
    "hunyuan_v1_dense",
    "HunYuanDenseV1ForCausalLM",
    HUNYUANS,
    read=hunyuan_settings,
    write=lambda config: {"attention_bias": config.qkv_bias},
    rows=lambda config, kind: [*hunyuan_attention(config), *llama.pre_norms(config), *llama.feed_forward(config)],
    gguf="hunyuan-dense",
)

# LayerNorm of weight 1 + w, squared ReLU without a gate, and half a head rotates (Parmar et al. 2024).
NEMOTRON = derived(
    "nemotron",
    "NemotronForCausalLM",
    {
        "vocab_size": 256000,
        "hidden_size": 6144,
        "intermediate_size": 24576,
        "num_attention_heads": 48,
        "max_position_embeddings": 4096,
        "hidden_act": "relu2",
        "norm_eps": 1e-5,
        "partial_rotary_factor": 0.5,
    },
    read=lambda hf: {
        "norm": "layer",
        "norm_plus_one": True,
        "norm_eps": hf["norm_eps"],
        "gated": False,
        "mlp_bias": bool(hf["mlp_bias"]),
        "rope": rope_of(hf, partial=True),
        **biases(hf),
    },
    write=lambda config: {
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.mlp_bias,
        "norm_eps": config.norm_eps,
        "partial_rotary_factor": config.rope.fraction,
    },
    gguf="",
)
