"""Phi-3 and Phi-4: Llama with fused projections, LongRoPE, and partial rotary positions."""

from collections.abc import Mapping

from lm.config import LayerKind, ModelConfig
from lm.convert.llama import decoder, described, ends, ignored, pre_norms, refuse, window_of, windows
from lm.convert.rotary import parameters_of, rope_of
from lm.convert.rows import Row, linear

__all__ = ["MODEL_TYPES", "from_hf", "to_hf", "rows", "ends", "ignored"]

MODEL_TYPES = ("phi3",)

DEFAULTS = {
    "vocab_size": 32064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "sliding_window": None,
}


def from_hf(hf: Mapping) -> ModelConfig:
    hf = {**DEFAULTS, **hf}
    parameters = parameters_of(hf)
    name = parameters.pop("rope_type", None) or parameters.pop("type", None) or "default"
    parameters["rope_type"] = "longrope" if name in ("su", "yarn") else name
    if parameters["rope_type"] != "default":
        refuse(parameters, rope_type="longrope")
    rope = rope_of({**hf, "rope_scaling": parameters}, partial=True)
    return decoder(hf, rope=rope, **windows(hf["sliding_window"]))


def to_hf(config: ModelConfig) -> dict:
    return {
        **described(config, "phi3", "Phi3ForCausalLM"),
        "sliding_window": window_of(config),
        "original_max_position_embeddings": config.rope.original_positions or config.max_positions,
    }


def rows(config: ModelConfig, kind: LayerKind) -> list[Row]:
    D, F, K, H, G = config.embed_dim, config.mlp_dim, config.head_dim, config.num_heads, config.num_kv_heads
    qkv, gate_up = "model.layers.{layer}.self_attn.qkv_proj.weight", "model.layers.{layer}.mlp.gate_up_proj.weight"
    heads = (H + 2 * G, K)
    return [
        linear("attention.query.weight", qkv, (D,), heads, (0, H)),
        linear("attention.key.weight", qkv, (D,), heads, (H, H + G)),
        linear("attention.value.weight", qkv, (D,), heads, (H + G, H + 2 * G)),
        linear("attention.output.weight", "model.layers.{layer}.self_attn.o_proj.weight", (H, K), (D,)),
        *pre_norms(config),
        linear("feed_forward.gate.weight", gate_up, (D,), (2 * F,), (0, F)),
        linear("feed_forward.up.weight", gate_up, (D,), (2 * F,), (F, 2 * F)),
        linear("feed_forward.down.weight", "model.layers.{layer}.mlp.down_proj.weight", (F,), (D,)),
    ]
