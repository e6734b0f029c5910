"""Training in the tour is training in the library: 20 steps of both optimizers; any mesh and slices; exact resume."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from lm.train.step import make_trainer, model_config_of
from tests.lm.examples import packed_batch
from tests.slow import all_but
from tests.tour.pairs import MODELS, assert_same, config_of, ours, placed, training_config, weights
from tour.mesh import make_mesh
from tour.model import declare
from tour.optimizers import Recipe, first_state
from tour.pretrain import make_step, next_token_loss, on_mesh, restored, save

STEPS, ROWS = 20, 16
MESHES = {"one": (1, 1, 1), "data 2, fsdp 2, tensor 2": (2, 2, 2), "fsdp 8": (1, 8, 1), "data 4, tensor 2": (4, 1, 2)}


def run_config(name, optimizer):
    config = training_config(init="fan_in", **MODELS[name])
    config.batch_size, config.steps = ROWS, STEPS
    config.optimizer.update(name=optimizer, learning_rate=6e-3, warmup=5, schedule="wsd", final=0.05, decay=0.6)
    config.optimizer.embedding_rate = 1.0 if config.model.tie_embeddings else 15.0
    return config


def recipe_of(config):
    o = config.optimizer
    names = [field.name for field in dataclasses.fields(Recipe) if field.name not in ("steps", "save_every")]
    return Recipe(steps=config.steps, **{name: o[name] for name in names})


@functools.cache
def of_the_library(name, optimizer):
    """The losses of the library's run."""
    config = run_config(name, optimizer)
    trainer = make_trainer(config)
    state, step = trainer.init(weights(model_config_of(config), scale=1.0)[0]), jax.jit(trainer.step)
    losses = []
    for n in range(STEPS):
        state, metrics = step(state, packed_batch(config, seed=n))
        losses.append(float(metrics["loss"]))
    return losses, state.params


@functools.cache
def of_the_tour(name, optimizer, mesh="one", parts=1):
    """(losses without z_loss, as the library reports them, last weights) of the tour's run."""
    config = run_config(name, optimizer)
    small, recipe = config_of(model_config_of(config)), recipe_of(config)
    with jax.set_mesh(make_mesh(*MESHES[mesh])):
        params = placed(ours(weights(model_config_of(config), scale=1.0)[0], small), small)
        state = first_state(params)
        loss = functools.partial(next_token_loss, small)
        step = make_step(functools.partial(loss, z_loss=config.optimizer.z_loss), declare(small), recipe, parts)
        nll = jax.jit(lambda params, batch: loss(params, batch, None)[0] / batch["weights"].sum())
        losses = []
        for n in range(STEPS):
            batch = on_mesh(packed_batch(config, seed=n))
            losses.append(float(nll(state.params, batch)))
            state, _ = step(state, batch)
        return losses, jax.device_get(state.params)


@pytest.mark.parametrize(
    ("name", "optimizer"),
    all_but([("default", "adamw"), ("llama", "muon")], [(n, o) for n in ("default", "llama") for o in ("adamw", "muon")]),
)
def test_losses_are_those_of_the_library(name, optimizer):
    expected, _ = of_the_library(name, optimizer)
    losses, _ = of_the_tour(name, optimizer)
    assert losses[-1] < losses[0] - 0.3  # it does learn
    np.testing.assert_allclose(losses, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("mesh", all_but(["fsdp 8"], [mesh for mesh in MESHES if mesh != "one"]))
def test_eight_devices_compute_what_one_does(mesh):
    expected, _ = of_the_tour("default", "muon")
    np.testing.assert_allclose(of_the_tour("default", "muon", mesh)[0], expected, atol=1e-5, rtol=0)


def test_parts_of_a_batch_add_up():
    expected, params = of_the_tour("default", "adamw")
    losses, others = of_the_tour("default", "adamw", "data 2, fsdp 2, tensor 2", 2)
    np.testing.assert_allclose(losses, expected, atol=1e-5, rtol=0)
    assert_same(others, params, atol=1e-3)


def test_a_resumed_run_has_the_same_bits(tmp_path):
    config = run_config("default", "muon")
    small, recipe = config_of(model_config_of(config)), recipe_of(config)
    with jax.set_mesh(make_mesh(2, 2, 2)):
        params = placed(ours(weights(model_config_of(config), scale=1.0)[0], small), small)
        step = make_step(functools.partial(next_token_loss, small), declare(small), recipe)

        def run(state, stop):
            for n in range(int(state.step), stop):
                state, _ = step(state, on_mesh(packed_batch(config, seed=n)))
            return state

        whole = jax.device_get(run(first_state(params), 7))
        save(tmp_path, run(first_state(params), 2))
        save(tmp_path, run(first_state(params), 4))
        again = restored(tmp_path, first_state(params))
        assert int(again.step) == 4
        resumed = jax.device_get(run(again, 7))
    for x, y in zip(jax.tree.leaves(resumed), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(x, y)
