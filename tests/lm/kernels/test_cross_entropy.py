"""Chunked cross-entropy against its plain twin, value and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.kernels.head import CrossEntropy
from lm.kernels.ops import cross_entropy
from lm.kernels.reference import cross_entropy as cross_entropy_reference
from lm.parallel.mesh import make_mesh, reshard
from tests.lm.kernels.draws import integers, normal, uniform
from tests.slow import all_but

B, T, D, V = 3, 12, 8, 50


def example(weights="mixed"):
    weights_BT = {"ones": jnp.ones((B, T)), "zeros": jnp.zeros((B, T)), "mixed": uniform(3, (B, T)) * (np.arange(T) % 3 > 0)}[
        weights
    ]
    return (2 * normal(0, (B, T, D)), normal(1, (V, D)), integers(2, (B, T), V), weights_BT)


def value_and_gradients(function, x, head, targets, weights):
    """Both sums, and the gradients of the objective, scaled so that a lost cotangent shows."""

    def loss(x, head):
        objective, nll = function(x, head, targets, weights)
        return 0.3 * objective, (objective, nll)

    (_, sums), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(x, head)
    return (*sums, *gradients)


CASES = [
    (1, 0.01, "mixed"),
    (4, 0.01, "mixed"),
    (12, 0.01, "mixed"),
    (0, 0.01, "mixed"),
    (4, 0.0, "mixed"),
    (4, 0.01, "ones"),
    (4, 0.01, "zeros"),
]


@pytest.mark.parametrize(("chunk", "z_loss", "weights"), all_but([CASES[1], CASES[3], CASES[4], CASES[6]], CASES))
def test_float32_equals_the_plain_twin(chunk, z_loss, weights):
    def chunked(*args):
        return cross_entropy(*args, CrossEntropy(z_loss=z_loss, chunk=chunk), dtype="float32")

    def plain(*args):
        return cross_entropy_reference(*args, CrossEntropy(z_loss))

    for ours, twin in zip(
        value_and_gradients(chunked, *example(weights)), value_and_gradients(plain, *example(weights)), strict=True
    ):
        np.testing.assert_allclose(ours, twin, rtol=1e-5, atol=1e-5)


def test_the_value_alone_is_the_value_of_the_gradient_pass():
    args = example()
    alone = cross_entropy(*args, CrossEntropy(z_loss=0.01, chunk=4), dtype="float32")
    with_gradient = value_and_gradients(
        lambda *a: cross_entropy(*a, CrossEntropy(z_loss=0.01, chunk=4), dtype="float32"), *args
    )
    np.testing.assert_allclose(alone, with_gradient[:2], rtol=1e-6)


def test_bfloat16_stays_near_the_twin_and_gives_float32_sums():
    x, head, targets, weights = example()
    rounded = [a.astype(jnp.bfloat16).astype(jnp.float32) for a in (x, head)]
    ours = value_and_gradients(lambda *a: cross_entropy(*a, CrossEntropy(), dtype="bfloat16"), x, head, targets, weights)
    twin = value_and_gradients(lambda *a: cross_entropy_reference(*a, CrossEntropy()), *rounded, targets, weights)
    assert ours[0].dtype == jnp.float32 and ours[3].dtype == jnp.float32
    np.testing.assert_allclose(ours[0], twin[0], rtol=1e-4)
    for a, b in zip(ours[2:], twin[2:], strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("chunk", all_but([3], [3, 8]))
def test_one_row_on_a_mesh_of_one_device(chunk):
    """As in a slice of a batch whose `accumulate` is its size."""
    x, head, targets, weights = (jnp.ones((1, 8, 4)), jnp.ones((6, 4)), jnp.zeros((1, 8), jnp.int32), jnp.ones((1, 8)))

    def loss(x, head):
        return cross_entropy(x, head, targets, weights, CrossEntropy(chunk=chunk), dtype=jnp.float32)[0]

    expected = jax.jit(jax.grad(loss, argnums=(0, 1)))(x, head)
    with jax.set_mesh(make_mesh({}, jax.devices()[:1])):
        found = jax.jit(jax.grad(loss, argnums=(0, 1)))(reshard(x, "batch", None, None), head)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_extreme_logits_stay_finite():
    x, head, targets, weights = example()
    for part in value_and_gradients(
        lambda *a: cross_entropy(*a, CrossEntropy(), dtype="float32"), 1e3 * x, head, targets, weights
    ):
        assert np.isfinite(part).all()


@pytest.mark.parametrize("chunk", all_but([2], [2, 4, 0]))
def test_chunks_without_weight_are_skipped_and_change_nothing(chunk):
    """Weights 0 in the first chunks of all rows, and between: sums, and gradients of x and head."""
    x, head, targets, weights = example()
    weights = weights.at[:, :4].set(0.0).at[0, 6:].set(0.0)

    def dense(*args):
        return cross_entropy(*args, CrossEntropy(z_loss=0.01, measured=True, chunk=chunk), dtype="float32")

    def sparse(*args):
        return cross_entropy(*args, CrossEntropy(z_loss=0.01, measured=True, chunk=chunk, sparse=True), dtype="float32")

    args = (x, head, targets, weights)
    for ours, twin in zip(jax.jit(sparse)(*args), jax.jit(dense)(*args), strict=True):
        np.testing.assert_allclose(ours, twin, rtol=1e-6)
    pair = [value_and_gradients(lambda *a, f=f: f(*a)[:2], *args) for f in (sparse, dense)]
    for ours, twin in zip(*pair, strict=True):
        np.testing.assert_allclose(ours, twin, rtol=1e-6, atol=1e-7)


def test_a_skipped_chunk_is_not_computed():
    """A value that is not finite would spread through the dense sum: 0 · NaN is NaN."""
    x, head, targets, weights = example("ones")
    x, weights = x.at[:, :4].set(jnp.nan), weights.at[:, :4].set(0.0)

    def objective(x, **how):
        return cross_entropy(x, head, targets, weights, CrossEntropy(chunk=4, **how), dtype="float32")[0]

    assert np.isnan(objective(x)) and np.isfinite(objective(x, sparse=True))
    assert np.all(np.isfinite(jax.grad(lambda x: objective(x, sparse=True))(x)))


def test_a_frozen_head_gets_no_gradient_and_costs_none():
    x, head, targets, weights = example()

    def loss(x, head):
        return cross_entropy(x, head, targets, weights, CrossEntropy(chunk=4), dtype="float32")[0]

    both = jax.grad(loss, argnums=(0, 1))(x, head)[0]
    np.testing.assert_array_equal(jax.grad(loss)(x, head), both)
    products = [str(jax.make_jaxpr(jax.grad(loss, argnums=n))(x, head)).count("dot_general") for n in (0, (0, 1))]
    assert products == [2, 3]


def test_entropy_and_accuracy_are_those_of_the_softmax():
    x, head, targets, weights = example()
    logp = jax.nn.log_softmax(jnp.einsum("btd,vd->btv", x, head))
    entropy, correct = cross_entropy(x, head, targets, weights, CrossEntropy(measured=True), dtype="float32")[2:]
    np.testing.assert_allclose(entropy, -jnp.sum(weights * jnp.sum(jnp.exp(logp) * logp, axis=-1)), rtol=1e-5)
    np.testing.assert_allclose(correct, jnp.sum(weights * (jnp.argmax(logp, axis=-1) == targets)), rtol=1e-6)
