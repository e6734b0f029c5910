"""Families that have layers with a state of fixed size beside those of attention: LFM2, Qwen3-Next and Qwen 3.5."""

import dataclasses
import functools
from collections.abc import Callable, Mapping

from lm.config import LayerKind, ModelConfig
from lm.convert import llama
from lm.convert.llama import also_seeing, derived, refuse, repeating
from lm.convert.relatives import QWEN3_MOE_DEFAULTS, qwen3_moe, qwen3_moe_keys
from lm.convert.rotary import rope_of
from lm.convert.rows import Family, Row, dense, linear, same
from lm.errors import UserError

CONVOLUTION = {"in_gate": 0, "out_gate": 1, "value": 2}  # parts of LFM2's in_proj, in its order


def pattern(hf: Mapping, names: Mapping[str, str]) -> tuple[str, ...]:
    """Return attention_pattern for transformers' `layer_types`. names: of our kinds by theirs."""
    types = hf["layer_types"]
    for name in types:
        if name not in names:
            raise UserError(f"layer_types in config.json holds {name!r}, which is none of {', '.join(names)}")
    if len(types) != hf["num_hidden_layers"]:
        raise UserError(f"layer_types in config.json names {len(types)} layers, num_hidden_layers {hf['num_hidden_layers']}")
    return repeating([names[name] for name in types])


def types_of(config: ModelConfig, names: Mapping[str, str]) -> list[str]:
    """Return `layer_types`; the inverse of `pattern`."""
    theirs = {ours: name for name, ours in names.items()}
    if unknown := sorted(set(config.attention_kinds) - set(theirs)):
        raise UserError(f"model.attention_pattern has {unknown[0]} layers, which this family has not")
    return [theirs[kind] for kind in config.attention_kinds]


LFM2_TYPES = {"conv": "conv", "full_attention": "global"}


