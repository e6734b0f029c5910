"""DeepSeek-V2 and V3: multi-head latent attention, and mixtures of many small experts with shared ones.

V2 routes by softmax and scores a group by its best expert. V3 routes by sigmoid and a bias and scores a group by its two best.
V3 also has multi-token prediction modules, stored as layers after the last one.
"""

import dataclasses
from collections.abc import Mapping

from lm.config import LayerKind, ModelConfig
from lm.convert import llama
from lm.convert.llama import LLAMA, decoder, described, experts, feed_forward, pre_norms, refuse, repeating
from lm.convert.rotary import rope_of
from lm.convert.rows import Family, Row, layer_norm, linear, same, table
from lm.errors import UserError

SHARED_DEFAULTS = {
    **llama.DEFAULTS, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128,
    "v_head_dim": 128, "moe_layer_freq": 1,
}  # fmt: skip
V2_DEFAULTS = {
    **SHARED_DEFAULTS, "vocab_size": 102400, "first_k_dense_replace": 0, "n_shared_experts": 2, "moe_intermediate_size": 1407,
    "routed_scaling_factor": 1.0, "topk_method": "greedy", "n_group": None, "topk_group": None, "num_experts_per_tok": None,
}  # fmt: skip
V3_DEFAULTS = {
    **SHARED_DEFAULTS, "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432, "num_hidden_layers": 61,
    "num_attention_heads": 128, "num_key_value_heads": 128, "max_position_embeddings": 4096, "first_k_dense_replace": 3,
    "n_shared_experts": 1, "moe_intermediate_size": 2048, "routed_scaling_factor": 2.5, "n_group": 8, "topk_group": 4,
    "num_experts_per_tok": 8, "norm_topk_prob": True, "rope_interleave": True,
}  # fmt: skip


def from_hf(hf: Mapping) -> ModelConfig:
    v3 = hf["model_type"] != "deepseek_v2"
    hf = {**(V3_DEFAULTS if v3 else V2_DEFAULTS), **hf}
    refuse(
        hf,
        attention_bias=False,
        mlp_bias=False,
        num_key_value_heads=hf["num_attention_heads"],
        scoring_func="sigmoid" if v3 else "softmax",
    )
    L, dense, step = hf["num_hidden_layers"], hf["first_k_dense_replace"] or 0, hf["moe_layer_freq"]
    kinds = ["moe" if i >= dense and i % step == 0 else "dense" for i in range(L)]
    if hf["model_type"] not in TYPES and hf.get("mlp_layer_types"):  # V3 with an indexer says it layer by layer
        kinds = [{"sparse": "moe"}.get(kind, kind) for kind in hf["mlp_layer_types"]]
    depth = hf.get("num_nextn_predict_layers", hf.get("num_mtp_layers", 1)) if v3 else 0
    mla = {
        "kv_rank": hf["kv_lora_rank"],
        "query_rank": hf["q_lora_rank"] or 0,
        "rope_head_dim": hf["qk_rope_head_dim"],
        "value_head_dim": hf["v_head_dim"],
    }
    return decoder(
        hf,
        head_dim=hf["qk_nope_head_dim"],
        num_kv_heads=hf["num_attention_heads"],
        mla=mla,
        mlp_pattern=repeating(kinds),
        moe=mixture(hf, v3) if "moe" in kinds else {},
        mtp_depth=depth or 0,
        rope=rope_of(hf, interleaved=bool(hf["rope_interleave"]) if v3 else True),
    )


def mixture(hf: Mapping, v3: bool) -> dict:
    """Return the settings of the experts, of V2 or V3."""
    E = next((hf[key] for key in ("n_routed_experts", "num_local_experts", "num_experts") if key in hf), 256 if v3 else 64)
    if not hf["num_experts_per_tok"]:
        raise UserError("num_experts_per_tok in config.json must be given")
    chosen = {
        "num_experts": E,
        "top_k": hf["num_experts_per_tok"],
        "expert_dim": hf["moe_intermediate_size"],
        "shared_dim": hf["moe_intermediate_size"] * (hf["n_shared_experts"] or 0),
        "weight_scale": float(hf["routed_scaling_factor"]),
    }
    groups = {"num_groups": hf["n_group"], "top_groups": hf["topk_group"]}
    if v3:
        bias = {"scores": "sigmoid", "normalize": bool(hf["norm_topk_prob"]), "group_score": "top2", "balance_bias": True}
        return {**chosen, **bias, **groups}
    chosen |= {"scores": "softmax", "normalize": False}
    if hf["topk_method"] == "greedy":
        return chosen
    refuse(hf, topk_method="group_limited_greedy")
    return {**chosen, **groups, "group_score": "max"}


def to_hf(config: ModelConfig) -> dict:
    moe, mla = config.moe, config.mla
    v3 = not any(kind.moe for kind in config.layer_kinds) or moe.scores == "sigmoid"
    keys = described(config, *(("deepseek_v3", "DeepseekV3ForCausalLM") if v3 else ("deepseek_v2", "DeepseekV2ForCausalLM")))
    del keys["head_dim"]
    keys |= {
        "q_lora_rank": mla.query_rank or None,
        "kv_lora_rank": mla.kv_rank,
        "qk_rope_head_dim": mla.rope_head_dim,
        "qk_nope_head_dim": config.head_dim,
        "v_head_dim": mla.value_head_dim,
        "attention_bias": False,
        "moe_layer_freq": 1,
        **mixture_keys(config),
    }
    if v3:
        more = {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "rope_interleave": config.rope.interleaved}
        return {**keys, **more, "num_nextn_predict_layers": config.mtp_depth}
    return {**keys, "scoring_func": "softmax", "topk_method": "group_limited_greedy" if moe.num_groups > 1 else "greedy"}


