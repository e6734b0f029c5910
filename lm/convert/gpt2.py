"""GPT-2: learned positions, LayerNorm, biases everywhere, matrices stored [inputs, outputs] like ours.

Checkpoints have names with and without the prefix `transformer.`, and causal masks among the weights.
"""

from collections.abc import Mapping

from lm.config import LayerKind, ModelConfig
from lm.convert.llama import ACTIVATION_NAMES, activation, decoder, refuse
from lm.convert.rows import Family, Row, layer_norm, same, table

DEFAULTS = {
    "vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_inner": None,
    "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True,
}  # fmt: skip


def from_hf(hf: Mapping) -> ModelConfig:
    hf = {**DEFAULTS, **hf}
    refuse(hf, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    named = {
        "num_hidden_layers": hf["n_layer"],
        "hidden_size": hf["n_embd"],
        "num_attention_heads": hf["n_head"],
        "intermediate_size": hf["n_inner"] or 4 * hf["n_embd"],
        "max_position_embeddings": hf["n_positions"],
        "rms_norm_eps": hf["layer_norm_epsilon"],
    }
    return decoder(
        {**hf, **named},
        activation=activation(hf, "activation_function"),
        gated=False,
        norm="layer",
        positions="learned",
        rope={},
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
    )


def to_hf(config: ModelConfig) -> dict:
    name = "gelu_new" if config.activation == "gelu_tanh" else ACTIVATION_NAMES[config.activation]
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_positions": config.max_positions,
        "n_ctx": config.max_positions,
        "n_embd": config.embed_dim,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": config.mlp_dim,
        "activation_function": name,
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "dtype": config.dtype,
    }


def canonical(name: str) -> str:
    return name if name.startswith(("transformer.", "lm_head.", "score.")) else f"transformer.{name}"


def rows(config: ModelConfig, kind: LayerKind) -> list[Row]:
    D, F, H, K, at = config.embed_dim, config.mlp_dim, config.num_heads, config.head_dim, "transformer.h.{layer}."
    weight, bias = f"{at}attn.c_attn.weight", f"{at}attn.c_attn.bias"
    found = [*layer_norm("attention_norm", f"{at}ln_1", D), *layer_norm("feed_forward_norm", f"{at}ln_2", D)]
    for i, ours in enumerate(("query", "key", "value")):
        begin, end = i * H, (i + 1) * H
        found.append(Row(f"attention.{ours}.weight", weight, (D, 3 * H * K), (D, 3 * H, K), (0, 1, 2), (1, begin, end)))
        found.append(Row(f"attention.{ours}.bias", bias, (3 * H * K,), (3 * H, K), (0, 1), (0, begin, end)))
    return [
        *found,
        Row("attention.output.weight", f"{at}attn.c_proj.weight", (H * K, D), (H, K, D), (0, 1, 2)),
        same("attention.output.bias", f"{at}attn.c_proj.bias", D),
        table("feed_forward.up.weight", f"{at}mlp.c_fc.weight", D, F),
        same("feed_forward.up.bias", f"{at}mlp.c_fc.bias", F),
        table("feed_forward.down.weight", f"{at}mlp.c_proj.weight", F, D),
        same("feed_forward.down.bias", f"{at}mlp.c_proj.bias", D),
    ]


def ends(config: ModelConfig) -> list[Row]:
    V, P, D = config.vocab_size, config.max_positions, config.embed_dim
    found = [
        table("embedding", "transformer.wte.weight", V, D),
        table("position_embedding", "transformer.wpe.weight", P, D),
        *layer_norm("norm", "transformer.ln_f", D),
    ]
    return found if config.tie_embeddings else [*found, table("head", "lm_head.weight", V, D)]


IGNORED = r"transformer\.h\.\d+\.attn\.(bias|masked_bias)"
GPT2 = Family(("gpt2",), from_hf, to_hf, rows, ends, ignored=(IGNORED,), canonical=canonical, gguf="gpt2")
