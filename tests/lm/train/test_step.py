"""One training step: it learns, it averages over tokens, and a bad one leaves no trace."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.lm.examples import packed_batch, plain_batch, tiny_config, trainer_and_state


@functools.cache
def prepared(accumulate: int = 1):
    """(config, trainer, initial state, compiled step) of the tiny config."""
    config = tiny_config()
    config.accumulate = accumulate
    trainer, state = trainer_and_state(config)
    return config, trainer, state, jax.jit(trainer.step)


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def test_one_batch_is_learnt_by_heart():
    config = tiny_config()
    config.steps = 100
    config.optimizer.update(learning_rate=1e-2, warmup=10, weight_decay=0.0)
    trainer, state = trainer_and_state(config)
    # The first token tells which row it is. It comes once: attention gives "a" and "a a" the same average.
    rows = np.random.default_rng(0).integers(4, 64, (4, 33))
    rows[:, 0] = np.arange(4)
    step, batch = jax.jit(trainer.step), plain_batch(rows)
    losses = []
    for _ in range(config.steps):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[0] == pytest.approx(np.log(64), rel=0.02)
    assert losses[-1] < 0.01


def test_metrics_of_a_step():
    config, trainer, state, step = prepared()
    batch = packed_batch(config, seed=0)
    after, metrics = step(state, batch)
    sums = jax.jit(trainer.evaluate)(state.params, batch)
    # before the update, no z-loss
    assert metrics["loss"] == pytest.approx(float(sums["objective"] / sums["weight"]), rel=1e-6)
    assert metrics["weight"] == batch["weights"].sum()
    assert metrics["learning_rate"] == pytest.approx(config.optimizer.learning_rate / config.optimizer.warmup)
    assert (after.step, after.skipped, after.skipped_in_row) == (1, 0, 0)
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(after.params))


def test_the_gradient_is_clipped_to_its_norm():
    config = tiny_config()
    config.optimizer.clip_norm = 1e-3
    trainer, state = trainer_and_state(config)
    after, metrics = jax.jit(trainer.step)(state, packed_batch(config, seed=0))
    assert metrics["grad_norm"] > 1e-2  # as it was before clipping
    mu = after.optimizer[0].mu
    norm = np.sqrt(sum(np.sum(np.square(x)) for x in jax.device_get(jax.tree.leaves(mu))))
    assert norm == pytest.approx((1 - config.optimizer.b1) * 1e-3, rel=1e-4)


def test_a_token_counts_the_same_in_any_slice():
    batch = packed_batch(tiny_config(), seed=3)
    assert len({row.sum() for row in batch["weights"]}) > 4
    results = []
    for parts in (1, 4):
        _, _, state, step = prepared(parts)
        after, metrics = step(state, batch)
        results.append([metrics["loss"], metrics["grad_norm"], *jax.tree.leaves(after.optimizer[0].mu)])
    for whole, sliced in zip(*results, strict=True):
        np.testing.assert_allclose(whole, sliced, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("poison", [np.inf, np.nan])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_bad_step_leaves_no_trace(poison, accumulate):
    config, _, state, step = prepared(accumulate)
    params = jax.tree.map(lambda p: p, state.params)
    params["embedding"].set_value(params["embedding"].get_value().at[0].set(poison))
    state = state._replace(params=params)
    good = packed_batch(config, seed=0, low=1)
    good["tokens"] = np.where(good["segment_ids"] == 0, 1, good["tokens"])  # padding is id 0, too
    bad = {name: array.copy() for name, array in good.items()}
    row = int(np.argmax(bad["weights"].sum(axis=1)))
    bad["tokens"][row, 0] = 0

    state, metrics = step(state, good)  # so that there are moments to spoil
    assert np.isfinite([float(m) for m in metrics.values()]).all()
    before = bits((state.params, state.optimizer))
    for n in (1, 2):
        state, metrics = step(state, bad)
        assert bits((state.params, state.optimizer)) == before
        assert (metrics["skipped"], metrics["skipped_in_row"], metrics["weight"]) == (n, n, 0)
        assert (state.step, state.skipped, state.skipped_in_row) == (1 + n, n, n)
    state, metrics = step(state, good)
    assert (metrics["skipped"], metrics["skipped_in_row"]) == (2, 0)
    assert (state.step, state.skipped, state.skipped_in_row) == (4, 2, 0)
    assert metrics["weight"] == good["weights"].sum()
    assert all(new != old for new, old in zip(bits((state.params, state.optimizer)), before, strict=True))


def test_an_update_that_overflows_leaves_no_trace():
    """Loss and gradient are finite: no token of the batch reads the row that weight decay would make infinite."""
    config = tiny_config()
    config.optimizer.update(learning_rate=1e3, warmup=1)
    trainer, state = trainer_and_state(config)
    params = jax.tree.map(lambda p: p, state.params)  # the state is shared with other tests
    params["embedding"].set_value(params["embedding"].get_value().at[0].set(3e38))
    state = state._replace(params=params)
    batch = packed_batch(config, seed=0, low=1)
    batch["tokens"] = np.where(batch["segment_ids"] == 0, 1, batch["tokens"])  # padding is id 0, too
    after, metrics = jax.jit(trainer.step)(state, batch)
    assert np.isfinite([float(metrics["loss"]), float(metrics["grad_norm"])]).all()
    assert bits((after.params, after.optimizer)) == bits((state.params, state.optimizer))
    assert (metrics["skipped"], metrics["weight"]) == (1, 0)


def test_a_batch_without_targets_is_skipped():
    config, _, state, step = prepared()
    batch = packed_batch(config, seed=0)
    batch["weights"] = np.zeros_like(batch["weights"])
    after, metrics = step(state, batch)
    assert bits((after.params, after.optimizer)) == bits((state.params, state.optimizer))
    assert (metrics["skipped"], metrics["weight"]) == (1, 0)
