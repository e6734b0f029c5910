"""Learning rates of configs that name none: near those that published and measured recipes use."""

import pytest

from configs.align import default as align
from configs.train import default, llama3_8b, tiny
from lm.train.rates import choose_rate, learning_rate
from tests.lm.examples import tiny_config


def rate(config, **changes) -> float:
    for key, value in changes.items():
        config.update_from_flattened_dict({key.replace("__", "."): value})
    config.optimizer.learning_rate = None
    return learning_rate(config)[0]


def shape_of_8b(config):
    config.model.update(llama3_8b.get_config().model.to_dict())
    return config


@pytest.mark.parametrize(
    "config, usual",
    [(tiny.get_config(), 1.3e-2), (default.get_config(), 3.3e-3), (llama3_8b.get_config(), 3e-4)],  # docs/recipe.md, Llama 3
)
def test_random_weights(config, usual):
    assert rate(config) == pytest.approx(usual, rel=0.5)


@pytest.mark.parametrize(
    "method, usual", [("sft", 2e-5), ("preference", 1e-6), ("rl", 1e-6), ("reward", 1e-5), ("best_of", 2e-5), ("distill", 2e-5)]
)
def test_fine_tuning_of_8b(method, usual):
    config = shape_of_8b(align.get_config())
    assert rate(config, method=method, init_from="base") == pytest.approx(usual, rel=0.15)
    assert rate(config, model__adapter__rank=16) == pytest.approx(10 * usual, rel=0.15)


def test_small_models_are_fine_tuned_faster_but_never_faster_than_trained():
    small, large = tiny_config(), shape_of_8b(default.get_config())
    for config in (small, large):
        fresh, continued = rate(config, init_from=None), rate(config, init_from="base")
        assert continued == pytest.approx(0.3 * fresh, rel=0.1)
    tuned = align.get_config()
    tuned.model.update(small.model.to_dict())
    assert 1e-3 < rate(tuned, method="sft", init_from="base") <= rate(small, init_from="base") * 1.01


def test_mup_keeps_the_rate_of_its_base():
    wide = default.get_config()
    narrow_rate, mup = rate(default.get_config()), wide
    mup.model.update(embed_dim=4 * 384, num_heads=24, num_kv_heads=24, mlp_dim=4096, mup_base_dim=384, vocab_size=32768)
    assert rate(mup) == pytest.approx(narrow_rate, rel=0.1)


def test_a_given_rate_stays_and_a_choice_is_said(capsys):
    config = tiny_config()
    choose_rate(config)
    assert config.optimizer.learning_rate == 2e-3 and not capsys.readouterr().out
    config.optimizer.learning_rate = None
    choose_rate(config)
    said = capsys.readouterr().out
    assert f"optimizer.learning_rate={config.optimizer.learning_rate:g}" in said and "random weights" in said


def test_embeddings_and_head_learn_faster_beside_the_matrices_of_a_larger_model():
    def rates(**model):
        config = default.get_config()
        config.model.update(vocab_size=3072, num_layers=3, embed_dim=128, num_heads=4, num_kv_heads=2, mlp_dim=344, **model)
        config.model.update({"num_layers": 24, "embed_dim": 1024, "mlp_dim": 2752} if model.get("head_dim") == 256 else {})
        choose_rate(config)
        return config.optimizer.embedding_rate, config.optimizer.head_rate

    assert rates(head_dim=32) == (15.0, 1.0)
    embedding, head = rates(head_dim=256)
    assert embedding == 15 * head and 5 < head < 7
    assert rates(head_dim=32, tie_embeddings=True) == rates(head_dim=32, init="gpt2") == (1.0, 1.0)
