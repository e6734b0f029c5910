"""Experts of a trained model share the work when they are balanced, by bias or by loss, and do not when they are not."""

import jax
import numpy as np
import pytest
from flax import nnx

from lm.model.transformer import skeleton
from lm.train.step import busiest, make_trainer, model_config_of
from tests.lm.examples import first_state, plain_batch, tiny_config

STEPS = 80
MOE = {"num_experts": 8, "top_k": 2, "expert_dim": 16}


def skewed_rows(config, seed):
    """Rows of tokens as uneven as words are: token n is drawn 1/n as often as the first, or follows the one before."""
    rng = np.random.default_rng(seed)
    B, T, V = config.batch_size, config.sequence_length, config.model.vocab_size
    share = 1 / np.arange(1, V + 1)
    rows = rng.choice(V, (B, T + 1), p=share / share.sum())
    for t in range(1, T + 1):
        follows = rng.random(B) < 0.5
        rows[follows, t] = (3 * rows[follows, t - 1] + 1) % V
    return rows


def trained_load(**moe):
    """Load of the busiest expert of any layer of a trained model on rows it has not seen, in units of an even share."""
    config = tiny_config(mlp_pattern=("moe",))
    config.model.moe.update(MOE, **moe)
    config.steps, config.batch_size = STEPS, 16
    trainer = make_trainer(config)
    step, state, losses = jax.jit(trainer.step, donate_argnums=0), first_state(trainer, config), []
    for n in range(STEPS):
        state, metrics = step(state, plain_batch(skewed_rows(config, n)))
        losses.append(metrics["loss"])
    assert np.mean(losses[-5:]) < losses[0] - 0.5  # it does learn
    graph = skeleton(model_config_of(config))[0]
    config.batch_size = 128
    loads = jax.jit(lambda params, rows: nnx.merge(graph, params).hidden(rows).router.loads)(
        state.params, skewed_rows(config, STEPS)
    )
    return max(float(busiest(load_LE)) for load_LE in loads.values())


@pytest.mark.slow
def test_without_balance_some_expert_is_overworked():
    assert trained_load() > 1.5


@pytest.mark.slow
def test_the_bias_evens_the_load():
    assert trained_load(scores="sigmoid", balance_bias=True, bias_rate=0.003) <= 1.5


@pytest.mark.slow
def test_the_loss_evens_the_load():
    assert trained_load(balance_loss=0.05) <= 1.5
