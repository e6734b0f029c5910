"""config.extend: positions of init_from for a longer context. What is near stays as it was, what is far comes into range."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs.train import default
from lm.config import ModelConfig
from lm.errors import UserError
from lm.model.transformer import build, skeleton
from lm.train.start import longer_positions
from lm.train.values import check_values

SIZES = dict(vocab_size=64, num_layers=2, embed_dim=32, num_heads=2, num_kv_heads=2, mlp_dim=64, max_positions=64)


def asked(**extend):
    config = default.get_config()
    config.init_from = "before"
    config.extend.update(extend)
    return config


def changed(config, **model):
    before = ModelConfig(**SIZES, dtype="float32", **model).to_dict()
    return ModelConfig(**before | longer_positions(config, before))


def test_nothing_changes_unasked():
    assert changed(asked()) == ModelConfig(**SIZES, dtype="float32")


def test_a_raised_base_turns_more_slowly():
    assert changed(asked(theta=1e6)).rope.theta == 1e6
    assert changed(asked(theta=1e6)).local_rope_theta == 0


def test_yarn_stretches_the_context_of_the_former_run(tmp_path):
    """That is the length of its rows, if it began with random weights."""
    rope = changed(asked(yarn=16.0)).rope
    assert (rope.scaling, rope.factor, rope.original_positions) == ("yarn", 16.0, SIZES["max_positions"])
    for former, context in ((None, 16), ("an import", SIZES["max_positions"])):
        run = default.get_config()
        run.update(init_from=former, sequence_length=16)
        (tmp_path / "config.json").write_text(run.to_json_best_effort())
        config = asked(yarn=16.0)
        config.init_from = str(tmp_path)
        assert changed(config).rope.original_positions == context


@pytest.mark.parametrize("extend", [{"theta": 1e6}, {"yarn": 16.0}])
def test_local_layers_keep_their_angles(extend):
    """A model of local layers alone computes the same as before."""
    local = dict(attention_pattern=("local",), window=8)
    before, after = ModelConfig(**SIZES, dtype="float32", **local), changed(asked(**extend), **local)
    assert after.rope != before.rope
    tokens = jax.random.randint(jax.random.key(0), (1, 48), 0, 64)
    logits = [nnx.merge(skeleton(config)[0], build(config, 0))(jnp.asarray(tokens)) for config in (before, after)]
    np.testing.assert_array_equal(*logits)


@pytest.mark.parametrize(
    ("extend", "model", "line"),
    [
        ({"theta": 100.0}, {}, "extend.theta=100.0 must be above rope.theta=10000.0"),
        ({"theta": 1e6}, {"positions": "learned"}, "positions=learned"),
        ({"yarn": 2.0}, {"rope": {"scaling": "linear", "factor": 4.0}}, "rope.scaling=linear"),
    ],
)
def test_positions_that_cannot_be_changed(extend, model, line):
    with pytest.raises(UserError, match=line):
        changed(asked(**extend), **model)


def test_keys_that_contradict_each_other():
    with pytest.raises(UserError, match="set one of the two"):
        check_values(asked(theta=1e6, yarn=4.0))
    alone = asked(theta=1e6)
    alone.init_from = None
    with pytest.raises(UserError, match="needs init_from"):
        check_values(alone)
