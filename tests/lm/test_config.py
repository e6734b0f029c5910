"""The model config refuses what cannot be built, groups its layers into repeated blocks, and survives being written down."""

import json
import random

import pytest

from lm.config import ModelConfig, model_keys
from lm.errors import UserError

SIZES = dict(vocab_size=64, num_layers=3, embed_dim=32, num_heads=4, num_kv_heads=2, mlp_dim=48)
MOE = dict(mlp_pattern=("moe",), moe=dict(num_experts=8))
MLA = dict(num_kv_heads=4, mla=dict(kv_rank=16, rope_head_dim=8, value_head_dim=8))
INDEXED = {**MLA, "mla": MLA["mla"] | {"query_rank": 8, "index_topk": 4, "index_head_dim": 8}}


def test_head_dim_defaults_to_an_equal_share():
    assert ModelConfig(**SIZES).head_dim == 8
    assert ModelConfig(**SIZES, head_dim=16).head_dim == 16


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_heads": 5, "num_kv_heads": 5}, "model.num_heads=5"),
        ({"num_kv_heads": 3}, "model.num_kv_heads=3"),
        ({"num_kv_heads": 0}, "model.num_kv_heads=0"),
        ({"num_layers": 0}, "model.num_layers=0"),
        ({"vocab_size": -1}, "model.vocab_size=-1"),
        ({"head_dim": 7}, "model.head_dim=7"),
        ({"num_heads": 0}, "model.num_heads=0"),
        ({"remat": "some"}, "model.remat='some'"),
        ({"remat": "none", "offload": True}, "model.offload=True .* set model.remat=matmuls"),
        ({"pipeline": {"microbatches": -1}}, "model.pipeline.microbatches=-1 must be at least 1, or 0"),
        ({"pipeline": {"repeats": 0}}, "model.pipeline.repeats=0 must be at least 1"),
        ({"context_attention": "some"}, "model.context_attention='some'"),
        ({"dtype": "float16"}, "dtype='float16'"),
        ({"attention_pattern": ("local",)}, "model.window=0"),
        ({"attention_pattern": ("global", "near")}, "model.attention_pattern=.* is none of global, local"),
        ({"attention_pattern": ()}, "model.attention_pattern"),
        ({"positions": "sinus"}, "model.positions='sinus' is none of rotary, learned, none"),
        ({"norm": "batch"}, "model.norm='batch'"),
        ({"norm_position": "both"}, "model.norm_position='both'"),
        ({"qk_norm": "yes"}, "model.qk_norm='yes'"),
        ({"activation": "swish"}, "model.activation='swish'"),
        ({"rope": {"scaling": "yarn"}}, "model.rope.original_positions=0"),
        ({"rope": {"scaling": "longrope", "original_positions": 8, "short_factor": [1.0]}}, "model.rope.short_factor"),
        ({"rope": {"fraction": 0.0}}, "model.rope.fraction=0.0"),
        ({"rotary_pattern": ("rotary", "no")}, "model.rotary_pattern=.* is none of rotary, none"),
        ({"attention_temperature": 0.1}, "model.temperature_length=0 must be at least 1"),
        ({"gate_limit": 7.0, "gated": False}, "model.gate_limit=7.0 clamps a gate"),
        ({"gate_limit": 7.0, "activation": "own.py:f"}, "model.gate_limit=7.0 does not go with model.activation=own.py:f"),
        ({**MLA, "rotary_pattern": ("none",)}, "model.rotary_pattern=.* does not go with model.mla"),
        ({**MLA, "qk_norm": "head"}, "model.qk_norm='head' does not go with model.mla"),
        ({**MLA, "value_embeddings": 1}, "model.value_embeddings=1 does not go with model.attention, model.mla"),
        ({**MLA, "num_kv_heads": 2}, "model.num_kv_heads=2 must equal model.num_heads=4"),
        ({"moe": {"num_experts": 8}}, "model.moe.num_experts=8 has no effect"),
        ({"mlp_pattern": ("moe",)}, "model.moe.num_experts=0"),
        ({"mlp_pattern": ("moe",), "moe": {"num_experts": 8, "top_k": 9}}, "model.moe.top_k=9"),
        ({"mlp_pattern": ("moe",), "moe": {"num_experts": 8, "num_groups": 3}}, "model.moe.num_groups=3"),
        ({"mlp_pattern": ("moe",), "moe": {"num_experts": 8, "num_groups": 4, "top_k": 3}}, "model.moe.top_k=3"),
        ({"frozen": "("}, "model.frozen='\\(' is no regular expression"),
        ({"quantization": {"bits": 3}}, "model.quantization.bits=3"),
        ({"quantized_training": "int4"}, "model.quantized_training='int4' is none of none, int8, float8"),
        ({"quantized_training": "int8", "quantization": {"bits": 4}}, "model.quantized_training='int8' needs float weights"),
        ({"mtp_depth": -1}, "model.mtp_depth=-1"),
        ({"shared_kv_layers": 9}, "model.shared_kv_layers=9 must be below model.num_layers"),
        ({"num_layers": 2, "shared_kv_layers": 1, "attention_pattern": ("global", "local"), "window": 4}, "without keys"),
        ({"num_layers": 4, "shared_kv_layers": 2, "output_gate": True}, "model.shared_kv_layers=2 does not go with"),
        ({"num_layers": 4, "shared_kv_layers": 2, "qk_norm_last": True}, "model.shared_kv_layers=2 does not go with"),
        ({**MLA, "value_norm": True}, "model.value_norm=True does not go with"),
        ({"mla": {"index_topk": 4}}, "model.mla.index_topk=4 chooses keys by latent queries: set model.mla.kv_rank"),
        ({**INDEXED, "attention_pattern": ("local",), "window": 4}, "model.mla.index_topk=4 does not go with local"),
        ({**INDEXED, "mla": INDEXED["mla"] | {"index_head_dim": 4}}, "model.mla.index_head_dim=4 must be at least 8"),
        ({"altup_streams": 1}, "model.altup_streams=1 must be at least 2"),
        ({"altup_streams": 2, "mtp_depth": 1}, "model.altup_streams=2 does not go with model.mtp_depth"),
        ({"laurel_rank": 2, "norm_position": "post"}, "model.laurel_rank=2 needs"),
        ({"mlp_dims": (8, 0)}, "model.mlp_dims=.* must be at least 1"),
        ({"gate_sparsity": (1.0,)}, "model.gate_sparsity=.* must be in 0…1"),
        ({"gate_sparsity": (0.5,), "gated": False}, "model.gate_sparsity=.* needs model.gated=True"),
    ],
)
def test_what_cannot_be_built_is_named(change, named):
    with pytest.raises(UserError, match=named):
        ModelConfig(**SIZES | change)


