"""Products with packed weights against the plain product, and independence of the rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from lm.errors import UserError
from lm.kernels.cpu.packed import join, pack, pack_integers, rows, unpack
from lm.kernels.native.registered import compiled
from lm.kernels.ops import packed_product
from lm.kernels.quantize import dequantize, quantize
from lm.kernels.reference import packed_product as packed_product_reference
from tests.slow import all_but

KINDS = ((32, 0), (16, 0), (8, 0), (8, 16), (4, 0), (4, 32), (4, 640))  # bits, group
SHAPES = ((64, 64), (1283, 70), (1, 3))  # K, N
EACH = [(*shape, *kind) for shape in SHAPES for kind in KINDS]
OFTEN = [case for case in EACH if case[0] == 1283 and case[3] in (0, 640)] + [(1, 3, 4, 640)]
BYTES = [(*shape, group) for shape in (*SHAPES, (576, 70)) for group in (0, 16, 640)]


def arrays(K, N, M=97):
    rng = np.random.default_rng(K + N)
    return jnp.asarray(rng.standard_normal((M, K)), jnp.float32), jnp.asarray(rng.standard_normal((K, N)), jnp.float32)


@functools.cache
def packed_and_unpacked(K, N, bits, group, activations=16):
    """The weight of `arrays` packed, and that unpacked. Packed without a compiler, which would round scales in its own way."""
    packed = pack(arrays(K, N)[1], bits, group, activations)
    return packed, np.asarray(jax.jit(unpack)(packed))


@pytest.mark.parametrize(("K", "N", "bits", "group"), all_but(OFTEN, EACH))
def test_product_is_that_of_the_unpacked_weight_and_rows_are_independent(K, N, bits, group):
    x_MK, (packed, unpacked) = arrays(K, N)[0], packed_and_unpacked(K, N, bits, group)
    multiply = jax.jit(packed_product)
    y_MN = multiply(x_MK, packed)
    # Rounding an activation to 16 bits changes it by at most max|x| / 65534.
    rounding = np.abs(x_MK).max(1, keepdims=True) / 65534 * np.abs(unpacked).sum(0) if bits < 16 else 0
    assert np.all(np.abs(y_MN - jax.jit(packed_product_reference)(x_MK, packed)) <= 1e-3 + rounding)
    for M in (0, 1, 33):
        np.testing.assert_array_equal(multiply(x_MK[:M], packed), y_MN[:M])


@pytest.mark.parametrize(("K", "N", "bits", "group"), all_but(OFTEN, EACH))
def test_unpacked_weight_is_the_packed_one(K, N, bits, group):
    w_KN, (packed, unpacked) = arrays(K, N)[1], packed_and_unpacked(K, N, bits, group)
    if bits < 16:
        filled = np.pad(w_KN, ((0, -K % max(group, 4)), (0, 0)))
        expected = dequantize(*quantize(jnp.asarray(filled), (0,), bits=bits, group=group), 0)[:K]
    else:
        expected = w_KN if bits == 32 else w_KN.astype(jnp.bfloat16)
    expected = np.asarray(expected)
    np.testing.assert_array_equal(unpacked, expected)
    ids = np.asarray([N - 1, 0, N // 2])
    np.testing.assert_array_equal(jax.jit(rows)(packed, ids), expected[:, ids].T)


@pytest.mark.parametrize(("K", "N", "group"), all_but([(1, 3, 0), (1283, 70, 16), (576, 70, 640)], BYTES))
def test_product_with_8_bit_activations_is_that_of_the_rounded_activations(K, N, group):
    x_MK = jnp.asarray(arrays(K, N)[0] * np.exp(np.arange(97, dtype=np.float32) - 50)[:, None])  # a row's scale is its own
    packed, unpacked = packed_and_unpacked(K, N, 8, group, 8)
    assert packed.bits == 8
    np.testing.assert_array_equal(unpacked, packed_and_unpacked(K, N, 8, group)[1])
    multiply = jax.jit(packed_product)
    y_MN = multiply(x_MK, packed)
    if compiled("cpu.products"):
        chunk = next(size for size in (128, 16) if not group or group % size == 0)
        x_MCK = np.pad(x_MK, ((0, 0), (0, -K % chunk))).reshape(len(x_MK), -1, chunk)
        scale = np.abs(x_MCK).max(-1, keepdims=True) / np.float32(127)
        x_MK = (np.rint(x_MCK / np.maximum(scale, 1e-30)) * scale).reshape(len(x_MK), -1)[:, :K]
    expected = jax.jit(packed_product_reference)(x_MK, packed)
    assert np.all(np.abs(y_MN - expected) <= 1e-6 * np.abs(x_MK) @ np.abs(unpacked))
    for M in (0, 1, 2, 33):
        np.testing.assert_array_equal(multiply(x_MK[:M], packed), y_MN[:M])


@pytest.mark.parametrize(("bits", "group"), [(16, 0), (4, 32)])
def test_a_product_with_joined_weights_is_the_products_with_each(bits, group):
    x_MK, w_KN = arrays(64, 192, 3)
    parts = [pack(w, bits, group) for w in (w_KN[:, :64], w_KN[:, 64:])]
    multiply = jax.jit(packed_product)
    expected = np.concatenate([multiply(x_MK, part) for part in parts], axis=1)
    np.testing.assert_array_equal(multiply(x_MK, join(parts)), expected)
    assert join([parts[0], pack(w_KN, 8)]) is None and join([pack(w_KN[:, :3], bits, group)] * 2) is None


def test_many_rows_and_several_tasks():
    x_MK, w_KN = arrays(64, 640, 1000)
    for bits in (16, 8):
        packed = pack(w_KN, bits)
        np.testing.assert_allclose(packed_product(x_MK, packed), x_MK @ unpack(packed), atol=0.05)


@pytest.mark.parametrize(("bits", "activations"), ((16, 16), (8, 16), (8, 8)))
def test_a_number_that_is_not_finite_reaches_every_output_of_its_row_only(bits, activations):
    x_MK, w_KN = arrays(576, 64, 5)
    for bad in (np.nan, np.inf, -np.inf):
        y_MN = packed_product(x_MK.at[3, 500].set(bad), pack(w_KN, bits, activations=activations))
        assert not np.isfinite(y_MN[3]).any() and np.isfinite(np.delete(y_MN, 3, 0)).all()


def test_groups_that_no_step_fits_are_refused():
    with pytest.raises(UserError, match="multiple of 4"):
        pack_integers(*quantize(jnp.ones((12, 8)), (0,), bits=8, group=6))


def test_packed_weights_pass_through_jit_and_devices():
    x_MK, w_KN = arrays(64, 70, 3)
    packed = jax.device_put(jax.jit(pack, static_argnums=(1, 2))(w_KN, 4, 32), jax.devices()[0])
    assert (packed.inputs, packed.outputs, packed.bits) == (64, 70, 4)
    np.testing.assert_array_equal(packed_product(x_MK, packed), packed_product(x_MK, pack(w_KN, 4, 32)))


@pytest.mark.parametrize("bits", (16, 8, 4))
def test_weights_of_a_mesh_are_packed_and_multiplied(bits):
    x_MK, w_KN = arrays(64, 70, 3)
    mesh = jax.make_mesh((1, 1), ("data", "fsdp"), axis_types=(AxisType.Explicit,) * 2, devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        x, w = jax.device_put(x_MK, P("data", None)), jax.device_put(w_KN, P("fsdp", None))
        y_MN = jax.jit(lambda x, w: packed_product(x, pack(w, bits)))(x, w)
    np.testing.assert_array_equal(y_MN, packed_product(x_MK, pack(w_KN, bits)))
