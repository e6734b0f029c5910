"""Attention without a mask against its reference twin."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.kernels import bidirectional
from lm.kernels.ops import bidirectional_attention
from lm.kernels.reference import bidirectional_attention as bidirectional_reference


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("T", [8, 19])
def test_as_its_reference(T, dtype, tolerance, monkeypatch):
    monkeypatch.setattr(bidirectional, "BLOCK", 8)
    rng = np.random.default_rng(0)
    q, k, v, upstream = (jnp.asarray(rng.standard_normal((2, T, 3, 8)), dtype) for _ in range(4))

    def of(attention):
        out, pull = jax.vjp(lambda *x: attention(*x, 0.7), q, k, v)
        return out, *pull(upstream)

    for ours, expected in zip(*(jax.jit(of, static_argnums=0)(f) for f in (bidirectional_attention, bidirectional_reference))):
        assert ours.dtype == expected.dtype == dtype
        expected = np.asarray(expected, np.float32)
        np.testing.assert_allclose(np.asarray(ours, np.float32), expected, rtol=0, atol=tolerance * np.abs(expected).max())


def test_products_of_the_backward_pass_take_low_precision():
    q = jnp.ones((1, 4, 1, 8), jnp.bfloat16)
    text = str(jax.make_jaxpr(jax.grad(lambda q: bidirectional_attention(q, q, q, 1.0).astype(jnp.float32).sum()))(q))
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) == 7 and all("f32[" in line.split("=")[0] for line in products)
    assert "preferred_element_type=float32" in text and "Precision" not in text
