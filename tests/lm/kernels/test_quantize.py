"""Integers and scales: the error they may make, how they are packed, and the products with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from lm.errors import UserError
from lm.kernels import quantize as kernel
from lm.kernels.ops import matmul
from lm.kernels.quantize import Integers, dequantize_rows, quantize_rows
from lm.parallel.mesh import make_mesh, spec
from tests.slow import all_but

quantize = jax.jit(kernel.quantize, static_argnums=1, static_argnames=("bits", "group"))
dequantize = jax.jit(kernel.dequantize, static_argnums=2)

# Axes that a product contracts, elements that share a scale, and the groups along each axis of a [16, 6, 10] weight.
GROUPS = [
    ((0,), 0, (1, 6, 10)),
    ((0,), 4, (4, 6, 10)),
    ((0,), 16, (1, 6, 10)),
    ((0, 1), 0, (1, 1, 10)),
    ((0, 1), 6, (16, 1, 10)),
    ((0, 1), 2, (16, 3, 10)),
    ((0, 1), 24, (4, 1, 10)),
    ((1,), 3, (16, 2, 10)),
    ((1,), 0, (16, 1, 10)),
]


def weight(seed=0):
    """Of magnitudes that differ from output to output, one of them zero."""
    w = np.random.default_rng(seed).standard_normal((16, 6, 10)) * np.logspace(-3, 3, 10)
    w[..., 4] = 0
    return w.astype(np.float32)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("axes, group, groups", all_but([GROUPS[n] for n in (1, 3, 5, 6)], GROUPS))
def test_each_weight_is_off_by_half_a_scale_at_most(bits, axes, group, groups):
    w = weight()
    integers, scale = quantize(w, axes, bits=bits, group=group)
    assert scale.shape == groups and scale.dtype == jnp.bfloat16
    assert integers.nbytes == w.size * bits // 8
    spread = scales = np.asarray(scale, np.float32)
    for axis, (few, many) in enumerate(zip(groups, w.shape)):
        spread = np.repeat(spread, many // few, axis)
    error = np.abs(w - dequantize(integers, scale, axes[-1]))
    assert (error <= spread * 0.5001).all()
    # The scale is what the largest magnitude asks for, so no bit is wasted.
    largest = {8: 127, 4: 7}[bits]
    for index in np.ndindex(*groups):
        tile = w[tuple(slice(i * (n // g), (i + 1) * (n // g)) for i, n, g in zip(index, w.shape, groups))]
        np.testing.assert_allclose(scales[index], np.abs(tile).max() / largest, rtol=2**-8, atol=1e-37)


@pytest.mark.parametrize("bits", [8, 4])
def test_dequantised_weights_quantise_to_themselves(bits):
    first = quantize(weight(), (0, 1), bits=bits, group=6)
    again = quantize(dequantize(*first, 1), (0, 1), bits=bits, group=6)
    for one, other in zip(first, again):
        np.testing.assert_array_equal(one, other)


def test_int4_lies_in_pairs_of_neighbours_along_the_last_input():
    integers, scale = quantize(weight(), (0, 1), bits=4)
    assert integers.dtype == jnp.uint8 and integers.shape == (16, 3, 10)
    wide = np.asarray(dequantize(integers, jnp.ones_like(scale), 1)).astype(np.int64)
    assert wide.min() == -7 and wide.max() == 7
    np.testing.assert_array_equal(integers, (wide[:, 0::2] & 15) + 16 * (wide[:, 1::2] & 15))


@pytest.mark.parametrize("bits, group", all_but([(8, 0), (4, 8)], [(8, 0), (8, 8), (4, 0), (4, 8)]))
@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_products_are_those_with_the_dequantised_weight(bits, group, dtype, tolerance):
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 3, 4, 8)).astype(np.float32), rng.standard_normal((4, 8, 6)).astype(np.float32)
    integers, scale = quantize(w, (0, 1), bits=bits, group=group)
    options = dict(dtype=dtype, out=("batch", "length", None))

    def fast(x):
        return jnp.sum(jnp.sin(matmul("bthk,hkd->btd", x, Integers(integers, scale), **options).astype(jnp.float32)))

    def slow(x):
        return jnp.sum(jnp.sin(matmul("bthk,hkd->btd", x, dequantize(integers, scale, 1), dtype="float32", out=options["out"])))

    for ours, twin in zip(*(jax.jit(jax.value_and_grad(f))(x) for f in (fast, slow)), strict=True):
        np.testing.assert_allclose(ours, twin, atol=20 * tolerance, rtol=tolerance)
    y = jax.jit(lambda x: matmul("bthk,hkd->btd", x, Integers(integers, scale), **options))(x)
    assert y.dtype == dtype
    # Each output is off by Σ |x|·s/2 at most.
    spread = np.broadcast_to(np.asarray(scale, np.float32), (4, 8, 6))
    bound = np.einsum("bthk,hkd->btd", np.abs(x), spread / 2) + tolerance * 10
    assert (np.abs(np.asarray(y, np.float32) - np.einsum("bthk,hkd->btd", x, w)) < bound).all()


@pytest.mark.parametrize("bits, group", all_but([(8, 0), (4, 8)], [(8, 0), (8, 8), (4, 0), (4, 8)]))
def test_a_mesh_gives_the_same_product(bits, group):
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((4, 3, 16)).astype(np.float32), rng.standard_normal((16, 8)).astype(np.float32)
    integers, scale = quantize(w, (0,), bits=bits, group=group)

    def loss(x, integers, scale):
        y = matmul("btf,fd->btd", x, Integers(integers, scale), dtype="float32", out=("batch", "length", None))
        return jnp.sum(jnp.sin(y)), y

    whole = jax.jit(jax.value_and_grad(loss, has_aux=True))(x, integers, scale)
    with jax.set_mesh(mesh):
        axes = (("batch", "length", "mlp"), ("mlp", "embed"), (None, "embed"))
        split = [jax.device_put(a, NamedSharding(mesh, spec(*axis))) for a, axis in zip((x, integers, scale), axes)]
        parts = jax.jit(jax.value_and_grad(loss, has_aux=True))(*split)
        assert parts[1].sharding == split[0].sharding
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(parts)):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("axes, group", [((0,), 5), ((0, 1), 4), ((0, 1), 12 * 5), ((0,), 32)])
def test_a_group_must_divide_the_inputs(axes, group):
    with pytest.raises(UserError, match=f"quantization.group={group} does not divide"):
        quantize(weight(), axes, bits=8, group=group)


def test_int4_needs_pairs():
    with pytest.raises(UserError, match="odd number"):
        quantize(jnp.ones((3, 2)), (0,), bits=4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rows_have_scales_of_their_own(dtype):
    x = jnp.asarray(np.moveaxis(weight(), 2, 0), dtype)
    integers, scale = quantize_rows(x)
    assert integers.dtype == jnp.int8 and scale.shape == (10, 16, 1)
    error = np.abs(np.asarray(x, np.float32) - dequantize_rows(integers, scale))
    assert (error <= 0.5001 * np.asarray(scale, np.float32)).all()
    assert (np.asarray(integers)[4] == 0).all()
