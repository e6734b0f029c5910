"""DoReMi's update against its twin in NumPy, its step on slices and meshes, and what it finds in a world of three sources."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lm.model.inputs import inputs_of
from lm.model.transformer import skeleton
from lm.parallel.mesh import make_mesh, place_rows
from lm.runs.checkpoint import Checkpoints
from lm.train.doremi import Weights, average, proxy_trainer, updated
from lm.train.step import make_trainer, model_config_of, state_shardings
from tests.lm.examples import first_state, packed_batch, parameters, plain_batch, tiny_config

NAMES = ("noise", "trivial", "learnable")
UNIFORM = dict.fromkeys(NAMES, 1 / 3)


def slow_update(weights, excess, uniform, step_size, smoothing):
    """The slow twin of one update, source by source."""
    grown = [weight * np.exp(step_size * over) for weight, over in zip(weights, excess)]
    return [(1 - smoothing) * one / sum(grown) + smoothing * u for one, u in zip(grown, uniform)]


def test_the_update_is_that_of_the_paper():
    weights, excess, uniform = [0.2, 0.3, 0.5, 0.0], [0.1, 2.0, 0.0, 9.0], [1 / 3, 1 / 3, 1 / 3, 0.0]
    for step_size, smoothing in ((1.0, 1e-3), (0.5, 0.1)):
        found = updated(*map(jnp.array, (weights, excess, uniform)), step_size, smoothing)
        np.testing.assert_allclose(found, slow_update(weights, excess, uniform, step_size, smoothing), rtol=1e-5)
        assert float(found.sum()) == pytest.approx(1) and found[3] == 0
    large = updated(jnp.array([0.5, 0.5]), jnp.array([500.0, 1.0]), jnp.array([0.5, 0.5]))
    np.testing.assert_allclose(large, [1 - 0.5e-3, 0.5e-3], rtol=1e-5)


def batch_of(config, seed=0):
    return packed_batch(config, seed) | {"sources": np.array([0, 1, 2, 0, 1, 2, 0, 1], np.int32)}


@functools.cache
def compiled():
    config = tiny_config(num_layers=1)
    trainer = proxy_trainer(config, UNIFORM)
    reference = parameters(model_config_of(config), scale=1.5)
    return config, trainer, first_state(trainer, config), reference, jax.jit(trainer.step)


def test_a_step_weighs_the_excess_of_each_source():
    config, trainer, state, reference, step = compiled()
    batch = batch_of(config)
    graph = skeleton(model_config_of(config))[0]

    @jax.jit
    def nll(params):
        logits = nnx.merge(graph, params)(inputs_of(batch))
        logp = jax.nn.log_softmax(logits, axis=-1)
        return -jnp.take_along_axis(logp, batch["targets"][..., None], axis=-1)[..., 0]

    own, other = (np.asarray(nll(params), np.float64) for params in (state.params, reference))
    excess, losses = [], []
    for d in range(3):
        mine = (batch["sources"][:, None] == d) & (batch["weights"] > 0)
        excess.append(np.maximum(own - other, 0)[mine].mean())
        losses.append(own[mine].mean())
    weights = slow_update([1 / 3] * 3, excess, [1 / 3] * 3, 1.0, 1e-3)
    after, metrics = step(state, batch, reference)
    np.testing.assert_allclose(after.sources.excess, excess, rtol=1e-4)
    np.testing.assert_allclose(after.sources.now, weights, rtol=1e-4)
    np.testing.assert_allclose([metrics[f"loss/{name}"] for name in NAMES], losses, rtol=1e-5)
    # The loss that is learnt from is the one with the new weights, and the update is pretraining's on weighted tokens.
    assert float(metrics["loss"]) == pytest.approx(np.dot(weights, losses), rel=2e-4)
    scale = np.array([w / ((batch["sources"] == d) @ batch["weights"].sum(1)) for d, w in enumerate(weights)])
    weighted = {name: x for name, x in batch.items() if name != "sources"}
    weighted["weights"] = (batch["weights"] * scale[batch["sources"]][:, None]).astype(np.float32)
    plain, _ = jax.jit(make_trainer(config).step)(state._replace(sources=()), weighted)
    for one, two in zip(jax.tree.leaves(after.params), jax.tree.leaves(plain.params), strict=True):
        np.testing.assert_allclose(one, two, atol=2e-5)


@pytest.mark.slow
def test_slices_and_a_mesh_change_nothing():
    config, _, state, reference, step = compiled()
    expected, metrics = step(state, batch_of(config), reference)
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    config = config.copy_and_resolve_references()
    config.accumulate = 2
    with jax.set_mesh(mesh):
        trainer = proxy_trainer(config, UNIFORM)
        shardings = state_shardings(trainer, mesh)
        there = jax.tree.map(jax.device_put, (state, reference), (shardings, shardings.params))
        batch = dict(zip(batch_of(config), place_rows(*batch_of(config).values())))
        after, sliced = jax.jit(trainer.step)(there[0], batch, there[1])
    for one, two in zip(expected.sources, after.sources):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-6)
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(metrics[name], sliced[name], rtol=1e-4)


def test_a_source_that_is_not_in_the_batch_keeps_its_excess_and_a_bad_step_changes_nothing():
    config, _, state, reference, step = compiled()
    state = state._replace(sources=Weights(jnp.array([0.2, 0.3, 0.5]), jnp.array([0.5, 0.1, 0.7]), jnp.zeros(3)))
    batch = batch_of(config) | {"sources": np.array([0, 1] * 4, np.int32)}
    after, _ = step(state, batch, reference)
    assert float(after.sources.excess[2]) == pytest.approx(0.7)
    bad = batch | {"weights": np.full_like(batch["weights"], np.nan)}
    left, metrics = step(state, bad, reference)
    assert metrics["skipped"] == 1
    for one, two in zip(left.sources, state.sources):
        assert np.asarray(one).tobytes() == np.asarray(two).tobytes()


def world(config, n):
    """Batch n: rows of noise, of one repeated token, and of a permutation that is applied again and again.

    The sources share no ids, so that what is learnt of one does little to the others.
    """
    random = np.random.default_rng(n)
    half, T = config.model.vocab_size // 2, config.sequence_length + 1
    follows = half + 1 + np.random.default_rng(99).permutation(half - 1)
    rows = np.full((config.batch_size, T), half)
    sources = np.arange(config.batch_size) % 3
    for row, source in zip(rows, sources):
        if source == 0:
            row[:] = random.integers(0, half, T)
        elif source == 2:
            row[0] = random.integers(half + 1, 2 * half)
            for t in range(1, T):
                row[t] = follows[row[t - 1] - half - 1]
    return plain_batch(rows) | {"sources": sources.astype(np.int32)}


@functools.cache
def searched():
    """(config, reference, step, states of the proxy after each step) in the world."""
    config = tiny_config(num_layers=1)
    config.steps, config.batch_size = 60, 12
    config.optimizer.update(learning_rate=1e-2, warmup=5, weight_decay=0.0)
    trainer = make_trainer(config)
    state, step = first_state(trainer, config), jax.jit(trainer.step)
    for n in range(config.steps):
        batch = world(config, n)
        del batch["sources"]
        state, metrics = step(state, batch)
    proxy = proxy_trainer(config, UNIFORM)
    step, states = jax.jit(proxy.step), [first_state(proxy, config)]
    for n in range(config.steps):
        states.append(step(states[-1], world(config, n), state.params)[0])
    return config, proxy, state.params, step, states


@pytest.mark.slow
def test_what_can_be_learnt_gets_the_most_weight():
    *_, states = searched()
    found = dict(zip(NAMES, average(states[-1].sources).tolist()))
    assert sum(found.values()) == pytest.approx(1)
    assert found["learnable"] > 1.5 * max(found["noise"], found["trivial"])
    mean = np.mean([state.sources.now for state in states[1:]], axis=0)
    np.testing.assert_allclose(list(found.values()), mean, rtol=1e-5)


@pytest.mark.slow
def test_weights_are_part_of_the_checkpoint(tmp_path):
    config, proxy, reference, step, states = searched()
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(30, states[30], {})
    checkpoints.wait()
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), jax.eval_shape(proxy.init))
    state = checkpoints.restore(30, abstract)
    checkpoints.close()
    for n in range(30, 40):
        state, _ = step(state, world(config, n), reference)
    for one, two in zip(state.sources, states[40].sources):
        assert np.asarray(one).tobytes() == np.asarray(two).tobytes()
