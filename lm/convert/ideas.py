"""Which ideas the keys of a config.json name, beyond those of a plain Llama, and whether the model code has them.

`python -m lm.convert explain FOLDER` prints them, and the refusal of an unknown family names those that are missing.
"""

from collections.abc import Mapping
from typing import NamedTuple


class Idea(NamedTuple):
    """An idea, the option of `config.model` that is it, and its signs in a config.json; option "": the code does not have it.

    A sign is a key with a value that is neither empty, zero nor false; or KEY=VALUE, if the value is that or a list with it.
    """

    name: str
    option: str
    signs: tuple[str, ...]


IDEAS = (
    Idea("sliding windows", "attention_pattern", ("layer_types=sliding_attention", "sliding_window")),
    Idea(
        "layers without positions (NoPE)",
        "rotary_pattern",
        ("no_rope_layers", "no_rope_layer_interval", "position_embedding_type=nope"),
    ),
    Idea("rotation of a part of each head", "rope.fraction", ("partial_rotary_factor", "rotary_pct")),
    Idea(
        "scaled rotary positions", "rope.scaling", ("rope_scaling", "rope_type=yarn", "rope_type=llama3", "rope_type=longrope")
    ),
    Idea("queries scaled by position", "attention_temperature", ("llama_4_scaling_beta", "attn_temperature_tuning")),
    Idea("norms of queries and keys", "qk_norm", ("use_qk_norm",)),
    Idea("biases", "qkv_bias", ("attention_bias", "use_bias", "mlp_bias")),
    Idea("latent attention", "mla", ("kv_lora_rank",)),
    Idea("soft-caps", "attention_softcap", ("attn_logit_softcapping", "final_logit_softcapping")),
    Idea("clamped gates", "gate_limit", ("swiglu_limit",)),
    Idea(
        "factors of embeddings, sublayers and logits",
        "residual_scale",
        ("embedding_multiplier", "residual_multiplier", "logits_scaling", "logit_scale"),
    ),
    Idea(
        "mixtures of experts",
        "moe",
        ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_experts_per_tok"),
    ),
    Idea("shared experts", "moe.shared_dim", ("n_shared_experts", "moe_num_shared_experts", "num_shared_experts")),
    Idea("further tokens predicted", "mtp_depth", ("num_nextn_predict_layers",)),
    Idea(
        "linear attention (gated delta nets)", "attention_pattern", ("layer_types=linear_attention", "linear_num_value_heads")
    ),
    Idea("state-space layers (Mamba-2)", "attention_pattern", ("mamba_n_groups", "mamba_num_heads", "layer_types=mamba")),
    Idea("short convolutions", "attention_pattern", ("conv_L_cache", "layer_types=conv")),
    Idea("state-space layers (Mamba-1)", "", ("mamba_dt_rank", "use_mambapy")),
    Idea(
        "layers of one sublayer", "mlp_pattern", ("hybrid_override_pattern", "layers_block_type=mlp", "layers_block_type=moe")
    ),
    Idea("attention and Mamba side by side in a layer", "", ("ssm_in_multiplier",)),
    Idea("recurrent layers (RG-LRU, RWKV, xLSTM)", "", ("lru_width", "attention_hidden_size", "qk_dim_factor")),
    Idea("attention within chunks", "attention_pattern", ("attention_chunk_size", "layer_types=chunked_attention")),
    Idea("attention to chosen tokens (an indexer)", "mla.index_topk", ("index_topk", "layer_types=indexed_attention")),
    Idea("attention to chosen tokens of another kind", "", ("layer_types=sparse_attention",)),
    Idea("tokens chosen once for several layers", "", ("indexer_types=shared",)),
    Idea("embeddings for each layer", "layer_embed_dim", ("hidden_size_per_layer_input",)),
    Idea("last layers that share keys and values", "shared_kv_layers", ("num_kv_shared_layers",)),
    Idea("keys and values shared by groups of layers", "", ("cla_share_factor",)),
    Idea("several residual streams (AltUp)", "altup_streams", ("altup_num_inputs",)),
    Idea("several residual streams (hyper-connections)", "", ("hc_mult",)),
    Idea("learned augmented residuals", "laurel_rank", ("laurel_rank",)),
    Idea("sparse gates", "gate_sparsity", ("activation_sparsity_pattern",)),
    Idea("ALiBi", "", ("alibi", "position_embedding_type=alibi")),
    Idea("positions of several axes (mRoPE)", "", ("mrope_section",)),
    Idea("an encoder before the decoder", "", ("is_encoder_decoder",)),
    Idea("cross-attention", "", ("cross_attention_layers", "add_cross_attention")),
    Idea("experts that do nothing", "", ("zero_expert_num",)),
)


def ideas_of(hf: Mapping) -> list[tuple[Idea, str]]:
    """Return the ideas that a config.json names, each with its first sign. The language model's section counts as well."""
    flat: dict = {}
    for part in (hf, hf.get("text_config"), hf.get("rope_parameters"), hf.get("rope_scaling")):
        flat |= part if isinstance(part, Mapping) else {}
    if flat.get("use_sliding_window") is False:
        flat["sliding_window"] = None
    found = ((idea, next((sign for sign in idea.signs if _seen(flat, sign)), "")) for idea in IDEAS)
    return [(idea, sign) for idea, sign in found if sign]


def missing(hf: Mapping) -> list[str]:
    """Return the names of the ideas that a config.json names and the model code does not have."""
    return [idea.name for idea, _ in ideas_of(hf) if not idea.option]


def _seen(hf: Mapping, sign: str) -> bool:
    key, _, wanted = sign.partition("=")
    value = hf.get(key)
    if not wanted:
        return bool(value)
    return wanted in value if isinstance(value, (list, tuple)) else value == wanted
