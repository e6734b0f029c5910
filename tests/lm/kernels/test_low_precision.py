"""Products in int8 and float8: the plain twin, the exact product within bounds of rounding, and what is not finite."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from lm.kernels.low_precision import rounded, scaled_product
from lm.kernels.matmul import product_around_ring, scattered
from lm.kernels.ops import matmul
from lm.parallel import torus
from lm.parallel.mesh import make_mesh, reshard
from tests.lm.kernels.draws import normal
from tests.lm.kernels.test_matmul import CASES, operands, value_and_gradients
from tests.lm.kernels.twins import low_precision_reference
from tests.slow import all_but

LAYERS = [name for name in CASES if name != "head"]
BOUNDS = {"int8": 0.015, "float8": 0.07}  # of the error of a result, relative to its norm
EACH = list(itertools.product(LAYERS, BOUNDS))
OFTEN = [("up", "float8"), ("heads", "int8"), ("output", "int8")]
MESHES = dict(fsdp=8), dict(fsdp=4, tensor=2), dict(data=2, context=2, tensor=2)
SPLIT = list(itertools.product(("up", "output"), MESHES, BOUNDS))


def product_of(name, kind, dtype="float32"):
    equation, *_, out = operands(name)
    return lambda x, w: matmul(equation, x, w, precision=kind, dtype=dtype, out=out)


twin_of = jax.jit(low_precision_reference, static_argnums=0, static_argnames="kind")


def distance(a, b):
    a, b = (np.asarray(x, np.float32) for x in (a, b))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize("name, kind", all_but(OFTEN, EACH))
def test_as_its_twin(name, kind):
    equation, *arrays, _ = operands(name)
    ours = value_and_gradients(product_of(name, kind), *arrays)
    for a, b in zip(ours, twin_of(equation, *arrays, kind=kind), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name, kind", all_but(OFTEN, EACH))
def test_close_to_the_exact_product_and_its_gradients(name, kind):
    equation, x, w, cotangent, _ = operands(name)
    # Rows and outputs of very different sizes: each has its own scale.
    rows, outputs = np.logspace(-3, 3, x.shape[1], dtype=np.float32), np.logspace(-3, 3, w.shape[-1], dtype=np.float32)
    x, w = x * rows.reshape(1, -1, *[1] * (x.ndim - 2)), w * outputs
    exact = value_and_gradients(lambda x, w: jnp.einsum(equation, x, w, precision="highest"), x, w, cotangent)
    for a, b in zip(value_and_gradients(product_of(name, kind), x, w, cotangent), exact, strict=True):
        assert distance(a, b) < BOUNDS[kind]


def test_dtypes_of_results():
    _, x, w, cotangent, _ = operands("up")
    y, dx, dw = value_and_gradients(product_of("up", "int8", "bfloat16"), x.astype(jnp.bfloat16), w, cotangent)
    assert (y.dtype, dx.dtype, dw.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)


@pytest.mark.parametrize("kind", BOUNDS)
def test_zeros_give_zeros_and_what_is_not_finite_stays_so(kind):
    _, x, w, cotangent, _ = operands("up")
    for result in value_and_gradients(product_of("up", kind), 0 * x, 0 * w, cotangent):
        np.testing.assert_array_equal(result, 0)
    for bad in (jnp.nan, jnp.inf):
        y = product_of("up", kind)(x.at[0, 1, 2].set(bad), w)
        assert not np.isfinite(y[0, 1]).any() and np.isfinite(y[1]).all()


def test_a_long_sum_of_integers_does_not_overflow():
    ones = rounded(jnp.ones((200_000,)), (0,), jnp.dtype(jnp.int8))
    x = rounded(jnp.ones((200_000, 1)), (0,), jnp.dtype(jnp.int8))
    np.testing.assert_allclose(scaled_product("t,td->d", ones, x), 200_000, rtol=1e-5)


@pytest.mark.parametrize("name, sizes, kind", all_but([SPLIT[0], SPLIT[3], SPLIT[10]], SPLIT), ids=str)
def test_a_mesh_rounds_only_the_gradients_of_weights_otherwise(name, sizes, kind):
    """Each device has scales of its own for its rows there."""
    equation, one_x, w, one_dy, out = operands(name)
    x, cotangent = (normal(n, (8, 4, *a.shape[2:])) for n, a in enumerate((one_x, one_dy)))
    twin = twin_of(equation, x, w, cotangent, kind=kind)
    axes = {"up": ("embed", "mlp"), "output": ("heads", "head", "embed")}[name]
    into = ("batch", "length", None) if name == "up" else ("batch", "length", "heads", None)
    with jax.set_mesh(make_mesh(sizes)):
        placed = reshard(x, *into), reshard(w, *axes), reshard(cotangent, *out)
        y, dx, dw = value_and_gradients(product_of(name, kind), *placed)
    np.testing.assert_allclose(y, twin[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dx, twin[1], rtol=1e-5, atol=1e-5)
    assert distance(dw, jnp.einsum(equation_of_gradient(equation), x, cotangent, precision="highest")) < BOUNDS[kind]


def equation_of_gradient(equation):
    inputs, output = equation.split("->")
    x_axes, w_axes = inputs.split(",")
    return f"{x_axes},{output}->{w_axes}"


@pytest.mark.slow
@pytest.mark.parametrize("equation", all_but(["btf,btd->fd"], ["btd,btf->df", "btf,btd->fd"]))
def test_around_a_ring_as_on_one_device(equation, monkeypatch):
    """As on a TPU's torus: slices of values and of scales go together."""
    letters, sizes = dict(b=8, t=3, d=16, f=6), (4, 2)
    inputs, output = equation.split("->")
    a, b = (normal(n, [letters[letter] for letter in term]) for n, term in enumerate(inputs.split(",")))
    where = PartitionSpec(*("fsdp" if letter == "d" else None for letter in output))

    def on_device(a, b):
        a, b = (rounded(x, (0, 1), jnp.dtype(jnp.int8)) for x in (a, b))
        x = product_around_ring(equation, a, b, "fsdp", output.index("d"), sizes, scaled_product)
        return scattered(x, where, ("data", "fsdp"), first=1)

    with jax.set_mesh(make_mesh(dict(fsdp=8))):
        monkeypatch.setitem(torus._RINGS, jax.sharding.get_abstract_mesh().shape_tuple, {"fsdp": sizes})
        placed = (reshard(x, "batch", None, None) for x in (a, b))
        found = jax.jit(jax.shard_map(on_device, out_specs=where, check_vma=False))(*placed)
    parts = [[rounded(x[n : n + 1], (0, 1), jnp.dtype(jnp.int8)) for x in (a, b)] for n in range(8)]
    expected = jax.jit(lambda parts: sum(scaled_product(equation, *part) for part in parts))(parts)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
