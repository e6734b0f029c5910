"""Families with layers of Mamba-2: Bamba, the hybrids of Granite 4, and Nemotron-H."""

import math
from collections.abc import Mapping

from lm.config import LayerKind, ModelConfig, Recurrent
from lm.convert import deepseek, llama
from lm.convert.dense_families import MULTIPLIERS, multiplier_keys, multipliers
from lm.convert.hybrids import pattern, renamed, types_of
from lm.convert.llama import ACTIVATION_NAMES, activation, biases, derived, refuse, repeating
from lm.convert.relatives import mixture_keys
from lm.convert.rotary import rope_of
from lm.convert.rows import Row, linear, same
from lm.convert.sparse_families import granite_experts, mixture_of_all
from lm.errors import UserError

NO_LIMITS = (None, [0.0, math.inf], [0.0, {"__float__": "Infinity"}])  # the last one as transformers writes it
# The older names, which all readers know, are written.
TYPES = {"linear_attention": "mamba", "full_attention": "global", "mamba": "mamba", "attention": "global"}


def _mixer(hf: Mapping) -> dict:
    """Return model.recurrent of Mamba-2."""
    refuse(hf, hidden_act="silu", mamba_proj_bias=False)
    _refuse_limits(hf)
    width, heads = hf["mamba_expand"] * hf["hidden_size"], hf["mamba_n_heads"]
    size = width // heads if hf["mamba_d_head"] == "auto" else hf["mamba_d_head"]
    if size * heads != width:
        raise UserError(
            f"mamba_d_head={size} × mamba_n_heads={heads} in config.json is not mamba_expand × hidden_size = {width}"
        )
    return {
        "kernel": hf["mamba_d_conv"],
        "bias": bool(hf["mamba_conv_bias"]),
        "num_heads": heads,
        "num_key_heads": hf["mamba_n_groups"],
        "key_dim": hf["mamba_d_state"],
        "value_dim": size,
        "chunk": hf["mamba_chunk_size"],
    }


def _refuse_limits(hf: Mapping) -> None:
    if hf.get("time_step_limit") not in NO_LIMITS:
        raise UserError(f"time_step_limit={hf['time_step_limit']} in config.json cannot be expressed: only [0, inf] can")


def _mixer_keys(config: ModelConfig) -> dict:
    # A model without these layers has sizes that agree with one another, as transformers wants.
    r = config.recurrent if config.recurrent_kinds else Recurrent(num_heads=1, num_key_heads=1, value_dim=config.embed_dim)
    return {
        "mamba_d_conv": r.kernel,
        "mamba_conv_bias": r.bias,
        "mamba_n_heads": r.num_heads,
        "mamba_n_groups": r.num_key_heads,
        "mamba_d_state": r.key_dim,
        "mamba_d_head": r.value_dim,
        "mamba_chunk_size": r.chunk,
        "mamba_expand": r.num_heads * r.value_dim // config.embed_dim,
    }


def _bamba(hf: Mapping) -> dict:
    full = hf.get("attn_layer_indices") or ()
    return {
        **biases(hf),
        "mlp_bias": bool(hf["mlp_bias"]),
        "rope": rope_of({**hf, "partial_rotary_factor": 0.5}, partial=True),
        "attention_pattern": repeating(["global" if i in full else "mamba" for i in range(hf["num_hidden_layers"])]),
        "recurrent": _mixer(hf),
    }


def _bamba_keys(config: ModelConfig) -> dict:
    types_of(config, TYPES)
    return {
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.mlp_bias,
        "attn_layer_indices": [i for i, kind in enumerate(config.layer_kinds) if not kind.recurrent],
        **_mixer_keys(config),
    }


def _bamba_rows(config: ModelConfig, kind: LayerKind) -> list[Row]:
    D, at = config.embed_dim, "model.layers.{layer}."
    return [
        *_mixer_rows(config, kind),
        same("attention_norm.scale", f"{at}input_layernorm.weight", D),
        same("feed_forward_norm.scale", f"{at}pre_ff_layernorm.weight", D),
        *llama.feed_forward(config, f"{at}feed_forward."),
    ]


def _mixer_rows(config: ModelConfig, kind: LayerKind) -> list[Row]:
    return _mamba(config, "model.layers.{layer}.mamba.") if kind.recurrent else llama.attention(config)


