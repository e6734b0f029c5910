"""The tour's DPO, reward model, GRPO and LoRA: losses and gradients of the library, on its batches; what rows hold."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lm.adapt.lora import merge, with_adapter
from lm.align import preference, reward
from lm.align.rl import advantages as library_advantages
from lm.align.rl import objective as rl
from lm.config import Adapter
from lm.model.transformer import skeleton
from lm.train.step import model_config_of, training_loss
from tests.lm.align.batches import align_config, pair_batch
from tests.lm.align.rl import test_rl
from tests.lm.examples import packed_batch
from tests.tour.pairs import assert_same, config_of, library_name, one_device, ours, placed, training_config, weights
from tour.dpo import dpo_loss
from tour.grpo import advantages, grpo_loss, rollouts
from tour.lora import declare_adapters, lora_loss, merged
from tour.mesh import make_mesh
from tour.model import declare, init
from tour.pretrain import gradient, next_token_loss, on_mesh
from tour.reward import reward_loss
from tour.sft import rows


def of_the_library(objective, params, graph, batch, frozen=None):
    """(mean loss, gradients) of an objective."""

    def loss(params):
        total, _ = objective.loss(nnx.merge(graph, params), batch, frozen, train=True, key=jax.random.key(0))
        return total / objective.weight(batch)

    return jax.jit(jax.value_and_grad(loss))(params)


def compare(found, expected, config):
    assert float(found[0]) == pytest.approx(float(expected[0]), abs=1e-5)
    found[1].pop("score", None)
    assert_same(found[1], ours(expected[1], config), atol=1e-5, rtol=1e-4)


def pairs_of(batch):
    """The tour's batch of the library's pairs [B, 2, T]."""
    arrays = {name: x for name, x in batch.items() if name != "margin"}
    return {side: {name: x[:, i] for name, x in arrays.items()} for i, side in enumerate(("chosen", "rejected"))}


@pytest.mark.parametrize("mesh", [pytest.param((1, 1, 1), marks=pytest.mark.slow), (2, 2, 2)])
def test_dpo_is_that_of_the_library(mesh):
    settings = align_config(preference=dict(loss="dpo", beta=0.3))
    shape, batch = model_config_of(settings), pair_batch(4)
    (params, graph), (reference, _) = weights(shape), weights(shape, seed=7)
    expected = of_the_library(preference.objective(settings), params, graph, batch, reference)
    config = config_of(shape)
    with jax.set_mesh(make_mesh(*mesh)):
        policy, frozen = (placed(ours(tree, config), config) for tree in (params, reference))
        loss = partial(dpo_loss, config, beta=0.3)
        found = jax.jit(lambda p, b, f: gradient(loss, p, b, f))(policy, on_mesh(pairs_of(batch)), frozen)
        compare(found, expected, config)


def test_the_reward_model_is_that_of_the_library():
    settings = align_config(reward=dict(kind="outcome", centering=0.1), model=dict(score_head="reward"))
    shape, batch = model_config_of(settings), pair_batch(4)
    batch["margin"] *= 0
    params, graph = weights(shape)
    expected = of_the_library(reward.objective(settings), params, graph, batch)
    config, loss = config_of(shape), partial(reward_loss, config_of(shape), centering=0.1)
    with jax.set_mesh(one_device()):
        tree = placed(ours(params, config), config) | {"score": jnp.asarray(params["score"].get_value())}
        found = jax.jit(lambda p, b: gradient(loss, p, b, None))(tree, on_mesh(pairs_of(batch)))
        np.testing.assert_allclose(found[1]["score"], expected[1]["score"].get_value(), atol=1e-5)
        compare(found, expected, config)


def test_grpo_is_that_of_the_library():
    settings = test_rl.config_of(loss="grpo", beta=0.1, epochs=2)
    graph, params, batch, _ = test_rl.prepared()
    expected = of_the_library(rl.objective(settings), params, graph, batch)
    config = config_of(model_config_of(settings))
    batch = {name: np.asarray(batch[name]) for name in batch if name not in ("sampler_logps", "tokens_share")}
    with jax.set_mesh(one_device()):
        loss, tree = partial(grpo_loss, config, beta=0.1), placed(ours(params, config), config)
        found = jax.jit(lambda p, b: gradient(loss, p, b, None))(tree, on_mesh(batch))
        compare(found, expected, config)


def test_advantages_are_those_of_the_library():
    rewards = np.array([[1, 0, 0, 1], [2, 2, 2, 2], [0.1, 0.2, 0.3, 0.7]], np.float32)
    np.testing.assert_allclose(advantages(rewards), library_advantages.grpo(rewards), atol=1e-5)
    assert advantages(rewards)[0, 0] == pytest.approx(0.865875, abs=1e-6)


def test_rollouts_have_the_log_probabilities_of_the_policy_that_drew_them(capsys):
    config = config_of(model_config_of(training_config(qk_norm="head")))
    with jax.set_mesh(make_mesh(2, 2, 2)):
        params = init(declare(config), 0)
        batch = rollouts(params, config, [[1, 2], [3]], 4, lambda p, answer: len(answer), 5, (), 0)
        assert capsys.readouterr().out == "step 1: mean reward 5.000\n" and batch["advantages"].tolist() == [0] * 8
        loss, _ = gradient(partial(grpo_loss, config), params, on_mesh(batch | {"advantages": np.ones(8)}), None)
        assert float(loss) == pytest.approx(-1, abs=1e-5)  # every ratio is 1


@pytest.mark.parametrize("mesh", [pytest.param((1, 1, 1), marks=pytest.mark.slow), (2, 2, 2)])
def test_adapters_are_those_of_the_library(mesh):
    settings = training_config(qk_norm="head")
    shape, batch = model_config_of(settings), packed_batch(settings, seed=1)
    config, rank, names = config_of(shape), 3, ("query", "output", "gate", "down")
    targets = "attention.(query|output)|feed_forward.(gate|down)"
    new, params = with_adapter(shape, weights(shape)[0], Adapter(rank=rank, alpha=6.0, targets=targets))
    rng, graph = np.random.default_rng(0), skeleton(new)[0]
    params = jax.tree.map(lambda x: x, params)

    def adapter_of(tree, name):
        node = tree["stacks"][0][0]
        for part in library_name(name, config).split(".")[:-1]:
            node = node[part]
        return node

    for name in names:
        b = adapter_of(params, name)["lora_b"]
        b.set_value(jnp.asarray(0.1 * rng.standard_normal(b.get_value().shape), jnp.float32))

    def loss(params):
        return training_loss(nnx.merge(graph, params), batch, z_loss=0.0, mtp_loss=0.0)[0] / batch["weights"].sum()

    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    expected = ours(merge(new, params)[1], config)
    with jax.set_mesh(make_mesh(*mesh)):
        tree = placed(ours(params, config), config)
        declared = declare_adapters(config, rank, names)

        def adapters_of(tree):
            return {n: {x: np.asarray(adapter_of(tree, n)[f"lora_{x}"].get_value()) for x in "ab"} for n in names}

        assert jax.tree.map(jnp.shape, init(declared, 0)) == jax.tree.map(jnp.shape, adapters_of(params))
        of_adapters = partial(lora_loss, partial(next_token_loss, config), config, scale=2.0)
        found = jax.jit(lambda p, b, f: gradient(of_adapters, p, b, f))(adapters_of(params), on_mesh(batch), (tree, None))
        assert float(found[0]) == pytest.approx(float(value), abs=1e-5)
        assert_same(found[1], adapters_of(grads), atol=1e-5, rtol=1e-4)
        assert_same(merged(tree, adapters_of(params), config, 2.0), expected, atol=1e-6)


def test_rows_train_on_answers_only():
    batch = rows([([5, 6, 7], [8, 9]), ([1], [2, 3, 4, 5, 6])], 5)
    assert batch["tokens"].tolist() == [[5, 6, 7, 8, 9], [1, 2, 3, 4, 5]]
    assert batch["weights"].tolist() == [[0, 0, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert batch["targets"].tolist() == [[6, 7, 8, 9, 0], [2, 3, 4, 5, 6]]
