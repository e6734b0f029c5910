"""Families that have layers with a state of fixed size beside those of attention: LFM2 and Qwen3-Next."""

import dataclasses
from collections.abc import Mapping

from lm.config import LayerKind, ModelConfig
from lm.convert import llama
from lm.convert.llama import derived, refuse, repeating
from lm.convert.relatives import QWEN3_MOE_DEFAULTS, qwen3_moe, qwen3_moe_keys
from lm.convert.rotary import rope_of
from lm.convert.rows import Row, dense, linear, same
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
    kinds = [kind.recurrent or ("local" if kind.local else "global") for kind in config.layer_kinds]
    if unknown := sorted(set(kinds) - set(theirs)):
        raise UserError(f"model.attention_pattern has {unknown[0]} layers, which this family has not")
    return [theirs[kind] for kind in kinds]


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
    r = config.recurrent
    return {
        **qwen3_moe_keys(config),
        "layer_types": types_of(config, NEXT_TYPES),
        "partial_rotary_factor": config.rope.fraction,
        "shared_expert_intermediate_size": config.moe.shared_dim,
        "linear_conv_kernel_dim": r.kernel,
        "linear_num_value_heads": r.num_heads,
        "linear_num_key_heads": r.num_key_heads,
        "linear_key_head_dim": r.key_dim,
        "linear_value_head_dim": r.value_dim,
    }


def _next_rows(config: ModelConfig, kind: LayerKind) -> list[Row]:
    at = "model.layers.{layer}."
    mixer = _delta(config, f"{at}linear_attn.") if kind.recurrent else _gated_attention(config, f"{at}self_attn.")
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


def _delta(config: ModelConfig, at: str) -> list[Row]:
    """Return the rows of a delta net. Fused matrices have the parts of a head of keys next to one another."""
    D, r = config.embed_dim, config.recurrent
    G, R, K = r.num_key_heads, r.num_heads // r.num_key_heads, r.key_dim
    X, found = R * r.value_dim, list[Row]()
    for fused, parts in (("qkvz", {"query": K, "key": K, "value": X, "gate": X}), ("ba", {"beta": R, "decay": R})):
        begin, whole = 0, sum(parts.values())
        for name, size in parts.items():
            take = (1, begin, begin + size)
            found.append(linear(f"attention.{name}.weight", f"{at}in_proj_{fused}.weight", (D,), (G, whole), take))
            begin += size
    begin, channels = 0, G * (2 * K + X)
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


# Gated delta nets with gated attention on every fourth layer, and experts with a gated shared one (Qwen 2025).
QWEN3_NEXT = derived(
    "qwen3_next",
    "Qwen3NextForCausalLM",
    {
        **QWEN3_MOE_DEFAULTS, "intermediate_size": 5632, "num_hidden_layers": 48, "num_attention_heads": 16,
        "num_key_value_heads": 2, "head_dim": 256, "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512,
        "num_experts_per_tok": 10, "num_experts": 512, "norm_topk_prob": True, "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_num_key_heads": 16, "linear_num_value_heads": 32,
    },
    read=_next,
    write=_next_keys,
    rows=_next_rows,
    ignored=(r".*rotary_emb\.inv_freq", r"mtp\..*"),
    gguf="",
)  # fmt: skip