def mixture_keys(config: ModelConfig) -> dict:
    """Return the keys of the experts; the inverse of `mixture`."""
    moe, F = config.moe, config.moe.expert_dim or config.mlp_dim
    return {
        "first_k_dense_replace": next((i for i, kind in enumerate(config.layer_kinds) if kind.moe), config.num_layers),
        "n_routed_experts": moe.num_experts or 1,
        "num_experts_per_tok": moe.top_k,
        "moe_intermediate_size": F,
        "n_shared_experts": moe.shared_dim // F,
        "routed_scaling_factor": moe.weight_scale,
        "norm_topk_prob": moe.normalize,
        "n_group": moe.num_groups,
        "topk_group": moe.top_groups,
    }


def rows(config: ModelConfig, kind: LayerKind, at: str = "model.layers.{layer}.") -> list[Row]:
    return [*_attention(config, f"{at}self_attn."), *pre_norms(config, at), *feed_forward_rows(config, kind, f"{at}mlp.")]


def _attention(config: ModelConfig, at: str) -> list[Row]:
    D, H, K, V = config.embed_dim, config.num_heads, config.head_dim, config.value_head_dim
    R, Q, rope = config.mla.kv_rank, config.mla.query_rank, config.mla.rope_head_dim
    if Q:
        query = [
            linear("attention.query_down.weight", f"{at}q_a_proj.weight", (D,), (Q,)),
            same("attention.query_latent_norm.scale", f"{at}q_a_layernorm.weight", Q),
            linear("attention.query_up.weight", f"{at}q_b_proj.weight", (Q,), (H, K + rope)),
        ]
    else:
        query = [linear("attention.query.weight", f"{at}q_proj.weight", (D,), (H, K + rope))]
    return [
        *query,
        linear("attention.latent.weight", f"{at}kv_a_proj_with_mqa.weight", (D,), (R + rope,)),
        same("attention.latent_norm.scale", f"{at}kv_a_layernorm.weight", R),
        linear("attention.key_up.weight", f"{at}kv_b_proj.weight", (R,), (H, K + V), (1, 0, K)),
        linear("attention.value_up.weight", f"{at}kv_b_proj.weight", (R,), (H, K + V), (1, K, K + V)),
        linear("attention.output.weight", f"{at}o_proj.weight", (H, V), (D,)),
        *(_indexer(config, f"{at}indexer.") if config.mla.index_topk else ()),
    ]


def _indexer(config: ModelConfig, at: str) -> list[Row]:
    D, Q, H, K = config.embed_dim, config.mla.query_rank, config.mla.index_heads, config.mla.index_head_dim
    weights = linear("attention.indexer.weight", f"{at}weights_proj.weight", (D,), (H,))
    return [
        linear("attention.indexer.query.weight", f"{at}wq_b.weight", (Q,), (H, K)),
        linear("attention.indexer.key.weight", f"{at}wk.weight", (D,), (K,)),
        *layer_norm("attention.indexer.key_norm", f"{at}k_norm", K),
        dataclasses.replace(weights, float32=True),
    ]


def feed_forward_rows(config: ModelConfig, kind: LayerKind, at: str) -> list[Row]:
    if not kind.moe:
        return feed_forward(config, at)
    found = experts(config, at, "gate")
    if config.moe.balance_bias:
        E = config.moe.num_experts
        found.append(same("feed_forward.balance_bias", f"{at}gate.e_score_correction_bias", E, float32=True))
    if config.moe.shared_dim:
        found += feed_forward(config, f"{at}shared_experts.", "feed_forward.shared", config.moe.shared_dim)
    return found


def ends(config: ModelConfig) -> list[Row]:
    D, found = config.embed_dim, LLAMA.ends(config)
    for k in range(config.mtp_depth):
        ours, at = f"mtp.{k}.", f"model.layers.{config.num_layers + k}."
        found += [
            same(f"{ours}embedding_norm.scale", f"{at}enorm.weight", D),
            same(f"{ours}hidden_norm.scale", f"{at}hnorm.weight", D),
            linear(f"{ours}projection.weight", f"{at}eh_proj.weight", (2 * D,), (D,)),
            same(f"{ours}norm.scale", f"{at}shared_head.norm.weight", D),
        ]
        layer = rows(config, config.layer_kinds[-1], at)
        found += [dataclasses.replace(row, ours=f"{ours}layer.{row.ours}") for row in layer]
    return found


def copies(config: ModelConfig) -> list[Row]:
    """Return the rows of the model's embedding and head that each multi-token prediction module holds again."""
    V, D, head = config.vocab_size, config.embed_dim, "embedding" if config.tie_embeddings else "head"
    layers = range(config.num_layers, config.num_layers + config.mtp_depth)
    return [
        table(ours, f"model.layers.{i}.{theirs}.weight", V, D)
        for i in layers
        for ours, theirs in (("embedding", "embed_tokens"), (head, "shared_head.head"))
    ]


IGNORED = (*LLAMA.ignored, r"model\.layers\.\d+\.(embed_tokens|shared_head\.head)\.weight")
# Kimi K2 is a DeepSeek-V3 of another size (Moonshot AI 2025).
TYPES = ("deepseek_v2", "kimi_k2", "deepseek_v3")
DEEPSEEK = Family(TYPES, from_hf, to_hf, rows, ends, ignored=IGNORED, copies=copies, gguf="deepseek2")
