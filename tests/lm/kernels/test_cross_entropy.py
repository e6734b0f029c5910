"""Chunked cross-entropy against its plain twin, value and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.kernels.cross_entropy import cross_entropy, cross_entropy_reference

B, T, D, V = 3, 12, 8, 50


def example(weights="mixed"):
    x, head, targets, w = jax.random.split(jax.random.key(0), 4)
    weights_BT = {
        "ones": jnp.ones((B, T)),
        "zeros": jnp.zeros((B, T)),
        "mixed": jax.random.uniform(w, (B, T)) * (jnp.arange(T) % 3 > 0),
    }[weights]
    return (
        2 * jax.random.normal(x, (B, T, D)),
        jax.random.normal(head, (V, D)),
        jax.random.randint(targets, (B, T), 0, V),
        weights_BT,
    )


def value_and_gradients(function, x, head, targets, weights):
    """Both sums, and the gradients of the objective, scaled so that a lost cotangent shows."""

    def loss(x, head):
        objective, nll = function(x, head, targets, weights)
        return 0.3 * objective, (objective, nll)

    (_, sums), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(x, head)
    return (*sums, *gradients)


@pytest.mark.parametrize(
    ("chunk", "z_loss", "weights"),
    [
        (1, 0.01, "mixed"),
        (4, 0.01, "mixed"),
        (12, 0.01, "mixed"),
        (None, 0.01, "mixed"),
        (4, 0.0, "mixed"),
        (4, 0.01, "ones"),
        (4, 0.01, "zeros"),
    ],
)
def test_float32_equals_the_plain_twin(chunk, z_loss, weights):
    def chunked(*args):
        return cross_entropy(*args, dtype="float32", z_loss=z_loss, chunk=chunk)

    def plain(*args):
        return cross_entropy_reference(*args, z_loss=z_loss)

    for ours, twin in zip(
        value_and_gradients(chunked, *example(weights)), value_and_gradients(plain, *example(weights)), strict=True
    ):
        np.testing.assert_allclose(ours, twin, rtol=1e-5, atol=1e-5)


def test_the_value_alone_is_the_value_of_the_gradient_pass():
    args = example()
    alone = cross_entropy(*args, dtype="float32", z_loss=0.01, chunk=4)
    with_gradient = value_and_gradients(lambda *a: cross_entropy(*a, dtype="float32", z_loss=0.01, chunk=4), *args)
    np.testing.assert_allclose(alone, with_gradient[:2], rtol=1e-6)


def test_bfloat16_stays_near_the_twin_and_gives_float32_sums():
    x, head, targets, weights = example()
    rounded = [a.astype(jnp.bfloat16).astype(jnp.float32) for a in (x, head)]
    ours = value_and_gradients(lambda *a: cross_entropy(*a, dtype="bfloat16"), x, head, targets, weights)
    twin = value_and_gradients(cross_entropy_reference, *rounded, targets, weights)
    assert ours[0].dtype == jnp.float32 and ours[3].dtype == jnp.float32
    np.testing.assert_allclose(ours[0], twin[0], rtol=1e-4)
    for a, b in zip(ours[2:], twin[2:], strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-2, atol=2e-2)


def test_extreme_logits_stay_finite():
    x, head, targets, weights = example()
    for part in value_and_gradients(lambda *a: cross_entropy(*a, dtype="float32"), 1e3 * x, head, targets, weights):
        assert np.isfinite(part).all()
