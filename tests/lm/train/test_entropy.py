"""A source of known entropy: training comes down to it, and not below."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lm.model.transformer import skeleton
from lm.train.step import model_config_of
from tests.lm.examples import plain_batch, tiny_config, trainer_and_state

SYMBOLS, ROWS, LENGTH = 16, 32, 65


def markov_chain(seed):
    """(transition matrix P, stationary distribution π, entropy rate −Σ π P log P in nats)."""
    P = np.random.default_rng(seed).dirichlet(np.full(SYMBOLS, 0.4), size=SYMBOLS) * 0.98 + 0.02 / SYMBOLS
    pi = np.full(SYMBOLS, 1 / SYMBOLS) @ np.linalg.matrix_power(P, 1000)
    return P, pi, -float(np.sum(pi[:, None] * P * np.log(P)))


def draw(rng, P, pi, rows):
    tokens = np.zeros((rows, LENGTH), np.int32)
    tokens[:, 0] = rng.choice(SYMBOLS, rows, p=pi)
    cumulative = np.cumsum(P, axis=1)
    for t in range(1, LENGTH):
        tokens[:, t] = (rng.random(rows)[:, None] > cumulative[tokens[:, t - 1]]).sum(axis=1).clip(max=SYMBOLS - 1)
    return tokens


@pytest.mark.slow
def test_held_out_loss_is_the_entropy_rate():
    P, pi, entropy = markov_chain(seed=0)
    config = tiny_config(vocab_size=SYMBOLS)
    config.steps = 300
    config.optimizer.update(learning_rate=1e-2, warmup=20, final=0.02, weight_decay=0.0)
    trainer, state = trainer_and_state(config)
    step, rng = jax.jit(trainer.step, donate_argnums=0), np.random.default_rng(1)
    state = jax.tree.map(lambda x: x.copy(), state)
    for _ in range(config.steps):
        state, _ = step(state, plain_batch(draw(rng, P, pi, ROWS)))

    held_out = plain_batch(draw(np.random.default_rng(2), P, pi, 2048))
    model = nnx.merge(skeleton(model_config_of(config))[0], state.params)

    @jax.jit
    def losses(tokens, targets):
        log_p = jax.nn.log_softmax(model(tokens))
        return -jnp.take_along_axis(log_p, targets[..., None], axis=-1).mean(axis=(1, 2))

    losses_B = np.asarray(losses(held_out["tokens"], held_out["targets"]))
    error = losses_B.std(ddof=1) / np.sqrt(len(losses_B))
    assert 1 < entropy < 2.5 and error < 0.005
    assert entropy - 3 * error < losses_B.mean() < 1.02 * entropy
    # On the same draws the source itself is better: the difference is the divergence, which is never negative.
    source_B = -np.log(P[held_out["tokens"], held_out["targets"]]).mean(axis=1)
    gap_B = losses_B - source_B
    assert gap_B.mean() > -3 * gap_B.std(ddof=1) / np.sqrt(len(gap_B))
