"""The objective of reinforcement learning on batches made by hand, against equations written out in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs.align import grpo, ppo
from lm.align import settings
from lm.align.rl import objective as rl
from lm.align.rl.stream import differences
from lm.errors import UserError
from lm.model.linear import trainable
from lm.model.transformer import skeleton
from lm.train.step import make_trainer, model_config_of
from tests.lm.align.batches import token_logprobs
from tests.lm.examples import parameters
from tests.slow import all_but

B, T, V = 8, 12, 64


def config_of(base=grpo, **keys):
    config = base.get_config()
    config.batch_size, config.sequence_length, config.dtype, config.steps = B, T, "float32", 10
    config.model.update(vocab_size=V, num_layers=2, embed_dim=32, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=64)
    config.model.score_head = "value" if base is ppo else "none"
    config.rollout.max_new_tokens = 7
    config.optimizer.update(learning_rate=1e-2, warmup=0)
    config.rl.group_size = 4
    config.rl.update(keys)
    return config


def rollouts(seed=0, advantages=None):
    """Prompts of three tokens, answers of one to seven."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(4, V, (B, T + 1)).astype(np.int32)
    lengths = rng.integers(1, 8, B)
    places = np.arange(T + 1)
    real = places < 3 + lengths[:, None]
    weights = (real & (places >= 3)).astype(np.float32)
    batch = {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segment_ids": real[:, :-1].astype(np.int32),
        "positions": np.tile(np.arange(T, dtype=np.int32), (B, 1)),
        "weights": weights[:, 1:],
        "sampler_logps": np.zeros((B, T), np.float32),
        "tokens_share": np.full(B, weights.sum() / B, np.float32),
    }
    batch["advantages"] = rng.normal(size=B).astype(np.float32) if advantages is None else np.full(B, advantages, np.float32)
    return batch


def params_of(config, scale=4.0):
    return parameters(model_config_of(config), scale=scale)


def moved(params, by=0.03):
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(5)
    return jax.tree.unflatten(tree, [x + by * rng.normal(size=x.shape).astype(np.float32) for x in leaves])


def value_and_gradient(config, params, batch):
    objective = rl.objective(config)
    graph, _ = skeleton(model_config_of(config))

    def loss(params):
        total, sums = objective.loss(nnx.merge(graph, params), batch, None, train=False)
        return total / objective.weight(batch), sums

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)


@functools.cache
def prepared():
    """(graph, parameters, batch with the log-probabilities of older parameters and a reference, those of these parameters)."""
    config = config_of(beta=0.1, epochs=2)
    graph, _ = skeleton(model_config_of(config))
    now, before = params_of(config), moved(params_of(config))
    frozen = nnx.filter_state(moved(now, 0.02), trainable(model_config_of(config)))
    batch = jax.jit(rl.prepared(graph, config))(before, frozen, rollouts())
    logp = jax.jit(lambda params, batch: token_logprobs(nnx.merge(graph, params), batch)[0])(now, batch)
    return graph, now, batch, np.asarray(logp)


@pytest.mark.parametrize("kind", settings.CHOICES["rl.loss"])
def test_losses_are_their_equations(kind):
    config = config_of(loss=kind, beta=0.1, epochs=2)
    graph, now, batch, logp = prepared()
    objective = rl.objective(config)
    loss = jax.jit(lambda params, batch: objective.loss(nnx.merge(graph, params), batch, None, train=False)[0])(now, batch)
    loss = loss / objective.weight(batch)

    old, ref, mask = (np.asarray(batch[name]) for name in ("old_logps", "ref_logps", "weights"))
    terms = np.zeros((B, T))
    for b in range(B):
        ratios = np.exp(logp[b] - old[b])
        if kind == "gspo":
            ratios[:] = np.exp(((logp[b] - old[b]) * mask[b]).sum() / mask[b].sum())
        advantage = batch["advantages"][b]
        terms[b] = -np.minimum(ratios * advantage, np.clip(ratios, 0.8, 1.2) * advantage)
        d = ref[b] - logp[b]
        terms[b] += 0.1 * ratios * (np.exp(d) - d - 1)
    terms *= mask
    assert np.abs(np.exp((logp - old) * mask) - 1).max() > 0.2  # some ratios are clipped
    expected = {
        "grpo": (terms.sum(1) / mask.sum(1)).mean(),
        "gspo": (terms.sum(1) / mask.sum(1)).mean(),
        "bnpo": terms.sum() / mask.sum(),
        "dapo": terms.sum() / mask.sum(),
        "dr_grpo": terms.sum() / (B * 7),
    }
    np.testing.assert_allclose(loss, expected[kind], rtol=2e-5)


def test_no_advantage_no_gradient():
    config = config_of()
    (loss, _), gradient = value_and_gradient(config, params_of(config), rollouts(advantages=0.0))
    assert loss == 0 and all(not np.any(g) for g in jax.tree.leaves(gradient))
    (_, _), gradient = value_and_gradient(config, params_of(config), rollouts(advantages=1.0))
    assert any(np.any(g) for g in jax.tree.leaves(gradient))


