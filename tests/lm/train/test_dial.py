"""The dial: sizes and length that follow from a depth, keys that are given, and what does not go with it."""

import pytest

from configs.train import dial as file
from lm.errors import UserError
from lm.model import sizing
from lm.train import dial
from lm.train.values import model_of


def turned(depth="4", given=(), **values):
    config = file.get_config(depth)
    for key, value in values.items():
        config.update_from_flattened_dict({key.replace("__", "."): value})
    names = {key.replace("__", ".") for key in values} | set(given)
    dial.shape(config, names)
    dial.horizon(config, names)
    return config


def active(config):
    return sum(sizing.parameters(model_of(config))["active"].values())


def test_a_depth_gives_all_else(capsys):
    config, model = (config := turned("12")), config.model
    assert (model.num_layers, model.embed_dim, model.num_heads, model.head_dim, model.mlp_dim) == (12, 768, 12, 64, 2048)
    tokens = config.batch_size * config.sequence_length
    assert config.steps * tokens == pytest.approx(20 * active(config), rel=1e-3)
    assert tokens == 2**18  # 2,048 · 0.0306 · (1.95e9)^0.383 = 226,000, in rows that are a power of two
    o = config.optimizer
    assert o.learning_rate == 1.4e-3 and o.warmup == config.steps // 20
    assert o.weight_decay * o.learning_rate * config.steps == pytest.approx(1 / 0.2236, rel=0.01)
    said = capsys.readouterr().out
    assert "12 layers of width 768" in said and "Hoffmann" in said and "Bergsma" in said


def test_small_models_take_a_thousand_steps_at_least():
    config = turned("1", model__vocab_size=1024)
    assert 700 < config.steps < 1450 and config.optimizer.weight_decay == 0.1


def test_keys_of_the_command_line_win_and_the_others_follow():
    config = turned("4", model__embed_dim=128, steps=500, optimizer__weight_decay=0.1)
    assert (config.model.embed_dim, config.model.num_heads, config.model.mlp_dim) == (128, 2, 384)
    assert config.steps == 500 and config.optimizer.weight_decay == 0.1 and config.optimizer.warmup == 25
    assert turned("4", batch_size=8).steps == pytest.approx(20 * active(turned("4")) / (8 * 256), rel=1e-3)
    assert turned("4", dial__tokens_per_parameter=5.0).steps < turned("4", batch_size=turned("4").batch_size).steps


def test_what_does_not_go_with_it():
    for key, value in (("init_from", "runs/one"), ("epochs", 2.0)):
        with pytest.raises(UserError, match=f"dial.depth=4 chooses .* and so does {key}"):
            turned("4", **{key: value})
    with pytest.raises(UserError, match="give a number of layers"):
        file.get_config("x")


def test_off_it_changes_nothing():
    config = file.get_config("4")
    config.dial.depth = 0
    before = config.to_dict()
    dial.shape(config, ())
    dial.horizon(config, ())
    assert config.to_dict() == before
