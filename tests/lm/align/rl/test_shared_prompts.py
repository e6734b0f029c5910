"""Prompts that are read once for their group, beside rollouts that are whole rows."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from flax import nnx

from configs.align import grpo
from lm.align.rl import objective as rl
from lm.align.rl import shared_prompts
from lm.align.rl.rollouts import Rollout, arrays
from lm.config import MixtureOfExperts, ModelConfig
from lm.model.transformer import skeleton
from lm.parallel.mesh import RULES, make_mesh
from lm.train.step import make_trainer, model_config_of
from tests.lm.examples import first_state, parameters
from tests.slow import all_but

P, G, V, WIDTH = 4, 4, 64, 9
FOUR, EIGHT = {"fsdp": 2, "tensor": 2}, {"data": 2, "fsdp": 2, "tensor": 2}
MODELS = {
    "plain": dict(),
    "unrolled, no remat": dict(scan_layers=False, remat="none"),
    "sinks": dict(window=5, attention_pattern=("local", "global"), attention_sinks=True, attention_softcap=5.0),
    "chunks": dict(window=5, attention_pattern=("chunk", "global")),
    "learned positions": dict(positions="learned", max_positions=64),
}


def config_of(after=7, model=(), **keys):
    config = grpo.get_config()
    config.batch_size, config.sequence_length, config.dtype, config.steps = P * G, WIDTH + after - 1, "float32", 10
    config.model.update(vocab_size=V, num_layers=2, embed_dim=32, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=64)
    config.model.update(dict(model))
    config.rollout.max_new_tokens = after
    config.optimizer.update(learning_rate=1e-2, warmup=0)
    config.rl.group_size = G
    config.rl.update(keys)
    return config


def rolled(after=7, seed=0):
    """(rollouts, prompts) of lengths of all kinds; what a tool answered stands in the middle of some."""
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(4, V, n).tolist() for n in (1, 4, 7, WIDTH)]
    found = []
    for number in range(P * G):
        prompt, n = prompts[number // G], after if number == 0 else int(rng.integers(1, after + 1))
        mask = [False] * len(prompt) + [number % 5 > 0 or place != n // 2 for place in range(n)]
        tokens = prompt + rng.integers(4, V, n).tolist()
        logps = [float(-rng.random()) if drawn else 0.0 for drawn in mask]
        found.append(Rollout(tokens, mask, logps, [], "", True, 0, 0))
    return found, prompts


def batches(after=7):
    """The same rollouts as whole rows and with their prompts apart."""
    rollouts, prompts = rolled(after)
    advantages = np.random.default_rng(1).normal(size=P * G).astype(np.float32)
    whole = arrays(rollouts, WIDTH + after - 1, 0)
    whole |= {"advantages": advantages, "tokens_share": np.full(P * G, whole["weights"].sum() / (P * G), np.float32)}
    return whole, shared_prompts.grouped_arrays(whole, prompts, WIDTH, after)


def drawn(batch, name):
    return batch[name][batch["weights"] > 0]


def test_both_hold_the_same_tokens():
    whole, apart = batches()
    for name in ("tokens", "targets", "positions", "segment_ids", "sampler_logps"):
        np.testing.assert_array_equal(drawn(apart, name), drawn(whole, name), err_msg=name)
    assert apart["tokens"].shape == (P, G, 7) and apart["prompt_tokens"].shape == (P, WIDTH)


@pytest.mark.parametrize("name", all_but(["sinks"], MODELS))
def test_the_same_loss_metrics_and_gradient(name):
    config = config_of(model=MODELS[name], loss="grpo", beta=0.1, epochs=2)
    graph, _ = skeleton(model_config_of(config))
    params = parameters(model_config_of(config), scale=4.0)
    frozen = jax.tree.map(lambda x: 0.9 * x, params)
    objective, prepare = rl.objective(config), rl.prepared(graph, config)

    @jax.jit
    def learned(params, batch):
        batch = prepare(jax.tree.map(lambda x: 1.05 * x, params), frozen, batch)

        def loss(params):
            total, sums = objective.loss(nnx.merge(graph, params), batch, None, train=True, key=jax.random.key(0))
            return total / objective.weight(batch), sums.metrics

        return jax.value_and_grad(loss, has_aux=True)(params), batch

    ((loss, metrics), gradient), batch = learned(params, batches()[0])
    ((loss_2, metrics_2), gradient_2), batch_2 = learned(params, batches()[1])
    for one in ("old_logps", "ref_logps"):
        np.testing.assert_allclose(drawn(batch_2, one), drawn(batch, one), atol=1e-5)
    assert abs(loss) > 1e-3 and float(loss_2) == pytest.approx(float(loss), rel=1e-4)
    for key in metrics:
        np.testing.assert_allclose(metrics_2[key], metrics[key], rtol=1e-4, atol=1e-5, err_msg=key)
    for a, b in zip(jax.tree.leaves(gradient_2), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max() + 1e-8)


@pytest.mark.slow
def test_answers_longer_than_a_block_of_queries():
    after = 300
    config = config_of(after, loss="dapo", model=dict(num_layers=1))
    graph, _ = skeleton(model_config_of(config))
    params = parameters(model_config_of(config), scale=4.0)
    objective = rl.objective(config)

    @jax.jit
    def gradient(params, batch):
        return jax.grad(lambda params: objective.loss(nnx.merge(graph, params), batch, None, train=False)[0])(params)

    whole, apart = (jax.tree.leaves(gradient(params, batch)) for batch in batches(after))
    for a, b in zip(apart, whole, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max() + 1e-8)


@pytest.mark.slow
def test_bfloat16_is_near_float32():
    def gradient(dtype):
        config = config_of(28, loss="dapo", model=dict(num_heads=6, num_kv_heads=3, head_dim=32, scan_layers=False))
        config.dtype = dtype
        graph, _ = skeleton(model_config_of(config))
        objective, params = rl.objective(config), parameters(model_config_of(config))
        batch = batches(28)[1]
        found = jax.jit(jax.grad(lambda p: objective.loss(nnx.merge(graph, p), batch, None, train=False)[0]))(params)
        return np.concatenate([np.ravel(x) for x in jax.tree.leaves(found)])

    exact, rounded = gradient("float32"), gradient("bfloat16")
    assert 0 < np.linalg.norm(rounded - exact) < 0.05 * np.linalg.norm(exact)


@pytest.mark.slow
@pytest.mark.parametrize("sizes, accumulate", all_but([(FOUR, 2)], [(FOUR, 2), (EIGHT, 1), ({}, 2)]))
def test_devices_and_slices_equal_one(sizes, accumulate):
    def updated(sizes, accumulate):
        config = config_of(loss="grpo")
        config.accumulate = accumulate
        mesh = make_mesh(sizes, jax.devices()[: math.prod(sizes.values())])
        with jax.set_mesh(mesh):
            trainer = make_trainer(config, rl.objective(config))
            state = first_state(trainer, config, mesh)
            where = jax.NamedSharding(mesh, jax.sharding.PartitionSpec(RULES["batch"]))
            batch = {name: jax.device_put(x, where) for name, x in batches()[1].items()}
            state, metrics = jax.jit(trainer.step)(state, batch)
        return {name: float(x) for name, x in metrics.items()}, [np.asarray(x) for x in jax.tree.leaves(state.optimizer[0].mu)]

    metrics, moments = updated({}, 1)
    other, found = updated(sizes, accumulate)
    for key in metrics:
        assert other[key] == pytest.approx(metrics[key], rel=1e-4, abs=1e-6), key
    for ours, theirs in zip(moments, found, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(ours).max() + 1e-9)


def test_where_it_pays():
    model = ModelConfig(vocab_size=V, num_layers=2, embed_dim=64, num_heads=2, num_kv_heads=2, mlp_dim=64)
    assert shared_prompts.pays(model, 8, 30, 16) and shared_prompts.pays(model, 2, 30, 16)
    for width in (30, 3000):
        assert not shared_prompts.pays(model, 1, width, 16)  # a single answer shares nothing
    assert not shared_prompts.pays(model, 8, 30, 2000)
    large = dataclasses.replace(model, embed_dim=512)
    assert shared_prompts.pays(large, 8, 1500, 200)
    assert not shared_prompts.pays(large, 8, 100, 300) and not shared_prompts.pays(large, 8, 512, 512)
    moe = dataclasses.replace(model, mlp_pattern=("moe",), moe=MixtureOfExperts(num_experts=2))
    assert not shared_prompts.pays(moe, 8, 30, 16)
