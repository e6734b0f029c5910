"""Llama 4, the language model alone: attention in chunks, global layers without positions, experts whose inputs are weighed."""

from collections.abc import Mapping

from lm.config import LayerKind, ModelConfig
from lm.convert import llama
from lm.convert.hybrids import pattern, types_of
from lm.convert.llama import also_seeing, biases, derived, repeating
from lm.convert.rotary import rope_of
from lm.convert.rows import Row, linear

TYPES = {"chunked_attention": "chunk", "full_attention": "global"}


def _read(hf: Mapping) -> dict:
    L, every, step = hf["num_hidden_layers"], hf["no_rope_layer_interval"], hf["interleave_moe_layer_step"]
    rotary, chunk = hf["no_rope_layers"] or [(i + 1) % every for i in range(L)], hf["attention_chunk_size"]
    types = hf["layer_types"] or ["chunked_attention" if rotary[i] and chunk else "full_attention" for i in range(L)]
    sparse = range(step - 1, L, step) if hf["moe_layers"] is None else hf["moe_layers"]
    kinds = ["moe" if i in sparse else "dense" for i in range(L)]
    moe = {
        "num_experts": hf["num_local_experts"],
        "top_k": hf["num_experts_per_tok"],
        "expert_dim": hf["intermediate_size"],
        "shared_dim": hf["intermediate_size"],
        "scores": "sigmoid",
        "normalize": False,
        "weigh_inputs": True,
    }
    return {
        **biases(hf),
        "mlp_dim": hf["intermediate_size_mlp"],
        "rope": rope_of(hf, theta=5e5, interleaved=True),
        "rotary_pattern": repeating(["rotary" if rotary[i] else "none" for i in range(L)]),
        "attention_pattern": pattern({**hf, "layer_types": types}, TYPES),
        "window": chunk or 0,
        "qk_norm": "unit" if hf["use_qk_norm"] else "none",
        "qk_norm_last": True,
        "attention_temperature": hf["attn_scale"] if hf["attn_temperature_tuning"] else 0.0,
        "temperature_length": hf["floor_scale"],
        "temperature_nope": True,
        "mlp_pattern": repeating(kinds),
        "moe": moe if "moe" in kinds else {},
    }


def _keys(config: ModelConfig) -> dict:
    moe, chunked = config.moe, config.chunked
    return {
        "attention_bias": config.qkv_bias,
        "intermediate_size": moe.expert_dim or config.mlp_dim,
        "intermediate_size_mlp": config.mlp_dim,
        "no_rope_layers": [int(kind.rotary) for kind in config.layer_kinds],
        "layer_types": types_of(config, TYPES),
        "attention_chunk_size": config.window if chunked else None,
        "use_qk_norm": config.qk_norm == "unit",
        "attn_temperature_tuning": bool(config.attention_temperature),
        "attn_scale": config.attention_temperature,
        "floor_scale": config.temperature_length or config.max_positions,
        "moe_layers": [i for i, kind in enumerate(config.layer_kinds) if kind.moe],
        "num_local_experts": moe.num_experts or 1,
        "num_experts_per_tok": moe.top_k,
    }


def _rows(config: ModelConfig, kind: LayerKind) -> list[Row]:
    at, D, E = "model.layers.{layer}.feed_forward.", config.embed_dim, config.moe.num_experts
    found = [*llama.attention(config), *llama.pre_norms(config)]
    if not kind.moe:
        return [*found, *llama.feed_forward(config, at)]
    F, into = config.moe.expert_dim or config.mlp_dim, f"{at}experts.gate_up_proj"
    both = (E, D, 2 * F)
    return [
        *found,
        linear("feed_forward.router", f"{at}router.weight", (D,), (E,)),
        Row("feed_forward.gate", into, both, both, (0, 1, 2), (2, 0, F)),
        Row("feed_forward.up", into, both, both, (0, 1, 2), (2, F, 2 * F)),
        Row("feed_forward.down", f"{at}experts.down_proj", (E, F, D), (E, F, D), (0, 1, 2)),
        *llama.feed_forward(config, f"{at}shared_expert.", "feed_forward.shared", config.moe.shared_dim),
    ]


# Scout and Maverick (Meta 2025). What sees is not read.
LLAMA4 = also_seeing(
    "llama4",
    derived(
        "llama4_text",
        "Llama4ForCausalLM",
        {
            "vocab_size": 202048,
            "hidden_size": 5120,
            "intermediate_size": 8192,
            "intermediate_size_mlp": 16384,
            "num_hidden_layers": 48,
            "num_attention_heads": 40,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5,
            "num_local_experts": 16,
            "num_experts_per_tok": 1,
            "moe_layers": None,
            "interleave_moe_layer_step": 1,
            "use_qk_norm": True,
            "no_rope_layers": None,
            "no_rope_layer_interval": 4,
            "attention_chunk_size": 8192,
            "layer_types": None,
            "attn_temperature_tuning": True,
            "floor_scale": 8192,
            "attn_scale": 0.1,
        },
        read=_read,
        write=_keys,
        rows=_rows,
        ignored=(*llama.LLAMA.ignored, llama.OF_IMAGES, r"vision_model\..*"),
        gguf="",
    ),
)
