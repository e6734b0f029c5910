"""Spikes are found and skipped; noise, trends and a new level are not."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lm.train import guard
from lm.train.step import make_trainer
from tests.lm.examples import first_state, packed_batch, tiny_config

STREAMS, STEPS = 32, 6700  # of the simulations


def settings(**keys) -> guard.Settings:
    defaults = dict(window=128, warmup=100, threshold=8.0, patience=10, lower_rate=1.0, lower_steps=0, rewinds=1)
    return guard.Settings(**defaults | keys)


@functools.partial(jax.jit, static_argnums=1)
def judged(values_N2, s: guard.Settings, sound_N=None):
    """(accepted [N], spike [N]) of steps with these losses and logarithms of gradient norms, whose updates are sound or not."""

    def step(carry, seen):
        (state, in_row), (value_2, sound) = carry, seen
        accepted, state, metrics = guard.judge(state, value_2[0], jnp.exp(value_2[1]), sound, in_row, s)
        return (state, jnp.where(accepted, 0, in_row + 1)), (accepted, metrics["spike"])

    sound_N = jnp.ones(len(values_N2), bool) if sound_N is None else sound_N
    return lax.scan(step, (guard.init(s), jnp.int32(0)), (values_N2, sound_N))[1]


@functools.cache
def simulated(noise: str) -> np.ndarray:
    """Deviations above the level of 200,000 steps after the warm-up, in 32 runs. No step is skipped."""
    rng, shape = np.random.default_rng(0), (STREAMS, STEPS, 2)
    drawn = {"gaussian": rng.standard_normal(shape), "laplace": rng.laplace(size=shape), "t5": rng.standard_t(5, shape)}[noise]
    values = np.float32([3.0, 0.0] + np.array([0.1, 1.0]) * drawn)  # deviations above the floors
    s = settings(threshold=math.inf)
    return np.asarray(jax.jit(jax.vmap(lambda one: judged(one, s)[1]))(values))[:, 300:]


def derived(threshold: float, window: int = 128) -> float:
    """The formula of lm/train/guard.py, for two numbers."""
    s, variance = np.linspace(1e-3, 3, 20_001), 1 / (0.735 * window)
    density = np.exp(-((s - 1) ** 2) / 2 / variance) / math.sqrt(2 * math.pi * variance)
    tail = [0.5 * math.erfc(x / math.sqrt(2)) for x in threshold * s / math.sqrt(1 + 2 * math.pi / window)]
    return 2 * float(np.sum(density * tail) * (s[1] - s[0]))


@pytest.mark.slow
def test_false_alarms_of_gaussian_noise():
    """At 3 and 4 deviations the measured rates are the derived ones; at the default there is no alarm."""
    deviations = simulated("gaussian")
    assert deviations.size > 200_000
    for threshold in (3, 4):
        assert np.mean(deviations > threshold) == pytest.approx(derived(threshold), rel=0.35)
    assert not np.any(deviations > 8)
    assert derived(8) < 2e-9


@pytest.mark.slow
@pytest.mark.parametrize("noise, rate", [("laplace", 1e-3), ("t5", 1e-3)])
def test_false_alarms_of_heavy_tails(noise, rate):
    assert np.mean(simulated(noise) > 8) < rate


def noisy(steps: int, seed: int = 0, loss=3.0, log_norm=0.0) -> np.ndarray:
    return np.float32(np.random.default_rng(seed).normal(0, [0.02, 0.1], (steps, 2)) + np.stack(
        [np.broadcast_to(loss, steps), np.broadcast_to(log_norm, steps)], axis=1
    ))  # fmt: skip


def test_a_spike_of_either_is_skipped_and_a_fall_is_not():
    values = noisy(600)
    values[300, 0] += 0.5
    values[400, 1] += 5
    values[500] -= 2.0
    values[50, 0] += 5.0  # in the warm-up
    accepted, _ = judged(values, settings())
    assert np.flatnonzero(~np.asarray(accepted)).tolist() == [300, 400]


def test_a_norm_that_a_few_rows_make_large_is_no_spike():
    """A run of the demo's text: a narrow body, a long tail to 12 times the level, and a loss as always."""
    rng, values = np.random.default_rng(0), noisy(900)
    tail = rng.random(900) < 0.02
    values[tail, 1] += rng.uniform(math.log(1.5), math.log(12), tail.sum())
    accepted, _ = judged(values, settings())
    assert tail.sum() > 10 and np.all(np.asarray(accepted))


def test_a_rare_kind_of_batch_is_not_starved():
    """One batch in 40 has a higher loss: the first four are skipped. A run that diverges is still found."""
    values = noisy(1000)
    values[110:900:40, 0] += 2.0
    values[900:906, 0] += 4.0
    accepted, _ = judged(values, settings())
    assert np.flatnonzero(~np.asarray(accepted)).tolist() == [110, 150, 190, 230, *range(901, 906)]


@pytest.mark.parametrize("number, every", [(0, 500), (1, 40)], ids=["losses far apart", "norms"])
def test_what_is_no_rare_kind_is_always_skipped(number, every):
    """No sound kind of batch has a norm of 16 times the level and a loss as always."""
    values = noisy(4000)
    values[200::every, number] += 5.0
    accepted, _ = judged(values, settings())
    assert np.flatnonzero(~np.asarray(accepted)).tolist() == list(range(200, 4000, every))


