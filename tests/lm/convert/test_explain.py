"""What a config.json needs, said in a table."""

import pytest

from lm.config import ModelConfig
from lm.convert.explain import explained
from lm.convert.families import TEXT
from lm.convert.ideas import IDEAS, ideas_of, missing
from tests.lm.model.recurrent_models import config_of

HYBRIDS = {"lfm2": "conv", "qwen3_next": "delta", "bamba": "mamba"}


def test_a_known_family_has_all_its_ideas():
    hf = {"model_type": "smollm3", "no_rope_layer_interval": 4, "use_sliding_window": False, "sliding_window": 8}
    first, *rows = explained(hf).splitlines()
    assert first.split() == ["idea", "seen", "in", "option"]
    assert rows[0].split("  ")[0] == "layers without positions (NoPE)" and rows[0].endswith("model.rotary_pattern")
    assert "model.rotary_pattern=('rotary', 'rotary', 'rotary', 'none'" in rows[-2]
    assert rows[-1] == "can be read, as smollm3" and len(rows) == 4


def test_an_unknown_family_says_what_is_missing():
    text = {"model_type": "a_text", "layer_types": ["sparse_attention", "full_attention"], "num_experts": 8}
    found = explained({"model_type": "something", "text_config": text})
    assert "attention to chosen tokens of another kind  layer_types=sparse_attention  missing" in found
    assert "mixtures of experts" in found and "cannot be read: model_type='something'" in found


@pytest.mark.parametrize("name", HYBRIDS)
def test_layers_with_a_state_are_not_missing(name):
    (family,) = (family for family in TEXT if family.name == name)
    assert missing(family.to_hf(config_of(HYBRIDS[name]))) == []
    assert missing({"mamba_dt_rank": 8, "layers_block_type": ["mamba"]}) == ["state-space layers (Mamba-1)"]


def test_an_indexer_is_an_option_and_choices_of_another_layer_are_missing():
    indexed = {"model_type": "glm_moe_dsa", "index_topk": 2048, "index_n_heads": 32, "kv_lora_rank": 512}
    found = explained(indexed)
    assert "attention to chosen tokens (an indexer)  index_topk    model.mla.index_topk" in found
    assert "model.mla.index_topk=2048" in found and found.endswith("can be read, as deepseek_v32")
    found = explained(indexed | {"indexer_types": ["full", "shared"]})
    assert "tokens chosen once for several layers" in found
    assert "cannot be read: indexer_types in config.json has shared layers" in found


def test_a_value_that_cannot_be_expressed_is_named():
    assert "cannot be read: hidden_act='mish'" in explained({"model_type": "llama", "hidden_act": "mish"})


@pytest.mark.parametrize("idea", [idea for idea in IDEAS if idea.option], ids=lambda idea: idea.name)
def test_each_option_is_one_of_the_model(idea):
    config = ModelConfig(vocab_size=8, num_layers=1, embed_dim=8, num_heads=1, num_kv_heads=1, mlp_dim=8)
    for part in idea.option.split("."):
        assert hasattr(config, part)
        config = getattr(config, part)


def test_a_plain_llama_names_no_idea():
    assert ideas_of({"model_type": "llama", "attention_bias": False, "rope_scaling": None}) == []