@pytest.mark.parametrize("base", all_but([ppo], [grpo, ppo]))
def test_the_first_update_has_ratio_1_and_clips_nothing(base):
    config = config_of(base, epochs=2, minibatches=2, beta=0.05)
    config.optimizer.learning_rate = 3e-2
    trainer = make_trainer(config, rl.objective(config), updates=4)
    graph, _ = skeleton(model_config_of(config))
    params = params_of(config)
    batch = rollouts() | {"rewards": np.random.default_rng(1).normal(size=B).astype(np.float32)}
    frozen = nnx.filter_state(params, trainable(model_config_of(config)))
    batch = jax.jit(rl.prepared(graph, config))(params, frozen, batch)
    state = jax.jit(trainer.init)(params)
    state, metrics = jax.jit(rl.iteration(trainer, 2, 2))(state, batch)
    assert metrics["first_update/ratio"] == pytest.approx(1, abs=1e-6)
    assert metrics["first_update/clip_ratio/region_mean"] == 0
    assert metrics["clip_ratio/region_mean"] > 0  # later updates move away
    assert state.step == 4 and metrics["tokens"] == batch["weights"].sum()


def test_ppo_learns_values_of_what_follows():
    config = config_of(ppo, beta=0.0, epochs=1, value_clip=1e9)
    graph, _ = skeleton(model_config_of(config))
    params, batch = params_of(config), rollouts()
    rewards = np.arange(B, dtype=np.float32)
    prepared = jax.jit(rl.prepared(graph, config))(params, None, {**batch, "rewards": rewards})
    mask = batch["weights"]
    # Values start at 0, so with lambda = 0.95 the return k tokens before the last one is 0.95^k of the reward.
    for b in range(B):
        places = np.flatnonzero(mask[b])
        for k, place in enumerate(reversed(places)):
            assert prepared["returns"][b, place] == pytest.approx(rewards[b] * 0.95**k, rel=1e-5)
    drawn = np.asarray(prepared["advantages"])[mask > 0]
    assert abs(drawn.mean()) < 1e-5 and drawn.std(ddof=1) == pytest.approx(1, rel=1e-4)
    (_, sums), _ = value_and_gradient(config, params, prepared)
    critic, tokens = sums.metrics["loss/value_avg"]
    np.testing.assert_allclose(critic / tokens, 0.5 * (np.asarray(prepared["returns"])[mask > 0] ** 2).mean(), rtol=1e-5)


def test_the_kl_to_the_reference_lowers_a_ppo_reward():
    config = config_of(ppo, beta=0.5, lam=0.0, gamma=0.0)
    graph, _ = skeleton(model_config_of(config))
    params = params_of(config)
    frozen = nnx.filter_state(moved(params), trainable(model_config_of(config)))
    batch = rollouts() | {"rewards": np.zeros(B, np.float32)}
    prepared = jax.jit(rl.prepared(graph, config))(params, frozen, batch)
    lowered = -0.5 * (prepared["old_logps"] - prepared["ref_logps"])
    np.testing.assert_allclose(prepared["returns"], lowered * batch["weights"], atol=1e-5)
    assert float(jnp.abs(lowered).max()) > 0.01


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_importance_corrections_are_capped_ratios(level):
    config = config_of(correction=level, correction_cap=1.5)
    rng = np.random.default_rng(3)
    old, sampler = rng.normal(size=(2, B, T)).astype(np.float32) * 0.5
    mask = rollouts()["weights"]
    ours = rl.correction(old, sampler, mask, config.rl)
    for b in range(B):
        apart = (old[b] - sampler[b]) * mask[b]
        twin = np.minimum(np.exp(apart.sum() if level == "sequence" else apart), 1.5)
        np.testing.assert_allclose(np.where(mask[b], ours[b], 0), twin * mask[b], rtol=1e-5)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_the_loss_of_older_rollouts_is_decoupled_ppo(level):
    """Σ min(π_old/π_sampler, cap)·−min(ρA, clip(ρ)A), ρ = π/π_old: Hilton et al. 2022, with truncated weights."""
    config = config_of(correction=level, correction_cap=1.5, epochs=2)
    _, now, batch, logp = prepared()
    old, mask = np.asarray(batch["old_logps"], np.float64), batch["weights"]
    sampler = np.asarray(old + np.random.default_rng(4).normal(size=(B, T)) * 0.6, np.float32)
    (loss, sums), _ = value_and_gradient(config, now, batch | {"sampler_logps": sampler})
    total, weights = 0.0, []
    for b, t in zip(*np.nonzero(mask)):
        apart = (old - sampler)[b] * mask[b]
        weights.append(min(1.5, np.exp(apart.sum() if level == "sequence" else apart[t])))
        ratio, advantage = np.exp(logp[b, t] - old[b, t]), batch["advantages"][b]
        total -= weights[-1] * min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage)
    assert 1.5 in weights and min(weights) < 0.8
    np.testing.assert_allclose(loss, total / mask.sum(), rtol=2e-5)
    mean, tokens = sums.metrics["sampling/importance_sampling_ratio/mean"]
    np.testing.assert_allclose(mean / tokens, np.mean(weights), rtol=1e-5)


def test_trainer_and_sampler_differ_where_tokens_were_drawn():
    found = differences(np.float32([[-1, -2], [-3, -4]]), np.float32([[-1.5, -9], [-3, -3]]), np.float32([[1, 0], [0.5, 1]]))
    assert found == {"mean": 0.5, "max": 1.0}
    nothing = np.zeros((1, 2), np.float32)
    assert differences(nothing, nothing - 1, nothing) == {"mean": 0.0, "max": 0.0}


@pytest.mark.parametrize(
    "keys",
    [dict(loss="ppo"), dict(algorithm="gpro"), dict(group_size=1), dict(group_size=3), dict(minibatches=3), dict(kl="k4")],
)
def test_settings_that_make_no_sense_are_named(keys):
    with pytest.raises(UserError, match=next(iter(keys))):
        settings.check_method(config_of(**keys))
