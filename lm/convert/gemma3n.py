"""Gemma 3n, the language model alone: Gemma 3 without 1 + w in its norms, and with several ideas of its own.

Of these, AltUp, LAuReL and the embeddings of layers are in lm/model/streams.py. The last layers share keys and values, and the
gates of the first are sparse. From a checkpoint that sees and hears (`model_type` gemma3n) the towers are left out.
`altup_coef_clip`, which bounds coefficients while transformers trains, is not read.
"""

from collections.abc import Mapping

from lm.config import LayerKind, ModelConfig
from lm.convert import llama
from lm.convert.gemma import NORMS
from lm.convert.llama import LLAMA, repeating
from lm.convert.rotary import keys_by_kind, ropes_of
from lm.convert.rows import Row, linear, same, table
from lm.errors import UserError

DEFAULTS = {
    "vocab_size": 262400, "hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 35, "num_attention_heads": 8,
    "num_key_value_heads": 2, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "attention_bias": False, "sliding_window": 512,
    "final_logit_softcapping": 30.0, "vocab_size_per_layer_input": 262144, "hidden_size_per_layer_input": 256,
    "altup_num_inputs": 4, "num_kv_shared_layers": 15, "laurel_rank": 64,
}  # fmt: skip
TOWERS = r"(model\.)?(vision_tower|audio_tower|embed_vision|embed_audio)\..*"  # tensors of a checkpoint that sees and hears


def from_hf(hf: Mapping) -> ModelConfig:
    hf = {**DEFAULTS, **llama.text_config(hf, "tie_word_embeddings")}
    llama.refuse(hf, altup_active_idx=0, altup_correct_scale=True)
    for key, least in (("altup_num_inputs", 2), ("laurel_rank", 1), ("hidden_size_per_layer_input", 1)):
        if hf[key] < least:
            raise UserError(f"{key}={hf[key]!r} in config.json must be at least {least}")
    L, dims, sparsity = hf["num_hidden_layers"], hf["intermediate_size"], hf.get("activation_sparsity_pattern")
    dims = dims if isinstance(dims, list) else [dims]
    sparsity = [0.95 * (L > 10 and i < 10) for i in range(L)] if sparsity is None else sparsity
    types = hf.get("layer_types") or ["sliding_attention" if (i + 1) % 5 else "full_attention" for i in range(L)]
    return llama.decoder(
        {**hf, "intermediate_size": max(dims)},
        **llama.biases(hf),
        **llama.windows(hf["sliding_window"], types),
        **ropes_of(hf, theta=1e6, local_theta=1e4),
        activation=llama.activation(hf, "hidden_activation"),
        norm_position="sandwich",
        qk_norm="head",
        value_norm=True,
        query_scale=1.0,
        embed_scale=hf["hidden_size"] ** 0.5,
        logit_softcap=hf["final_logit_softcapping"] or 0.0,
        mlp_dims=repeating(dims) if len(set(dims)) > 1 else (),
        gate_sparsity=repeating([float(x) for x in sparsity]) if any(sparsity) else (),
        shared_kv_layers=hf["num_kv_shared_layers"],
        laurel_rank=hf["laurel_rank"],
        altup_streams=hf["altup_num_inputs"],
        layer_embed_dim=hf["hidden_size_per_layer_input"],
        layer_embed_vocab=hf["vocab_size_per_layer_input"],
    )


def to_hf(config: ModelConfig) -> dict:
    keys, kinds = llama.described(config, "gemma3n_text", "Gemma3nForCausalLM"), config.layer_kinds
    return {
        **keys,
        "hidden_activation": keys.pop("hidden_act"),
        "intermediate_size": [kind.mlp_dim or config.mlp_dim for kind in kinds],
        "attention_bias": config.qkv_bias,
        "sliding_window": config.window or config.max_positions,
        "layer_types": llama.layer_types(config),
        **keys_by_kind(config),
        "rope_local_base_freq": config.local_rope.theta,
        "final_logit_softcapping": config.logit_softcap or None,
        "activation_sparsity_pattern": [kind.sparsity for kind in kinds],
        "num_kv_shared_layers": config.shared_kv_layers,
        "laurel_rank": config.laurel_rank,
        "altup_num_inputs": config.altup_streams,
        "hidden_size_per_layer_input": config.layer_embed_dim,
        "vocab_size_per_layer_input": config.layer_embed_vocab or config.vocab_size,
    }


def rows(config: ModelConfig, kind: LayerKind) -> list[Row]:
    at, D, N = "model.layers.{layer}.", config.embed_dim, config.altup_streams
    R, P = config.laurel_rank, config.layer_embed_dim
    theirs_alone = ("attention.key", "attention.value") if kind.takes else ()
    return [
        *(row for row in llama.attention(config) if not row.ours.startswith(theirs_alone)),
        *llama.norms(config, NORMS),
        *llama.feed_forward(config, dim=kind.mlp_dim),
        same("streams.altup.router_norm.scale", f"{at}altup.router_norm.weight", D),
        linear("streams.altup.router", f"{at}altup.modality_router.weight", (D,), (N,)),
        linear("streams.altup.predicting", f"{at}altup.prediction_coefs.weight", (N,), (N, N)),
        linear("streams.altup.correcting", f"{at}altup.correction_coefs.weight", (N,), (N,)),
        linear("streams.laurel.down.weight", f"{at}laurel.linear_left.weight", (D,), (R,)),
        linear("streams.laurel.up.weight", f"{at}laurel.linear_right.weight", (R,), (D,)),
        same("streams.laurel.norm.scale", f"{at}laurel.post_laurel_norm.weight", D),
        same("streams.embedding_gate.scale", f"{at}altup.correct_output_scale", D),
        linear("streams.embedding_gate.gate.weight", f"{at}per_layer_input_gate.weight", (D,), (P,)),
        linear("streams.embedding_gate.output.weight", f"{at}per_layer_projection.weight", (P,), (D,)),
        same("streams.embedding_gate.norm.scale", f"{at}post_per_layer_input_norm.weight", D),
    ]


def ends(config: ModelConfig) -> list[Row]:
    D, L, P, V = config.embed_dim, config.num_layers, config.layer_embed_dim, config.layer_embed_vocab or config.vocab_size
    squares = {"into": "altup_projections", "out_of": "altup_unembed_projections"}
    return [
        *llama.ends(config),
        table("layer_embedding.table", "model.embed_tokens_per_layer.weight", V, L * P),
        linear("layer_embedding.projection.weight", "model.per_layer_model_projection.weight", (D,), (L, P)),
        same("layer_embedding.norm.scale", "model.per_layer_projection_norm.weight", P),
        *(
            linear(f"streams.{ours}.{i}.weight", f"model.{theirs}.{i}.weight", (D,), (D,))
            for ours, theirs in squares.items()
            for i in range(config.altup_streams - 1)
        ),
    ]


GEMMA3N = LLAMA._replace(
    model_types=("gemma3n", "gemma3n_text"),
    from_hf=from_hf,
    to_hf=to_hf,
    rows=rows,
    ends=ends,
    ignored=(*LLAMA.ignored, TOWERS),
    canonical=llama.text_name,
    gguf="",
)
