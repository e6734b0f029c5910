"""The grouped product against a loop over the groups, forward and backward, in both compute types and on every platform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.kernels import grouped_matmul as module
from lm.kernels.grouped_matmul import grouped_matmul
from tests.lm.kernels.draws import normal
from tests.lm.kernels.twins import grouped_matmul_reference
from tests.slow import all_but

SIZES = {
    "even": (100, [25, 25, 25, 25]),
    "uneven": (300, [0, 131, 1, 17, 0, 90, 61]),
    "rows of no group": (200, [3, 0, 70, 20]),
    "one has all": (90, [0, 90, 0]),
    "none has any": (16, [0, 0]),
    "long": (1200, [700, 500]),
}


def operands(name, D=12, F=20):
    N, sizes = SIZES[name]
    return normal(0, (N, D)), normal(1, (len(sizes), D, F)), normal(2, (N, F)), jnp.asarray(sizes, jnp.int32)


def value_and_gradients(function, x, w, dy, sizes):
    """y, dx, dw; what rows of no group hold is unspecified, so they are set to 0, and so is their cotangent."""
    known = (jnp.arange(len(dy)) < jnp.sum(sizes)).reshape(-1, *[1] * (x.ndim - 1))

    def run(x, w, dy):
        y, vjp = jax.vjp(lambda x, w: jnp.where(known, function(x, w, sizes), 0), jnp.where(known, x, 0), w)
        dx, dw = vjp(dy.astype(y.dtype))
        return y, jnp.where(known, dx, 0), dw

    return jax.jit(run)(x, w, dy)


@pytest.mark.parametrize("name", all_but(list(SIZES)[1:], SIZES))
def test_float32_is_the_loop_over_groups(name):
    arrays = operands(name)
    ours = value_and_gradients(lambda *a: grouped_matmul(*a, dtype="float32"), *arrays)
    twin = value_and_gradients(grouped_matmul_reference, *arrays)
    for a, b in zip(ours, twin, strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("name", all_but(["uneven"], ["uneven", "long"]))
def test_bfloat16_rounds_operands_and_cotangent_and_accumulates_in_float32(name):
    x, w, dy, sizes = operands(name)
    rounded = [a.astype(jnp.bfloat16).astype(jnp.float32) for a in (x, w, dy)]
    twin = value_and_gradients(grouped_matmul_reference, *rounded, sizes)
    ours = value_and_gradients(lambda *a: grouped_matmul(*a, dtype="bfloat16"), x.astype(jnp.bfloat16), w, dy, sizes)
    assert [a.dtype for a in ours] == [jnp.bfloat16, jnp.bfloat16, jnp.float32]
    np.testing.assert_allclose(ours[2], twin[2], rtol=1e-4, atol=1e-4)  # never rounded on its way to the optimizer
    for a, b in zip(ours[:2], twin[:2], strict=True):
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=2**-8, atol=1e-5)  # half a unit of bfloat16


def test_rows_of_no_group_give_no_gradient_to_the_weights():
    x, w, dy, sizes = operands("rows of no group")
    total = sum(SIZES["rows of no group"][1])
    x = x.at[total:].set(jnp.nan)
    dw = jax.jit(jax.grad(lambda w: jnp.sum((grouped_matmul(x, w, sizes, dtype="float32") * dy)[:total])))(w)
    assert np.isfinite(dw).all()


@pytest.mark.parametrize("name", all_but(["rows of no group"], ["uneven", "rows of no group"]))
def test_ragged_products_are_the_same(name, monkeypatch):
    """What other platforms than a CPU run."""
    arrays = operands(name)
    ours = value_and_gradients(lambda *a: grouped_matmul(*a, dtype="float32"), *arrays)
    monkeypatch.setattr(module.lax, "platform_dependent", lambda *a, cpu, default: default(*a))
    ragged = value_and_gradients(lambda *a: grouped_matmul(*a, dtype="float32"), *arrays)
    for a, b in zip(ours, ragged, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)


def test_other_platforms_get_ragged_products_though_compiled_on_a_cpu():
    x, w, _, sizes = operands("uneven")
    function = jax.jit(jax.grad(lambda x, w: grouped_matmul(x, w, sizes, dtype="bfloat16").astype(jnp.float32).sum(), (0, 1)))
    for platform, ragged in (("tpu", True), ("cpu", False)):
        text = jax.export.export(function, platforms=[platform])(x, w).mlir_module()
        assert ("ragged_dot" in text) == ragged
        assert ("while" in text) != ragged


def test_even_groups_without_sizes():
    E, C, D, F = 3, 5, 8, 6
    x, w, dy = normal(0, (E, C, D)), normal(1, (E, D, F)), normal(2, (E, C, F))
    sizes = jnp.full(E, C, jnp.int32)
    ours = value_and_gradients(lambda x, w, _: grouped_matmul(x, w, dtype="float32"), x, w, dy, sizes)
    twin = value_and_gradients(lambda x, w, _: jnp.einsum("ecd,edf->ecf", x, w), x, w, dy, sizes)
    for a, b in zip(ours, twin, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
