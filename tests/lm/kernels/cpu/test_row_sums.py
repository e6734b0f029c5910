"""Sums and norms of rows against their plain twin, and their independence of the other rows, to the bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.kernels import reference
from lm.kernels.native.registered import compiled
from lm.kernels.ops import rms_norm, row_sums
from tests.slow import all_but

SHAPES = [((33, 576), 1), ((33, 1, 3, 20), 1), ((33, 1, 3, 20), 2), ((33, 1), 1)]


@pytest.mark.parametrize(("shape", "axes"), all_but(SHAPES[:2], SHAPES))
def test_a_sum_is_that_of_the_twin_and_rows_are_independent(shape, axes):
    x = jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)
    found = jax.jit(row_sums, static_argnums=1)(x, axes)
    np.testing.assert_allclose(found, reference.row_sums(x, axes), rtol=1e-5, atol=1e-5)
    for M in (0, 1, 7):
        if compiled("cpu.sums"):
            np.testing.assert_array_equal(jax.jit(row_sums, static_argnums=1)(x[:M], axes), found[:M])


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
