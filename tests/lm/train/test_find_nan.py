"""The first tensor that is not finite is named by its layer, scope and place in the source."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.parallel.mesh import make_mesh
from lm.train import events, loop
from lm.train.events.find_nan import explain
from lm.train.step import Objective, make_trainer, pretraining
from tests.lm.examples import packed_batch, tiny_config, trainer_and_state

OBJECTIVE = pretraining(z_loss=0.0, mtp_loss=0.0)


def prepared(scan: bool = True):
    """(config, state after a skipped step, batch)."""
    config = tiny_config(scan_layers=scan)
    _, state = trainer_and_state(config)
    return config, state._replace(step=jnp.int32(1)), jax.tree.map(jnp.asarray, packed_batch(config, 0))


def spoiled(state, index, value, *path):
    """The state with other numbers in one parameter."""
    params = jax.tree.map(lambda x: x, state.params)
    weight = params
    for name in path:
        weight = weight[name]
    weight.set_value(weight.get_value().at[index].set(value))
    return state._replace(params=params)


@pytest.mark.parametrize("scan", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_layer_of_the_forward_pass(scan):
    config, state, batch = prepared(scan)
    state = spoiled(state, 1, 3e38, "stacks", 0, 0, "attention", "query", "weight")
    lines = explain(config, OBJECTIVE, state, batch)
    assert "NaN is in the forward pass, layer 1 of 2, " in lines[0] and "attention" in lines[0]
    # The NaN comes from an infinity: the product with the spoiled weights.
    assert "infinity is in the forward pass, layer 1 of 2, " in lines[1] and "dot_general" in lines[1]
    assert "float32[8, 32, 4, 8]" in lines[1] and ".py:" in lines[1]


@pytest.mark.slow
def test_the_gradient_alone():
    """The gradient of a root at 0 is infinite, and times the 0 of the branch that is not taken it is NaN."""
    config, state, batch = prepared()

    def loss(model, batch, frozen, **how):
        total, sums = OBJECTIVE.loss(model, batch, frozen, **how)
        with jax.named_scope("penalty"):
            size = jnp.sum(model.embedding[...] * 0)
            return total + jnp.where(size > 0, jnp.sqrt(size), 0.0), sums

    lines = explain(config, Objective(loss, OBJECTIVE.weight), state, batch)
    assert "NaN is in the gradient, penalty: the result float32[]" in lines[0] and "test_find_nan.py:" in lines[0]
    assert "infinity is in the forward pass, penalty: the result float32[] of div" in lines[1]  # a factor of the gradient


def test_what_was_bad_before_the_step():
    config, state, batch = prepared()
    state = spoiled(state, (1, 0, 0), np.nan, "stacks", 0, 0, "feed_forward", "up", "weight")
    (line,) = explain(config, OBJECTIVE, state, batch | {"weights": batch["weights"] * np.inf})
    assert line.endswith("not finite before the step: parameter stacks.0.0.feed_forward.up.weight of layer 1, batch weights")


def test_the_loop_says_it(tmp_path, capsys):
    config = tiny_config(num_layers=1)
    config.update(steps=4, valid_every=0, checkpoint_every=0, find_nan=True)

    class Poisoned:
        def start(self, step): ...

        def next(self, step, params, wait):
            batch = jax.tree.map(jnp.asarray, packed_batch(config, step))
            return batch | {"weights": batch["weights"] * (jnp.nan if step == 3 else 1)}, {}

        def close(self): ...

    mesh = make_mesh({}, jax.devices()[:1])
    with jax.set_mesh(mesh):
        result = loop.train(config, make_trainer(config), mesh, Poisoned(), tmp_path, events.usual(config))
    assert result["skipped"] == 1
    said = "".join(capsys.readouterr())
    assert "step 3: find_nan: not finite before the step: batch weights" in said and said.count("find_nan") == 1