def _lfm2(hf: Mapping) -> dict:
    hidden = hf.get("block_ff_dim") or hf["intermediate_size"]
    if hf["block_auto_adjust_ff_dim"]:  # as transformers computes it
        hidden = int(hf["block_ffn_dim_multiplier"] * int(2 * hidden / 3))
        hidden = -(-hidden // hf["block_multiple_of"]) * hf["block_multiple_of"]
    layers = range(hf["num_hidden_layers"])
    full = layers if hf.get("full_attn_idxs") is None else hf["full_attn_idxs"]
    types = hf.get("layer_types") or ["full_attention" if i in full else "conv" for i in layers]
    return {
        "mlp_dim": hidden,
        "activation": "silu",
        "norm_eps": hf["norm_eps"],
        "rope": rope_of(hf, theta=1e6),
        "qk_norm": "head",
        "tie_embeddings": bool(hf.get("tie_embedding", hf["tie_word_embeddings"])),
        "attention_pattern": pattern({**hf, "layer_types": types}, LFM2_TYPES),
        "recurrent": {"kernel": hf["conv_L_cache"], "bias": bool(hf["conv_bias"])},
    }


def _lfm2_keys(config: ModelConfig) -> dict:
    return {
        "norm_eps": config.norm_eps,
        "block_auto_adjust_ff_dim": False,
        "conv_bias": config.recurrent.bias,
        "conv_L_cache": config.recurrent.kernel,
        "layer_types": types_of(config, LFM2_TYPES),
    }


def _lfm2_rows(config: ModelConfig, kind: LayerKind) -> list[Row]:
    D, F, at = config.embed_dim, config.mlp_dim, "model.layers.{layer}."
    theirs = {"o_proj": "out_proj", "q_norm": "q_layernorm", "k_norm": "k_layernorm"}
    mixer = _convolution(config, f"{at}conv.") if kind.recurrent else renamed(llama.attention(config), theirs)
    found = [*mixer, same("attention_norm.scale", f"{at}operator_norm.weight", D)]
    found.append(same("feed_forward_norm.scale", f"{at}ffn_norm.weight", D))
    for ours, name, inputs, outputs in (("gate", "w1", D, F), ("up", "w3", D, F), ("down", "w2", F, D)):
        found.append(linear(f"feed_forward.{ours}.weight", f"{at}feed_forward.{name}.weight", (inputs,), (outputs,)))
    return found


def _convolution(config: ModelConfig, at: str) -> list[Row]:
    D, W, bias = config.embed_dim, config.recurrent.kernel, config.recurrent.bias
    found = [Row("attention.taps", f"{at}conv.weight", (D, 1, W), (D, W), (0, 1))]
    for name, part in CONVOLUTION.items():
        take = (part * D, (part + 1) * D)
        found.append(linear(f"attention.{name}.weight", f"{at}in_proj.weight", (D,), (3 * D,), take))
        if bias:
            found.append(Row(f"attention.{name}.bias", f"{at}in_proj.bias", (3 * D,), (3 * D,), (0,), (0, *take)))
    if bias:
        found.append(same("attention.bias", f"{at}conv.bias", D))
    return [*found, *dense("attention.output", f"{at}out_proj", (D,), (D,), bias)]


def renamed(rows: list[Row], names: Mapping[str, str]) -> list[Row]:
    """Return rows with other names for parts of their tensors' names."""
    return [
        dataclasses.replace(row, theirs=".".join([names.get(part, part) for part in row.theirs.split(".")])) for row in rows
    ]


def _lfm2_ends(config: ModelConfig) -> list[Row]:
    return renamed(llama.ends(config), {"norm": "embedding_norm"})


# Short gated convolutions with a few layers of attention between them (Liquid AI 2025).
LFM2 = derived(
    "lfm2",
    "Lfm2ForCausalLM",
    {
        "vocab_size": 65536, "hidden_size": 2560, "intermediate_size": 12288, "num_key_value_heads": 8,
        "max_position_embeddings": 128_000, "norm_eps": 1e-5, "tie_word_embeddings": True, "conv_bias": False,
        "conv_L_cache": 3, "block_multiple_of": 256, "block_ffn_dim_multiplier": 1.0, "block_auto_adjust_ff_dim": True,
    },
    read=_lfm2,
    write=_lfm2_keys,
    rows=_lfm2_rows,
    ends=_lfm2_ends,
    gguf="",
)  # fmt: skip


NEXT_TYPES = {"linear_attention": "delta", "full_attention": "global"}


def _next(hf: Mapping) -> dict:
    every, layers = hf.get("full_attention_interval") or 4, range(hf["num_hidden_layers"])
    types = hf.get("layer_types") or ["linear_attention" if (i + 1) % every else "full_attention" for i in layers]
    refuse(hf, hidden_act="silu")  # also that of its convolutions
    found = qwen3_moe(hf)
    if found["moe"]:
        found["moe"] |= {"shared_dim": hf["shared_expert_intermediate_size"], "shared_gate": True}
    fraction = {"partial_rotary_factor": hf.get("partial_rotary_factor", 0.25)}
    return {
        **found,
        "attention_pattern": pattern({**hf, "layer_types": types}, NEXT_TYPES),
        "window": 0,
        "rope": rope_of({**hf, **fraction}, partial=True),
        "norm_plus_one": True,
        "output_gate": True,
        "recurrent": {
            "kernel": hf["linear_conv_kernel_dim"],
            "num_heads": hf["linear_num_value_heads"],
            "num_key_heads": hf["linear_num_key_heads"],
            "key_dim": hf["linear_key_head_dim"],
            "value_dim": hf["linear_value_head_dim"],
        },
    }


def _next_keys(config: ModelConfig) -> dict:
    return {**qwen3_moe_keys(config), "shared_expert_intermediate_size": config.moe.shared_dim, **_delta_keys(config)}


def _delta_keys(config: ModelConfig) -> dict:
    r = config.recurrent
    return {
        "layer_types": types_of(config, NEXT_TYPES),
        "partial_rotary_factor": config.rope.fraction,
        "linear_conv_kernel_dim": r.kernel,
        "linear_num_value_heads": r.num_heads,
        "linear_num_key_heads": r.num_key_heads,
        "linear_key_head_dim": r.key_dim,
        "linear_value_head_dim": r.value_dim,
    }


def _fused(config: ModelConfig, at: str) -> list[Row]:
    """Return the rows of Qwen3-Next's input projections, in which the parts of a head of keys are next to one another."""
    (G, R, K, X), found = _sizes(config), list[Row]()
    for fused, parts in (("qkvz", {"query": K, "key": K, "value": X, "gate": X}), ("ba", {"beta": R, "decay": R})):
        begin, whole = 0, sum(parts.values())
        for name, size in parts.items():
            take = (1, begin, begin + size)
            theirs = f"{at}in_proj_{fused}.weight"
            found.append(linear(f"attention.{name}.weight", theirs, (config.embed_dim,), (G, whole), take))
            begin += size
    return found


def _apart(config: ModelConfig, at: str) -> list[Row]:
    """Return the rows of Qwen 3.5's input projections: all queries, all keys and all values in one matrix, three others."""
    D, (G, R, K, X) = config.embed_dim, _sizes(config)
    begin, found = 0, list[Row]()
    for name, size in (("query", K), ("key", K), ("value", X)):
        take = (begin, begin + G * size)
        row = linear(f"attention.{name}.weight", f"{at}in_proj_qkv.weight", (D,), (G * (2 * K + X),), take)
        found.append(dataclasses.replace(row, order=(2, 0, 1), split=(G, size)))
        begin += G * size
    for name, theirs, size in (("gate", "z", X), ("beta", "b", R), ("decay", "a", R)):
        found.append(linear(f"attention.{name}.weight", f"{at}in_proj_{theirs}.weight", (D,), (G, size)))
    return found


def _sizes(config: ModelConfig) -> tuple[int, int, int, int]:
    """Return a delta net's heads of keys, heads of values of each, and the sizes of a key and of these values together."""
    r = config.recurrent
    return r.num_key_heads, (R := r.num_heads // r.num_key_heads), r.key_dim, R * r.value_dim


def _delta(config: ModelConfig, at: str) -> list[Row]:
    """Return the rows of a delta net without those of its input projections."""
    D, r, (G, R, K, X) = config.embed_dim, config.recurrent, _sizes(config)
    begin, channels, found = 0, G * (2 * K + X), list[Row]()
    for name, size in (("query", G * K), ("key", G * K), ("value", G * X)):
        shapes = (channels, 1, r.kernel), (channels, r.kernel)
        found.append(Row(f"attention.{name}_taps", f"{at}conv1d.weight", *shapes, (0, 1), (0, begin, begin + size)))
        begin += size
    return [
        *found,
        same("attention.decay_rate", f"{at}A_log", G, R),
        same("attention.decay_bias", f"{at}dt_bias", G, R),
        same("attention.norm.scale", f"{at}norm.weight", r.value_dim),
        linear("attention.output.weight", f"{at}out_proj.weight", (G, X), (D,)),
    ]


def _next_rows(config: ModelConfig, kind: LayerKind, inputs: Callable[[ModelConfig, str], list[Row]] = _fused) -> list[Row]:
    """Return the rows of a layer. inputs: returns those of a delta net's input projections."""
    at = "model.layers.{layer}."
    delta = f"{at}linear_attn."
    mixer = [*inputs(config, delta), *_delta(config, delta)] if kind.recurrent else _gated_attention(config, f"{at}self_attn.")
    if not kind.moe:
        return [*mixer, *llama.pre_norms(config), *llama.feed_forward(config)]
    shared = llama.feed_forward(config, f"{at}mlp.shared_expert.", "feed_forward.shared", config.moe.shared_dim)
    gate = linear("feed_forward.shared_gate", f"{at}mlp.shared_expert_gate.weight", (config.embed_dim,), (1,))
    return [*mixer, *llama.pre_norms(config), *llama.experts(config, f"{at}mlp.", "gate"), *shared, gate]


def _gated_attention(config: ModelConfig, at: str) -> list[Row]:
    """Return the rows of attention whose q_proj has a head's query and then its gate."""
    D, H, K = config.embed_dim, config.num_heads, config.head_dim
    found = [row for row in llama.attention(config, at) if not row.ours.startswith("attention.query.")]
    for name, take in (("query", (1, 0, K)), ("gate", (1, K, 2 * K))):
        found.append(linear(f"attention.{name}.weight", f"{at}q_proj.weight", (D,), (H, 2 * K), take))
        if config.qkv_bias:
            found.append(Row(f"attention.{name}.bias", f"{at}q_proj.bias", (2 * H * K,), (H, 2 * K), (0, 1), take))
    return found


NEXT_DEFAULTS = {
    **QWEN3_MOE_DEFAULTS, "intermediate_size": 5632, "num_hidden_layers": 48, "num_attention_heads": 16,
    "num_key_value_heads": 2, "head_dim": 256, "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512,
    "num_experts_per_tok": 10, "num_experts": 512, "norm_topk_prob": True, "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_num_key_heads": 16, "linear_num_value_heads": 32,
}  # fmt: skip
# Gated delta nets with gated attention on every fourth layer, and experts with a gated shared one (Qwen 2025).
QWEN3_NEXT = derived(
    "qwen3_next",
    "Qwen3NextForCausalLM",
    NEXT_DEFAULTS,
    read=_next,
    write=_next_keys,
    rows=_next_rows,
    ignored=(r".*rotary_emb\.inv_freq", r"mtp\..*"),
    gguf="",
)


def _experts_keys(config: ModelConfig) -> dict:
    keys = ("attention_bias", "num_experts", "num_experts_per_tok", "moe_intermediate_size", "shared_expert_intermediate_size")
    return {key: value for key, value in _next_keys(config).items() if key in keys} | _delta_keys(config)


def _qwen3_5(model_type: str, architecture: str, defaults: Mapping, write: Callable[[ModelConfig], dict]) -> Family:
    """Return Qwen3-Next with input projections of their own (Qwen 2026).

    What sees is not read. The positions of images have three axes, which are the same for text.
    """
    text = derived(
        f"{model_type}_text",
        architecture,
        {**NEXT_DEFAULTS, "vocab_size": 248320, **defaults},
        read=_next,
        write=write,
        rows=functools.partial(_next_rows, inputs=_apart),
        ignored=(*QWEN3_NEXT.ignored, r"model\.visual\..*"),
        gguf="",
    )
    return also_seeing(model_type, text)


QWEN3_5 = _qwen3_5(
    "qwen3_5",
    "Qwen3_5ForCausalLM",
    {
        "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 32, "num_key_value_heads": 4, "num_experts": 0,
    },
    lambda config: {"attention_bias": config.qkv_bias, **_delta_keys(config)},
)  # fmt: skip
QWEN3_5_MOE = _qwen3_5(
    "qwen3_5_moe",
    "Qwen3_5MoeForCausalLM",
    {"num_hidden_layers": 40, "num_experts_per_tok": 8, "num_experts": 256},
    _experts_keys,
)
