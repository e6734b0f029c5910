"""config.json in and out: old and new styles, absent keys, what cannot be expressed, and which family a model leaves as."""

import dataclasses

import pytest

from lm.config import ModelConfig
from lm.convert.essence import essence
from lm.convert.families import FAMILIES, family_for, family_of, is_ignored, model_config
from lm.errors import UserError
from tests.lm.convert.older_configs import OLDER

# As published before transformers 5, shortened to what says something of the model.


def read(hf: dict) -> ModelConfig:
    return family_of(hf).from_hf(hf)


@pytest.mark.parametrize("name", OLDER)
def test_older_configs_are_what_transformers_reads_in_them(name):
    transformers = pytest.importorskip("transformers")
    newer = transformers.AutoConfig.for_model(**OLDER[name]).to_dict()
    assert essence(read(newer)) == essence(read(OLDER[name]))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_absent_keys_are_the_defaults_of_transformers(model_type):
    transformers = pytest.importorskip("transformers")
    must = {"num_experts_per_tok": 6} if model_type == "deepseek_v2" else {}
    if model_type in ("idefics3", "smolvlm", "llava"):  # their tokens of images are beyond Llama's vocabulary
        must = {"text_config": {"model_type": "llama", "vocab_size": 130_000}}
    must |= {"scale_factor": 1} if model_type in ("idefics3", "smolvlm") else {}
    must |= {"audio_token_id": 24} if model_type == "voxtral" else {}
    must |= {"text_config": {"model_type": "ministral3"}, "tie_word_embeddings": False} if model_type == "mistral3" else {}
    must |= {"head_dim": 128} if model_type == "glm4_moe" else {}
    known = "deepseek_v3" if model_type == "kimi_k2" else model_type
    whole = transformers.AutoConfig.for_model(known, **must).to_dict()
    assert essence(read({"model_type": model_type, **must})) == essence(read(whole))


@pytest.mark.parametrize("name", OLDER)
def test_a_family_writes_the_config_that_it_reads(name):
    config = read(OLDER[name])
    assert essence(read(family_of(OLDER[name]).to_hf(config))) == essence(config)
    assert essence(ModelConfig(**config.to_dict())) == essence(config)


def test_what_older_configs_say():
    llama, phi, gemma, deepseek = (read(OLDER[name]) for name in ("Llama-3.1-8B", "Phi-4-mini", "gemma-3-4b", "DeepSeek-V3"))
    assert (llama.rope.theta, llama.rope.scaling, llama.dtype) == (5e5, "llama3", "bfloat16")
    assert (phi.rope.factor, phi.rope.original_positions, phi.rope_head_dim, phi.window) == (32, 4096, 96, 262144)
    assert gemma.attention_pattern == ("local",) * 5 + ("global",) and gemma.dtype == "bfloat16"
    assert (gemma.rope.theta, gemma.rope.factor, gemma.local_rope.theta, gemma.local_rope.scaling) == (1e6, 8, 1e4, "none")
    smol, llava, voxtral = (read(OLDER[name]) for name in ("SmolVLM-256M", "llava-1.5-7b", "Voxtral-Mini-3B"))
    assert (smol.dtype, smol.vision.tokens, llava.vision.tokens, llava.vision.used_layers) == ("bfloat16", 64, 576, 23)
    assert (voxtral.audio.tokens, voxtral.audio.projector_inputs, voxtral.head_dim) == (375, 5120, 128)
    older = OLDER["Voxtral-Mini-3B"]
    sound = {"d_model": 640, "encoder_layers": 4, "encoder_attention_heads": 10, "encoder_ffn_dim": 1280}  # Whisper's names
    heard = read({**older, "audio_config": sound}).audio
    assert (heard.embed_dim, heard.num_layers, heard.num_heads, heard.mlp_dim, heard.stack) == (640, 4, 10, 1280, 2)
    older = OLDER["Phi-3-mini-128k"]
    assert read({**older, "rope_scaling": {**older["rope_scaling"], "type": "su"}}) == read(older)
    assert deepseek.mlp_pattern[:4] == ("dense", "dense", "dense", "moe") and deepseek.mtp_depth == 1
    assert (deepseek.moe.num_groups, deepseek.moe.top_groups, deepseek.moe.shared_dim) == (8, 4, 2048)
    assert [read({"model_type": "gpt2", "activation_function": name}).activation for name in ("gelu", "gelu_fast")] == [
        "gelu",
        "gelu_tanh",
    ]


