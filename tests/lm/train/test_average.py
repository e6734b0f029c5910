"""The moving average of parameters: by hand, in checkpoints, and from checkpoints of runs with and without one."""

import jax
import numpy as np
import pytest
from flax import nnx

from lm.model.linear import trainable
from lm.parallel.mesh import make_mesh
from lm.runs.checkpoint import Checkpoints
from lm.train.step import abstract_state, make_trainer, model_config_of, state_shardings
from lm.train.update import averaged, stored, unstored
from tests.lm.examples import first_state, packed_batch, tiny_config


def leaves(tree):
    return [np.asarray(x) for x in jax.tree.leaves(tree)]


def assert_equal(one, other):
    for a, b in zip(leaves(one), leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def trained(steps=3, ema=0.2, **model):
    """Return (config, trainer, the state after each of 0 … steps)."""
    config = tiny_config(**model)
    config.ema = ema
    trainer = make_trainer(config)
    states, step = [first_state(trainer, config)], jax.jit(trainer.step)
    for n in range(steps):
        states.append(step(states[-1], packed_batch(config, seed=n))[0])
    return config, trainer, states


@pytest.fixture(scope="module")
def run():
    return trained()


def test_by_hand(run):
    """The decay is 0.1, 2/11 and then 0.2, the limit."""
    _, _, states = run
    expected = leaves(states[0].params)
    for d, state in zip((0.1, 2 / 11, 0.2), states[1:], strict=True):
        expected = [d * a + (1 - d) * p for a, p in zip(expected, leaves(state.params), strict=True)]
    for a, b in zip(leaves(states[-1].average), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8)
    assert_equal(averaged(states[-1]), states[-1].average)


def test_a_bad_step_leaves_it(run):
    config, trainer, states = run
    batch = packed_batch(config, seed=0)
    after, metrics = jax.jit(trainer.step)(states[-1], batch | {"weights": np.full_like(batch["weights"], np.inf)})
    assert metrics["skipped"] == 1
    assert_equal(after.average, states[-1].average)


def test_an_adapters_average_is_merged_into_its_base():
    _, _, states = trained(adapter=dict(rank=2))
    kept = nnx.filter_state(averaged(states[-1]), nnx.LoRAParam)
    assert_equal(kept, states[-1].average)
    assert len(jax.tree.leaves(averaged(states[-1]))) == len(jax.tree.leaves(states[-1].params)) > len(jax.tree.leaves(kept))


def test_checkpoints_hold_the_average_as_params_and_resume_exactly_on_any_mesh(run, tmp_path):
    config, _, (*_, last) = run
    learns = trainable(model_config_of(config))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, stored(last, learns), {})
    checkpoints.wait()
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    with jax.set_mesh(mesh):
        trainer = make_trainer(config)
        abstract = abstract_state(trainer, mesh)
        assert "raw" in checkpoints.stored(3)
        state = unstored(checkpoints.restore(3, stored(abstract, learns)), learns, True)
        assert jax.tree.structure(state) == jax.tree.structure(state_shardings(trainer, mesh))
        assert_equal(state, last)
        assert_equal(checkpoints.restore_params(3, abstract.params), last.average)
    checkpoints.close()


def test_with_and_without_the_average_of_an_earlier_run(run):
    config, _, (*_, last) = run
    learns = trainable(model_config_of(config))
    began = unstored(stored(last._replace(average=()), learns), learns, True)  # it starts from the parameters
    assert_equal(began, last._replace(average=last.params))
    ended = unstored(stored(last, learns), learns, False)
    assert_equal(ended, last._replace(average=()))