def test_many_spikes_do_not_hide_the_next():
    """A quarter of the window are spikes that were accepted in the warm-up; a mean and a standard deviation would hide all."""
    values = noisy(300)
    values[40:100:2, 0] += 4.0
    values[110, 0] += 1.0
    accepted, _ = judged(values, settings())
    assert np.flatnonzero(~np.asarray(accepted)).tolist() == [110]


@pytest.mark.parametrize(
    "loss",
    [
        4 * np.exp(-np.arange(900) / 60) + 3,  # the start of a run
        np.maximum(5 - np.arange(900) / 150, 3),  # a fast fall that ends at once
        3 + np.arange(900) / 300,  # a steady rise: 2 deviations of the noise in 13 steps
        3 + 0.3 * np.sin(np.arange(900) / 80),
    ],
    ids=["exponential", "kink", "rise", "wave"],
)
def test_a_trend_is_no_spike(loss):
    accepted, _ = judged(noisy(900, loss=loss), settings())
    assert np.all(np.asarray(accepted))


def test_a_spike_during_a_fast_fall_is_found():
    """The fall alone is 1.3 in the window, 65 times the noise."""
    values = noisy(400, loss=6 - np.arange(400) / 100)
    values[300, 0] += 0.7
    accepted, _ = judged(values, settings())
    assert np.flatnonzero(~np.asarray(accepted)).tolist() == [300]


def test_a_new_level_is_accepted():
    """After `patience` steps; then a spike above the new level is found again."""
    values = noisy(800)
    values[300:, 0] += 2.0
    values[700, 0] += 1.0
    accepted, _ = judged(values, settings())
    assert np.flatnonzero(~np.asarray(accepted)).tolist() == [*range(300, 310), 700]


def test_a_loss_that_climbs_slowly_is_high():
    """No step of it is a spike, and it ends a third higher."""
    s = settings()
    values = noisy(1000, loss=np.concatenate([np.full(300, 3.0), 3 + np.arange(700) / 700]))

    def step(state, value_2):
        _, state, metrics = guard.judge(state, value_2[0], jnp.exp(value_2[1]), True, 0, s)
        return state, (metrics["high_in_row"], metrics["spikes"])

    high, spikes = jax.jit(lambda values: lax.scan(step, guard.init(s), values)[1])(values)
    assert spikes[-1] == 0 and high[690] == 0 and high[-1] > 200


def test_an_update_that_overflows_is_a_spike_if_the_loss_is_high():
    """A flipped bit does both: the run then goes back to a checkpoint. With a usual loss the learning rate is too large."""
    values = noisy(400)
    values[300, 0] += 1.0
    sound = ~np.isin(np.arange(400), (200, 300))
    accepted, deviations = judged(values, settings(), sound)
    assert np.flatnonzero(~np.asarray(accepted)).tolist() == [200, 300]
    assert deviations[200] < 8 < deviations[300]


def test_a_gradient_of_zero_is_not_compared():
    values = noisy(400)
    values[100:300, 1] = -np.inf
    accepted, deviations = judged(values, settings())
    assert np.all(np.asarray(accepted)) and np.all(np.isfinite(np.asarray(deviations)))
    values[250, 0] += 1  # the loss is: a huge weight can make a norm layer return 0, and all gradients are 0 then
    accepted, _ = judged(values, settings())
    assert np.flatnonzero(~np.asarray(accepted)).tolist() == [250]


def test_a_skipped_spike_leaves_no_trace():
    """Parameters and moments are bitwise those before, as after a step that is not finite."""
    config = tiny_config(num_layers=1)
    config.guard.update(window=16, warmup=16)
    trainer = make_trainer(config)
    state, step = first_state(trainer, config), jax.jit(trainer.step)
    for n in range(20):
        state, metrics = step(state, packed_batch(config, n))
    assert metrics["skipped"] == 0
    bad = packed_batch(config, 20)
    bad["weights"] = bad["weights"] * np.where(np.arange(8) == 3, 1e4, 1)[:, None].astype(np.float32)  # one row rules the batch
    bad["targets"] = np.random.default_rng(0).integers(0, 2, bad["targets"].shape).astype(np.int32)
    after, metrics = step(state, bad)
    assert np.isfinite(metrics["loss"]) and metrics["spike"] > 8
    assert (metrics["skipped"], metrics["spikes"], metrics["skipped_in_row"], metrics["weight"]) == (1, 1, 1, 0)
    for new, old in zip(jax.tree.leaves((after.params, after.optimizer)), jax.tree.leaves((state.params, state.optimizer))):
        assert np.asarray(new).tobytes() == np.asarray(old).tobytes()
    _, metrics = step(after, packed_batch(config, 21))
    assert (metrics["skipped"], metrics["skipped_in_row"]) == (1, 0)


def test_reinforcement_learning_has_no_guard():
    config = tiny_config()
    assert guard.settings(config) is not None
    config.method = "rl"
    assert guard.settings(config) is None
