"""The two maps between their tensors and our parameters: exact, whatever the bits, and covering everything once."""

import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from lm.convert.families import FAMILIES
from lm.convert.rows import linear, ours_of, places, theirs_of
from lm.model.transformer import skeleton

SMALL = {
    "vocab_size": 12,
    "hidden_size": 8,
    "intermediate_size": 10,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16,
}
LATENT = {
    **SMALL,
    "num_key_value_heads": 4,
    "kv_lora_rank": 6,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 3,
    "v_head_dim": 5,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "n_routed_experts": 4,
    "moe_intermediate_size": 7,
}
CONFIGS = {
    "llama": {**SMALL, "attention_bias": True, "mlp_bias": True, "head_dim": 6},
    "mistral": SMALL,
    "mixtral": {**SMALL, "num_local_experts": 3},
    "phi3": SMALL,
    "qwen2": SMALL,
    "qwen3": {**SMALL, "head_dim": 6},
    "qwen3_moe": {**SMALL, "num_experts": 3, "num_experts_per_tok": 2, "mlp_only_layers": [1]},
    "gemma2": {**SMALL, "head_dim": 6},
    "gemma3_text": {**SMALL, "head_dim": 6, "tie_word_embeddings": False},
    "olmo2": {**SMALL, "attention_bias": True},
    "deepseek_v2": {**LATENT, "q_lora_rank": None},
    "deepseek_v3": {**LATENT, "q_lora_rank": 6, "n_group": 2, "topk_group": 1, "num_nextn_predict_layers": 2},
    "qwen3_5_moe": {
        **SMALL,
        "head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"],
        "num_hidden_layers": 2,
        "linear_num_key_heads": 3,
        "linear_num_value_heads": 6,
        "linear_key_head_dim": 5,
        "linear_value_head_dim": 2,
        "num_experts": 3,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 4,
        "shared_expert_intermediate_size": 6,
    },
    "gpt2": {"vocab_size": 12, "n_embd": 8, "n_layer": 3, "n_head": 4, "n_positions": 16},
}


@pytest.mark.parametrize("model_type", CONFIGS)
def test_rows_cover_both_sides_once_and_keep_every_bit(model_type):
    family = FAMILIES[model_type]
    config = family.from_hf({"model_type": model_type, **CONFIGS[model_type]})
    found, rng = places(family, config), np.random.default_rng(0)
    tensors = {
        row.theirs: rng.integers(0, 1 << 16, row.theirs_shape, np.uint16).view(ml_dtypes.bfloat16) for _, _, row in found
    }
    ours, rows, written = {}, {}, {}
    for path, variable in nnx.to_flat_state(skeleton(config)[1]):
        path = ".".join(map(str, path))
        ours[path] = np.zeros(variable.get_value().shape, ml_dtypes.bfloat16)
        written[path] = np.zeros(ours[path].shape, int)
    for path, index, row in found:
        part = ours_of(row, tensors[row.theirs])
        assert part.shape == row.ours_shape == ours[path][index].shape
        ours[path][index] = part
        written[path][index] += 1
        rows.setdefault(row.theirs, []).append((row, part))
    assert all((times == 1).all() for times in written.values())
    for name, parts in rows.items():
        back = theirs_of(*zip(*parts))
        assert back.dtype == ml_dtypes.bfloat16 and back.size == sum(part.size for _, part in parts)
        np.testing.assert_array_equal(back.view(np.uint16), tensors[name].view(np.uint16), strict=True)


def test_a_row_splits_and_orders_axes():
    fused = np.arange(24).reshape(6, 4)  # 3 heads of 2 from 4 inputs
    row = linear("key", "qkv", (4,), (3, 2), (1, 2))
    np.testing.assert_array_equal(ours_of(row, fused)[:, 0], fused[2:4].T)
    assert (row.theirs_shape, row.ours_shape) == ((6, 4), (4, 1, 2))


def test_copies_are_of_parameters_that_are_read_elsewhere():
    family = FAMILIES["deepseek_v3"]
    config = family.from_hf({"model_type": "deepseek_v3", **CONFIGS["deepseek_v3"]})
    names = {row.theirs for _, _, row in places(family, config)}
    assert {row.ours for row in family.copies(config)} == {"embedding", "head"}
    assert not names & {row.theirs for row in family.copies(config)}
    assert FAMILIES["llama"].copies(config) == []