def _mamba(config: ModelConfig, at: str) -> list[Row]:
    """Return the rows of a Mamba-2 mixer: in_proj is gate, x, B, C and Δ, the convolution that of x, B and C."""
    D, r = config.embed_dim, config.recurrent
    G, H, X = r.num_key_heads, r.num_heads, r.num_heads * r.value_dim
    sizes, begin, found = {"gate": X, "value": X, "key": G * r.key_dim, "query": G * r.key_dim, "decay": H}, 0, list[Row]()
    total, channels = sum(sizes.values()), X + 2 * G * r.key_dim
    for name, size in sizes.items():
        found.append(linear(f"attention.{name}.weight", f"{at}in_proj.weight", (D,), (total,), (begin, begin + size)))
        if name not in ("gate", "decay"):
            take = (0, begin - X, begin - X + size)
            shapes = (channels, 1, r.kernel), (channels, r.kernel)
            found.append(Row(f"attention.{name}_taps", f"{at}conv1d.weight", *shapes, (0, 1), take))
            if r.bias:
                found.append(Row(f"attention.{name}_bias", f"{at}conv1d.bias", (channels,), (channels,), (0,), take))
        begin += size
    names = {"decay_rate": "A_log", "decay_bias": "dt_bias", "skip": "D"}
    found += [same(f"attention.{ours}", f"{at}{theirs}", G, H // G) for ours, theirs in names.items()]
    found.append(same("attention.scale", f"{at}norm.weight", G, X // G))
    return [*found, linear("attention.output.weight", f"{at}out_proj.weight", (G, X // G), (D,))]


MIXER = {
    "mamba_n_heads": 128, "mamba_d_head": "auto", "mamba_n_groups": 1, "mamba_d_state": 256, "mamba_d_conv": 4,
    "mamba_expand": 2, "mamba_conv_bias": True, "mamba_proj_bias": False, "mamba_chunk_size": 256,
}  # fmt: skip
# Mamba-2 with a few layers of attention between them (IBM et al. 2024).
BAMBA = derived(
    "bamba",
    "BambaForCausalLM",
    {
        **MIXER, "vocab_size": 128000, "intermediate_size": 14336, "num_key_value_heads": 8,
        "max_position_embeddings": 262144, "rms_norm_eps": 1e-5,
    },
    read=_bamba,
    write=_bamba_keys,
    rows=_bamba_rows,
    ends=lambda config: renamed(llama.ends(config), {"norm": "final_layernorm"}),
    gguf="",
)  # fmt: skip


def _granite(hf: Mapping) -> dict:
    hidden = hf["shared_intermediate_size"]
    if not hidden:
        raise UserError("shared_intermediate_size=0 in config.json cannot be expressed: it must be at least 1")
    types = hf.get("layer_types") or hf.get("layers_block_type") or ["mamba"] * hf["num_hidden_layers"]
    kinds = pattern({**hf, "layer_types": types}, TYPES)
    return {
        **multipliers(hf),
        **biases(hf),
        "positions": "rotary" if hf["position_embedding_type"] == "rope" else "none",
        "attention_pattern": kinds,
        "recurrent": _mixer(hf) if "mamba" in kinds else {},
        **(mixture_of_all(hf, shared_dim=hidden) if hf["num_local_experts"] else {"mlp_dim": hidden}),
    }


def _granite_keys(config: ModelConfig) -> dict:
    sparse = any(kind.moe for kind in config.layer_kinds)
    return {
        **multiplier_keys(config),
        **_mixer_keys(config),
        "attention_bias": config.qkv_bias,
        "position_embedding_type": "rope" if config.positions == "rotary" else "nope",
        "layer_types": types_of(config, TYPES),
        **(mixture_keys(config) if sparse else {"num_local_experts": 0, "num_experts_per_tok": 0}),
        "shared_intermediate_size": config.moe.shared_dim if sparse else config.mlp_dim,
    }


def _granite_rows(config: ModelConfig, kind: LayerKind) -> list[Row]:
    at, names = "model.layers.{layer}.", ("input_linear", "output_linear")
    ours, dim = ("feed_forward.shared", config.moe.shared_dim) if kind.moe else ("feed_forward", 0)
    return [
        *_mixer_rows(config, kind),
        *llama.pre_norms(config),
        *(granite_experts(config, f"{at}block_sparse_moe.") if kind.moe else ()),
        *llama.fused_feed_forward(config, f"{at}shared_mlp.", ours, dim, names),
    ]


# Bamba's mixer with Granite's factors: layers of attention with or without positions, experts or none (IBM 2025, Granite 4.0).
GRANITE_HYBRID = derived(
    "granitemoehybrid",
    "GraniteMoeHybridForCausalLM",
    {
        **MULTIPLIERS, **MIXER, "num_local_experts": 8, "num_experts_per_tok": 2, "shared_intermediate_size": 1024,
        "position_embedding_type": None,
    },
    read=_granite,
    write=_granite_keys,
    rows=_granite_rows,
    gguf="",
)  # fmt: skip


LETTERS = {"linear_attention": "M", "mamba": "M", "full_attention": "*", "attention": "*", "mlp": "-", "moe": "E"}
MIXERS = {"M": "mamba", "*": "global", "E": "none", "-": "none"}


TINY_STEP = 1e-9  # in place of 0, whose logarithm transformers takes


def _nemotron(hf: Mapping) -> dict:
    refuse(hf, mamba_hidden_act="silu", use_bias=False, attention_bias=False, tie_word_embeddings=False)
    refuse(hf, sliding_window=None, moe_latent_size=None)
    _refuse_limits(hf)
    types = hf.get("layers_block_type") or hf.get("layer_types")
    letters = [LETTERS.get(name, name) for name in types or hf.get("hybrid_override_pattern") or "ME*-"]
    moe = {**deepseek.mixture(hf, v3=True), "shared_dim": hf["moe_shared_expert_intermediate_size"]}
    return {
        "num_layers": len(letters),
        "norm_eps": hf["layer_norm_epsilon"],
        "positions": "none",
        "activation": activation(hf, "mlp_hidden_act"),
        "gated": False,
        "mlp_bias": bool(hf["mlp_bias"]),
        "attention_pattern": pattern({"layer_types": letters, "num_hidden_layers": len(letters)}, MIXERS),
        "mlp_pattern": repeating([{"E": "moe", "-": "dense"}.get(letter, "none") for letter in letters]),
        "moe": moe if "E" in letters else {},
        "recurrent": {
            "kernel": hf["conv_kernel"],
            "bias": bool(hf["use_conv_bias"]),
            "num_heads": hf["mamba_num_heads"],
            "num_key_heads": hf["n_groups"],
            "key_dim": hf["ssm_state_size"],
            "value_dim": hf["mamba_head_dim"],
            "chunk": hf["chunk_size"],
            "least_step": hf["time_step_min"] if hf["time_step_min"] > TINY_STEP else 0.0,
        },
    }


def _nemotron_keys(config: ModelConfig) -> dict:
    r, names = config.recurrent, zip(types_of(config, MIXERS), config.layer_kinds)
    return {
        **deepseek.mixture_keys(config),
        "hybrid_override_pattern": "".join("E" if kind.moe else name for name, kind in names),
        "layer_norm_epsilon": config.norm_eps,
        "mlp_hidden_act": ACTIVATION_NAMES[config.activation],
        "mlp_bias": config.mlp_bias,
        "conv_kernel": r.kernel,
        "use_conv_bias": r.bias,
        "mamba_num_heads": r.num_heads,
        "n_groups": r.num_key_heads,
        "ssm_state_size": r.key_dim,
        "mamba_head_dim": r.value_dim,
        "chunk_size": r.chunk,
        "time_step_min": r.least_step or TINY_STEP,
        "n_shared_experts": 1,
        "moe_shared_expert_intermediate_size": config.moe.shared_dim,
    }


def _nemotron_rows(config: ModelConfig, kind: LayerKind) -> list[Row]:
    at, norm = "backbone.layers.{layer}.", "feed_forward_norm" if kind.feed_forward else "attention_norm"
    found = llama.norms(config, {norm: "norm"}, at)
    if kind.feed_forward:
        return [*found, *deepseek.feed_forward_rows(config, kind, f"{at}mixer.")]
    return [*found, *(_mamba(config, f"{at}mixer.") if kind.recurrent else llama.attention(config, f"{at}mixer."))]


# Each layer is Mamba-2, attention without positions, or squared ReLU with or without experts (NVIDIA 2025, Nemotron-H).
NEMOTRON_H = derived(
    "nemotron_h",
    "NemotronHForCausalLM",
    {
        "vocab_size": 131072, "intermediate_size": 21504, "num_key_value_heads": 8, "head_dim": 128,
        "max_position_embeddings": 4096, "layer_norm_epsilon": 1e-5, "mlp_hidden_act": "relu2", "ssm_state_size": 128,
        "mamba_num_heads": 128, "mamba_head_dim": 64, "n_groups": 8, "conv_kernel": 4, "use_conv_bias": True,
        "chunk_size": 128, "n_routed_experts": 8, "n_shared_experts": 1, "moe_intermediate_size": 7688,
        "moe_shared_expert_intermediate_size": 7688, "num_experts_per_tok": 2, "routed_scaling_factor": 1.0,
        "n_group": 1, "topk_group": 1, "norm_topk_prob": True, "time_step_min": 0.001,
    },
    read=_nemotron,
    write=_nemotron_keys,
    rows=_nemotron_rows,
    ends=lambda config: renamed(llama.ends(config), {"model": "backbone", "embed_tokens": "embeddings", "norm": "norm_f"}),
    ignored=(r"mtp\..*",),
    canonical=lambda name: f"backbone.{name.removeprefix('model.')}" if name.startswith("model.") else name,
    gguf="",
)  # fmt: skip
