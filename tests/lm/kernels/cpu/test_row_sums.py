"""Sums and norms of rows against their plain twin, and their independence of the other rows, to the bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.kernels import reference
from lm.kernels.native.registered import compiled
from lm.kernels.ops import rms_norm, row_logprobs, row_sums
from tests.slow import all_but

SHAPES = [((33, 576), 1), ((33, 1, 3, 20), 1), ((33, 1, 3, 20), 2), ((33, 1), 1)]


@pytest.mark.parametrize("shape", [(33, 576), (33, 1, 3, 20)])
def test_a_sum_is_that_of_the_twin_and_rows_are_independent(shape):
    x = jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)
    found = jax.jit(row_sums)(x)
    np.testing.assert_allclose(found, reference.row_sums(x), rtol=1e-5, atol=1e-5)
    for M in (0, 1, 7):
        if compiled("cpu.sums"):
            np.testing.assert_array_equal(jax.jit(row_sums)(x[:M]), found[:M])
    slope = jax.grad(lambda x: jnp.sum(row_sums(x) ** 2))(x)
    np.testing.assert_allclose(slope, jnp.broadcast_to(2 * found, shape), rtol=1e-5)


def test_log_probabilities_are_those_of_the_twin_and_rows_are_independent():
    rng = np.random.default_rng(0)
    for V in (1, 31, 203, 1024):
        logits, tokens = rng.standard_normal((9, V), np.float32) * 8, rng.integers(0, V, 9).astype(np.int32)
        divisors = rng.uniform(0.3, 1.5, 9).astype(np.float32)
        found = jax.jit(row_logprobs)(logits, tokens, divisors)
        for a, b in zip(found, reference.row_logprobs(logits, tokens, divisors), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-6)
        if compiled("cpu.sums"):
            for n in range(9):
                alone = jax.jit(row_logprobs)(logits[n : n + 1], tokens[n : n + 1], divisors[n : n + 1])
                np.testing.assert_array_equal(np.stack(alone)[:, 0], np.stack(found)[:, n])
    for lost in (np.nan, np.inf):
        logits[3, 5] = lost
        assert np.isfinite(row_logprobs(logits, tokens, divisors)[1]).tolist() == [n != 3 for n in range(9)]


@pytest.mark.parametrize(("shape", "axes"), all_but(SHAPES[1:2], SHAPES))
def test_a_norm_is_that_of_the_twin_and_rows_are_independent(shape, axes):
    rng = np.random.default_rng(0)
    x, scale = (jnp.asarray(rng.standard_normal(size), jnp.float32) for size in (shape, shape[-axes:]))
    normalize = jax.jit(rms_norm, static_argnums=(2, 3))
    found = normalize(x, scale, 1e-5, True)
    np.testing.assert_allclose(found, reference.rms_norm(x, scale, 1e-5), rtol=1e-5, atol=1e-5)
    for M in (0, 1, 7):
        if compiled("cpu.sums"):
            np.testing.assert_array_equal(normalize(x[:M], scale, 1e-5, True), found[:M])