@pytest.mark.parametrize(
    ("hf", "named"),
    [
        ({"model_type": "mamba"}, "model_type='mamba'"),
        ({}, "model_type=None"),
        ({"model_type": "falcon_h1", "ssm_in_multiplier": 1.25}, "needs attention and Mamba side by side in a layer, which is"),
        ({"model_type": "llama", "hidden_act": "mish"}, "hidden_act='mish'"),
        ({"model_type": "gemma2", "hidden_activation": "mish"}, "hidden_activation='mish'"),
        ({"model_type": "llama", "rope_scaling": {"type": "mrope"}}, "rope_type='mrope'"),
        ({"model_type": "llama", "rope_scaling": {"type": "linear"}}, "rope_parameters.factor"),
        ({"model_type": "llama", "rope_scaling": {"type": "longrope", "short_factor": 1}}, "rope_parameters.short_factor"),
        ({"model_type": "llama", "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"model_type": "qwen2", "rope_parameters": {"full_attention": {}}}, "rope_parameters.full_attention"),
        ({"model_type": "gemma3_text", "rope_parameters": {"rope_theta": 1e4}}, "rope_parameters"),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"model_type": "deepseek_v3", "quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
        ({"model_type": "deepseek_v3", "scoring_func": "softmax"}, "scoring_func='softmax'"),
        ({"model_type": "deepseek_v2"}, "num_experts_per_tok"),
        ({"model_type": "deepseek_v2", "num_experts_per_tok": 2, "topk_method": "noaux_tc"}, "topk_method='noaux_tc'"),
        ({"model_type": "deepseek_v3", "attention_bias": True}, "attention_bias=True"),
        ({"model_type": "deepseek_v32", "index_topk": 0}, "index_topk=0"),
        ({"model_type": "deepseek_v32", "rope_interleave": False}, "rope_interleave=False"),
        ({"model_type": "glm_moe_dsa", "index_topk_pattern": "FFSF"}, "indexer_types in config.json has shared layers"),
        ({"model_type": "glm_moe_dsa", "index_topk_freq": 4}, "index_topk_freq=4"),
        ({"model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
        ({"model_type": "phi3", "rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type='linear'"),
        ({"model_type": "qwen3", "layer_types": ["sliding_attention"] * 32}, "sliding_window"),
        ({"model_type": "qwen3", "layer_types": ["linear_attention"] * 32}, "linear_attention"),
        ({"model_type": "mistral", "layer_types": ["full_attention"] * 32}, "layer_types"),
        ({"model_type": "nemotron_h", "moe_latent_size": 64}, "moe_latent_size=64"),
        ({"model_type": "nemotron_h", "hybrid_override_pattern": "MX"}, "layer_types in config.json holds 'X'"),
        ({"model_type": "granitemoehybrid", "shared_intermediate_size": 0}, "shared_intermediate_size=0"),
        ({"model_type": "granitemoehybrid", "layer_types": ["conv"] * 32}, "layer_types in config.json holds 'conv'"),
    ],
)
def test_what_cannot_be_expressed_is_named(hf, named):
    with pytest.raises(UserError, match=named):
        read(hf)


def test_values_of_the_wrong_kind_are_the_user_s_to_mend():
    for hf in ({"model_type": "llama", "num_hidden_layers": "two"}, {"model_type": "gemma2", "query_pre_attn_scalar": 0}):
        with pytest.raises(UserError, match="config.json holds a value of the wrong kind"):
            model_config(hf, [])


INDEXED = {"kv_rank": 8, "query_rank": 8, "index_topk": 4}
PLAIN = ModelConfig(vocab_size=64, num_layers=4, embed_dim=32, num_heads=4, num_kv_heads=2, mlp_dim=64)


@pytest.mark.parametrize(
    ("changes", "leaves_as"),
    [
        ({}, "LlamaForCausalLM"),
        ({"tie_embeddings": True, "head_dim": 16, "window": 8, "remat": "full", "dtype": "float32"}, "LlamaForCausalLM"),
        ({"remat_matmuls_last": 1}, "LlamaForCausalLM"),
        ({"rope": {"scaling": "yarn", "factor": 2.0, "original_positions": 64}}, "LlamaForCausalLM"),
        ({"attention_pattern": ("local",), "window": 8}, "MistralForCausalLM"),
        ({"attention_pattern": ("global", "local"), "window": 8, "qkv_bias": True}, "Qwen2ForCausalLM"),
        ({"attention_pattern": ("global", "local"), "window": 8, "qk_norm": "head"}, "Qwen3ForCausalLM"),
        ({"rope": {"fraction": 0.5}}, "Phi3ForCausalLM"),
        ({"mlp_pattern": ("moe",), "moe": {"num_experts": 4, "balance_loss": 0.01}}, "MixtralForCausalLM"),
        ({"mlp_pattern": ("dense", "moe"), "moe": {"num_experts": 4}, "qk_norm": "head"}, "Qwen3MoeForCausalLM"),
        ({"norm_position": "post", "qk_norm": "full"}, "Olmo2ForCausalLM"),
        ({"rotary_pattern": ("rotary", "none")}, "SmolLM3ForCausalLM"),
        ({"query_scale": 5.0, "logit_scale": 0.125}, "GraniteForCausalLM"),
        ({"rope": {"interleaved": True}}, "Ernie4_5ForCausalLM"),
        ({"norm_position": "post", "qk_norm": "head"}, "Exaone4ForCausalLM"),
        (
            {"norm_position": "parallel", "norm": "layer", "norm_bias": False, "rope": {"interleaved": True}},
            "CohereForCausalLM",
        ),
        ({"norm_position": "sandwich", "rope": {"interleaved": True, "fraction": 0.5}}, "Glm4ForCausalLM"),
        ({"qk_norm": "head", "qk_norm_last": True}, "HunYuanDenseV1ForCausalLM"),
        ({"attention_temperature": 0.1, "temperature_length": 64}, "Ministral3ForCausalLM"),
        ({"norm": "layer", "norm_plus_one": True, "activation": "relu2", "gated": False}, "NemotronForCausalLM"),
        ({"attention_pattern": ("chunk", "global"), "window": 8, "rope": {"interleaved": True}}, "Llama4ForCausalLM"),
        ({"positions": "none"}, "GraniteMoeHybridForCausalLM"),
        ({"mlp_pattern": ("moe",), "moe": {"num_experts": 4, "shared_dim": 32}}, "GraniteMoeHybridForCausalLM"),
        ({"mla": {"kv_rank": 8}, "num_kv_heads": 4}, "DeepseekV3ForCausalLM"),
        ({"mla": INDEXED, "num_kv_heads": 4, "rope": {"interleaved": True}}, "DeepseekV32ForCausalLM"),
        (
            {"mla": INDEXED | {"index_interleaved": True}, "num_kv_heads": 4, "rope": {"interleaved": True}},
            "GlmMoeDsaForCausalLM",
        ),
        (
            {
                "mla": {"kv_rank": 8},
                "num_kv_heads": 4,
                "rope": {"interleaved": True},
                "mlp_pattern": ("dense", *3 * ("moe",)),
                "moe": {"num_experts": 4, "shared_dim": 64, "normalize": False},
            },
            "DeepseekV2ForCausalLM",
        ),
    ],
)
def test_a_model_leaves_as_the_first_family_that_holds_it(changes, leaves_as):
    config = dataclasses.replace(PLAIN, **{"head_dim": 0, **changes})
    assert family_for(config).to_hf(config)["architectures"] == [leaves_as]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"activation": "relu2", "gated": False}, "model.gated=False"),
        ({"attention_sinks": True}, "model.attention_sinks=True"),
        ({"value_embeddings": 1}, "model.value_embeddings=1"),
        ({"query_scale": 5.0, "qk_norm": "full", "norm_position": "post"}, "model.query_scale=5.0"),
        ({"mlp_pattern": ("moe", "dense"), "moe": {"num_experts": 4, "scores": "sigmoid"}}, "model.moe.scores='sigmoid'"),
        ({"mup_base_dim": 64}, "model.mup_base_dim=64"),
        ({"rope": {"scaling": "ntk", "factor": 2.0, "original_positions": 64}}, "model.rope.original_positions=64"),
    ],
)
def test_what_keeps_a_model_from_leaving_is_named(changes, named):
    with pytest.raises(UserError, match=named):
        family_for(dataclasses.replace(PLAIN, **changes))


def test_forms_of_published_names():
    gpt2, gemma = FAMILIES["gpt2"], FAMILIES["gemma3"]
    assert gpt2.canonical("wte.weight") == gpt2.canonical("transformer.wte.weight") == "transformer.wte.weight"
    assert FAMILIES["llama"].canonical("model.norm.weight") == "model.norm.weight"
    for name in ("language_model.model.norm.weight", "model.language_model.norm.weight", "model.norm.weight"):
        assert gemma.canonical(name) == "model.norm.weight"
    text, masks = read(OLDER["gemma-3-4b"]), read(OLDER["gpt2"])
    for name in ("vision_tower.a.weight", "model.vision_tower.a.weight", "multi_modal_projector.a", "lm_head.weight"):
        assert is_ignored(gemma, text, name)
    assert not is_ignored(gemma, text, "model.norm.weight")
    assert is_ignored(gpt2, masks, "transformer.h.11.attn.bias") and not is_ignored(gpt2, masks, "transformer.h.11.attn.c.bias")
