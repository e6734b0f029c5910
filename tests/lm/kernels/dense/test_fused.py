"""Compiled functions of rows against their plain twins."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.kernels import ops, reference
from lm.kernels.dense.fused import takes
from lm.kernels.dense.usable import multiplied
from lm.parallel.mesh import make_mesh

pytestmark = pytest.mark.skipif(not multiplied(), reason="this processor has no AVX2")


def draws(count, shape, dtype):
    rng = np.random.default_rng(0)
    return [jnp.asarray(3 * rng.standard_normal(shape), dtype) for _ in range(count)]


def results(module, name, cotangent, *arguments, **options):
    def both(*arguments):
        y, gradients = jax.vjp(lambda *x: getattr(module, name)(*x, **options), *arguments)
        return y, *gradients(cotangent)

    return jax.jit(both)(*arguments)


def compare(found, wanted, dtype):
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.dtype == theirs.dtype and mine.shape == theirs.shape
        mine, theirs = (np.asarray(x, np.float32) for x in (mine, theirs))
        # Both round the same number to bfloat16, but where it lies between two.
        assert np.linalg.norm(mine - theirs) <= (1e-6 if dtype == "float32" else 1e-3) * np.linalg.norm(theirs)


@pytest.mark.parametrize("dtype", multiplied())
@pytest.mark.parametrize("shape", ((3, 67, 256), (40, 1001)), ids=str)
def test_gated_silu(shape, dtype):
    gate, up, cotangent = draws(3, shape, dtype)
    assert takes(gate, up)
    found, wanted = (results(module, "silu_gated", cotangent, gate, up) for module in (ops, reference))
    compare(found, wanted, dtype)


@pytest.mark.parametrize("dtype", multiplied())
@pytest.mark.parametrize(
    ("shape", "axes"), (((3, 67, 256), 1), ((40, 1001), 1), ((2, 31, 9, 64), 1), ((4, 50, 6, 40), 2)), ids=str
)
def test_rms_norm(shape, axes, dtype):
    x, cotangent = draws(2, shape, dtype)
    scale = draws(1, shape[-axes:], "float32")[0]
    assert takes(x, x)
    found, wanted = (results(module, "rms_norm", cotangent, x, scale, eps=1e-5) for module in (ops, reference))
    compare(found, wanted, dtype)


def test_large_numbers_and_those_that_are_not_finite_stay_in_their_row():
    gate, up = draws(2, (64, 1024), "float32")
    gate = gate.at[3, 5].set(jnp.nan).at[4].set(-1e30).at[5].set(1e30).at[6, 1].set(jnp.inf)
    found, wanted = (np.asarray(module.silu_gated(gate, up)) for module in (ops, reference))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    found, wanted = (np.asarray(module.rms_norm(gate, jnp.ones(1024), 1e-6)) for module in (ops, reference))
    np.testing.assert_allclose(np.delete(found, (3, 4, 5, 6), 0), np.delete(wanted, (3, 4, 5, 6), 0), rtol=1e-5)
    assert np.isnan(found[3]).all() and not np.isnan(np.delete(found, (3, 6), 0)).any()


def test_other_devices_and_small_arrays_stay_with_xla():
    x = draws(1, (64, 1024), "float32")[0]
    assert takes(x, x) and not takes(x[:, :8], x) and takes(x[:, :8], x, alone=True)
    with jax.set_mesh(make_mesh({"data": 2}, jax.devices()[:2])):
        assert not takes(x, x)
