"""Reward models: pairs and steps against plain twins, and which token a score is read at."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lm.align import reward, reward_model, settings
from lm.model.inputs import Inputs
from lm.model.transformer import skeleton
from lm.train.step import model_config_of
from tests.lm.align.batches import T, align_config, measured, pair_batch
from tests.lm.examples import parameters

KEY = jax.random.key(0)
PAIRS = pair_batch(3, filler=1)  # as everywhere here, so that each objective is compiled once


@functools.cache
def prepared(kind: str = "outcome"):
    """(objective, ModelConfig, parameters), the head's enlarged so that scores are apart."""
    config = align_config(reward=dict(kind=kind, centering=0.1), model=dict(score_head="reward"))
    model_config = model_config_of(config)
    params = nnx.to_flat_state(parameters(model_config, 0, 3.0))
    params = nnx.from_flat_state([(path, p.replace(p.get_value() * 10) if path == ("score",) else p) for path, p in params])
    return reward.objective(config), model_config, params


def step_batch():
    """Three answers of a few steps each, and a row that only fills up."""
    rng = np.random.default_rng(0)
    batch = {name: np.zeros((4, T), np.int32) for name in ("tokens", "targets", "segment_ids", "positions")}
    batch |= {name: np.zeros((4, T), np.float32) for name in ("weights", "labels")}
    for row, ends in enumerate([[4, 7, 12], [5, 6], [9]]):
        n = ends[-1] + 1
        batch["tokens"][row, :n], batch["segment_ids"][row, :n] = rng.integers(1, 64, n), 1
        batch["positions"][row, :n] = np.arange(n)
        batch["weights"][row, ends] = 1
        batch["labels"][row, ends] = [1, 0, 1][: len(ends)]
    return batch


def scores(config, params, tokens_BT, segment_ids_BT):
    """The score after each token."""
    model = nnx.merge(skeleton(config)[0], params)
    return model.hidden(Inputs(jnp.asarray(tokens_BT), jnp.asarray(segment_ids_BT))).x_BTD @ params["score"].get_value()


def plain_pairs(config, params):
    """(mean loss, metrics) by the definitions."""
    tokens, segments = PAIRS["tokens"].reshape(8, T), PAIRS["segment_ids"].reshape(8, T)
    score_RT = scores(config, params, tokens, segments)
    both = jnp.stack([score_RT[row, segments[row].sum() - 1] for row in range(6)]).reshape(3, 2)
    chosen, rejected = both.T
    loss = jnp.log(1 + jnp.exp(rejected - chosen + PAIRS["margin"][:3])) + 0.1 * (chosen + rejected) ** 2
    return loss.mean(), {
        "accuracy": (chosen > rejected).mean(),
        "margin": (chosen - rejected).mean(),
        "mean_reward": both.mean(),
        "min_reward": both.min(),
        "max_reward": both.max(),
    }


def plain_steps(config, params):
    batch, losses, right, found = step_batch(), [], [], []
    score_BT = scores(config, params, batch["tokens"], batch["segment_ids"])
    for place in np.argwhere(batch["weights"]):
        score, good = score_BT[*place], batch["labels"][*place]
        p = jax.nn.sigmoid(score)
        losses.append(-jnp.log(p if good else 1 - p))
        right.append((score > 0) == bool(good))
        found.append(score)
    return jnp.mean(jnp.stack(losses)), {"accuracy": jnp.mean(jnp.stack(right)), "mean_reward": jnp.mean(jnp.stack(found))}


TWINS = {"outcome": (PAIRS, plain_pairs), "process": (step_batch(), plain_steps)}


@pytest.mark.parametrize("kind", settings.CHOICES["reward.kind"])
def test_as_a_plain_twin(kind):
    objective, config, params = prepared(kind)
    batch, twin = TWINS[kind]
    value, metrics, _ = measured(objective, config, params, batch, key=KEY, gradient=False)
    wanted, wanted_metrics = jax.jit(functools.partial(twin, config))(params)
    assert value == pytest.approx(float(wanted), rel=1e-4)
    assert metrics == pytest.approx({name: float(x) for name, x in wanted_metrics.items()}, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", settings.CHOICES["reward.kind"])
def test_gradients_as_of_a_plain_twin(kind):
    objective, config, params = prepared(kind)
    batch, twin = TWINS[kind]
    gradient = measured(objective, config, params, batch, key=KEY)[2]
    wanted_gradient = jax.jit(jax.grad(lambda params: twin(config, params)[0]))(params)
    for (path, ours), (_, theirs) in zip(nnx.to_flat_state(gradient), nnx.to_flat_state(wanted_gradient), strict=True):
        ours, theirs = ours.get_value(), theirs.get_value()
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * float(jnp.max(jnp.abs(theirs))) + 1e-9)
        assert jnp.any(ours != 0) != (path == ("head",))  # which makes logits, and no score


def test_scores_are_those_that_are_trained():
    objective, config, params = prepared()
    rows = [PAIRS[name].reshape(8, T) for name in ("tokens", "segment_ids", "positions")]
    graph = skeleton(config)[0]
    score = jax.jit(lambda p, *a: reward_model.reward_scores(nnx.merge(graph, p), *a))
    found = np.asarray(score(params, *rows))[:6]  # without the row that fills up
    metrics = measured(objective, config, params, PAIRS, key=KEY, gradient=False)[1]
    assert metrics["mean_reward"] == pytest.approx(found.mean(), rel=1e-4)
    assert metrics["min_reward"] == pytest.approx(found.min(), rel=1e-4)
    assert metrics["max_reward"] == pytest.approx(found.max(), rel=1e-4)
    assert len(np.unique(found.round(3))) == 6


@pytest.mark.parametrize("kind", settings.CHOICES["reward.kind"])
def test_what_does_not_count_has_no_say(kind):
    batch = {"outcome": PAIRS, "process": step_batch()}[kind]
    other = {name: x.copy() for name, x in batch.items()}
    other["targets"] = other["targets"] + 1  # no score looks ahead
    other["tokens"] = np.where(batch["segment_ids"] > 0, batch["tokens"], 7)
    other["tokens"][-1], other["segment_ids"][-1] = 5, 1
    if kind == "process":
        other["labels"] = np.where(batch["weights"] > 0, batch["labels"], 1 - batch["labels"])
    else:
        other["margin"][-1] = 9.0
    one, two = (measured(*prepared(kind), given, key=KEY, gradient=False) for given in (batch, other))
    jax.tree.map(np.testing.assert_array_equal, one, two)