def stacks(num_layers, **patterns):
    """Lengths of the blocks and their repeats."""
    config = ModelConfig(**SIZES | MOE | dict(num_layers=num_layers, window=4) | patterns)
    return [(len(block), repeats) for block, repeats in config.stacks]


def test_layers_that_are_alike_are_one_stack():
    assert stacks(61, mlp_pattern=("dense",) * 3 + ("moe",) * 58) == [(1, 3), (1, 58)]  # DeepSeek-V3
    assert stacks(26, attention_pattern=("local",) * 5 + ("global",)) == [(6, 4), (1, 2)]  # Gemma 3 1B
    assert stacks(26, attention_pattern=("local", "global")) == [(2, 13)]  # Gemma 2
    assert stacks(32) == [(1, 32)]
    assert stacks(1) == [(1, 1)]


def test_stacks_hold_every_layer_in_order():
    draw = random.Random(0)
    for _ in range(300):
        attention = tuple(draw.choice(("local", "global")) for _ in range(draw.randint(1, 6)))
        mlp = tuple(draw.choice(("dense", "moe")) for _ in range(draw.randint(1, 6)))
        changes = dict(num_layers=draw.randint(1, 24), window=4, attention_pattern=attention, mlp_pattern=("moe", *mlp))
        config = ModelConfig(**SIZES | MOE | changes)
        assert sum((block * repeats for block, repeats in config.stacks), ()) == config.layer_kinds


def test_a_written_config_is_read_back_as_it_was():
    config = ModelConfig(
        **SIZES | MLA | MOE | dict(attention_pattern=("local", "global"), window=4, dtype="float32"),
        rope=dict(scaling="longrope", original_positions=64, short_factor=(1.0,) * 4, long_factor=(2.0,) * 4),
    )
    written = json.loads(json.dumps(config.to_dict()))
    assert isinstance(written["rope"]["short_factor"], list)
    assert ModelConfig(**written) == config
    assert hash(ModelConfig(**written)) == hash(config)  # it is static in compiled programs


def test_model_keys_are_all_keys_with_their_defaults():
    keys = model_keys(**SIZES, moe=dict(num_experts=8), mlp_pattern=("moe",))
    assert keys["moe"]["num_experts"] == 8 and keys["moe"]["top_k"] == 2 and keys["rope"]["theta"] == 10_000
    assert set(keys) == set(ModelConfig(**SIZES).to_dict()) - {"dtype"}
    assert ModelConfig(**keys) == ModelConfig(**SIZES, moe=dict(num_experts=8), mlp_pattern=("moe",))
