"""The tour's decoder computes what the library's does: logits and gradients, with and without experts."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx

from lm.model.inputs import inputs_of
from lm.train.step import model_config_of, training_loss
from tests.lm.examples import packed_batch
from tests.tour.pairs import MODELS, assert_same, config_of, one_device, ours, placed, training_config, weights
from tour import model
from tour.pretrain import gradient, next_token_loss


@functools.cache
def pair(name):
    """(training config, the library's weights and graph, the tour's config, a batch) of a model."""
    config = training_config(**MODELS[name])
    shape = model_config_of(config)
    return config, *weights(shape), config_of(shape), packed_batch(config, seed=1)


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_the_library(name):
    _, params, graph, config, batch = pair(name)
    expected = nnx.merge(graph, params)(inputs_of(batch))
    with jax.set_mesh(one_device()):
        tree = placed(ours(params, config), config)
        logits = jax.jit(lambda tree: model.logits(tree, config, model.hidden(tree, config, batch)[0]))(tree)
    np.testing.assert_allclose(logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradients_are_those_of_the_library(name):
    _, params, graph, config, batch = pair(name)
    weight = batch["weights"].sum()

    def loss(params):
        return training_loss(nnx.merge(graph, params), batch, z_loss=1e-4, mtp_loss=0.0)[0] / weight

    expected, grads = jax.jit(jax.value_and_grad(loss))(params)
    with jax.set_mesh(one_device()):
        tree = placed(ours(params, config), config)
        objective = functools.partial(next_token_loss, config, z_loss=1e-4)
        found = jax.jit(lambda tree: gradient(objective, tree, batch, None))(tree)
        assert float(found[0]) == pytest.approx(float(expected), abs=1e-5)
        assert_same(found[1], ours(grads, config))
