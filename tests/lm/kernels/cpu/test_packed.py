"""Products with packed weights against the plain product, and independence of the rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.kernels.cpu.packed import pack, packed_matmul, packed_matmul_reference, rows, unpack

SHAPES = ((64, 64), (576, 192), (65, 130), (1, 3))  # K, N


def arrays(K, N, M=97):
    rng = np.random.default_rng(K + N)
    return jnp.asarray(rng.standard_normal((M, K)), jnp.float32), jnp.asarray(rng.standard_normal((K, N)), jnp.float32)


@pytest.mark.parametrize("bits", (32, 16))
@pytest.mark.parametrize(("K", "N"), SHAPES)
def test_product_is_that_of_the_unpacked_weight_and_rows_are_independent(K, N, bits):
    x_MK, w_KN = arrays(K, N)
    packed = pack(w_KN, bits)
    multiply = jax.jit(packed_matmul)
    y_MN = multiply(x_MK, packed)
    np.testing.assert_allclose(y_MN, packed_matmul_reference(x_MK, packed), rtol=1e-5, atol=1e-4)
    for M in (0, 1, 2, 33):
        np.testing.assert_array_equal(multiply(x_MK[:M], packed), y_MN[:M])


@pytest.mark.parametrize("bits", (32, 16))
@pytest.mark.parametrize(("K", "N"), SHAPES)
def test_unpacked_weight_is_the_packed_one(K, N, bits):
    w_KN = arrays(K, N)[1]
    packed = pack(w_KN, bits)
    np.testing.assert_array_equal(unpack(packed), w_KN if bits == 32 else w_KN.astype(jnp.bfloat16))
    ids = jnp.asarray([N - 1, 0, N // 2])
    np.testing.assert_array_equal(rows(packed, ids), unpack(packed)[:, ids].T)
