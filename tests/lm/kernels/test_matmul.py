"""The house product against a plain einsum, forward and backward, in both compute types."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from lm.kernels.matmul import product_around_ring, scattered
from lm.kernels.ops import matmul
from lm.parallel import torus
from lm.parallel.context import length_axis
from lm.parallel.mesh import make_mesh, reshard
from tests.lm.kernels.draws import normal
from tests.slow import all_but

CASES = {
    "up": ("btd,df->btf", (2, 6, 8), (8, 12), ("batch", "length", "mlp")),
    "heads": ("btd,dhk->bthk", (2, 6, 8), (8, 4, 2), ("batch", "length", "heads", None)),
    "down": ("btf,fd->btd", (2, 6, 12), (12, 8), ("batch", "length", None)),
    "output": ("bthk,hkd->btd", (2, 6, 4, 2), (4, 2, 8), ("batch", "length", None)),
    "head": ("btd,vd->btv", (2, 6, 8), (20, 8), ("batch", "length", "vocab")),
}


def operands(name):
    equation, x_shape, w_shape, out = CASES[name]
    y_shape = np.einsum(equation, np.zeros(x_shape), np.zeros(w_shape)).shape
    return equation, normal(0, x_shape), normal(1, w_shape), normal(2, y_shape), out


def value_and_gradients(function, x, w, cotangent):
    def run(x, w, cotangent):
        y, vjp = jax.vjp(function, x, w)
        return y, *vjp(cotangent.astype(y.dtype))

    return jax.jit(run)(x, w, cotangent)


@pytest.mark.parametrize("name", CASES)
def test_float32_is_the_plain_product(name):
    equation, *arrays, out = operands(name)
    twin = value_and_gradients(lambda x, w: jnp.einsum(equation, x, w, precision="highest"), *arrays)
    ours = value_and_gradients(lambda x, w: matmul(equation, x, w, dtype="float32", out=out), *arrays)
    for a, b in zip(ours, twin, strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_rounds_operands_and_cotangent_and_accumulates_in_float32(name):
    equation, x, w, cotangent, out = operands(name)
    # The twin: float32 products of rounded operands, each result rounded once to its own type.
    rounded = [np.asarray(a.astype(jnp.bfloat16), np.float32) for a in (x, w, cotangent)]
    y, dx, dw = value_and_gradients(lambda x, w: jnp.einsum(equation, x, w, precision="highest"), *rounded)
    our_y, our_dx, our_dw = value_and_gradients(
        lambda x, w: matmul(equation, x, w, dtype="bfloat16", out=out), x.astype(jnp.bfloat16), w, cotangent
    )
    assert (our_y.dtype, our_dx.dtype, our_dw.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(our_dw, dw, rtol=1e-5, atol=1e-5)  # never rounded on its way to the optimizer
    for a, b in ((our_y, y), (our_dx, dx)):
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=2**-8, atol=1e-5)  # half a unit of bfloat16


def test_long_sums_keep_what_bfloat16_would_lose():
    # 4096 ones: a bfloat16 accumulator sticks at 256.
    x, w = jnp.ones((1, 1, 4096)), jnp.ones((4096, 1))
    assert matmul("btd,df->btf", x, w, dtype="bfloat16", out=("batch", "length", "mlp")).item() == 4096


RINGS = list(itertools.product(("btd,btf->df", "btf,btd->fd", "btd,bthk->dhk"), ((8,), (2, 4), (4, 2), (2, 2, 2))))


@pytest.mark.parametrize("equation, sizes", all_but([RINGS[0], RINGS[5], RINGS[11]], RINGS), ids=str)
def test_a_product_that_is_scattered_ring_by_ring(equation, sizes, monkeypatch):
    """As on a TPU's torus: the product and the first ring together, then the other rings."""
    letters = dict(b=8, t=3, d=16, f=6, h=3, k=2)
    inputs, output = equation.split("->")
    a, b = (normal(n, [letters[letter] for letter in term]) for n, term in enumerate(inputs.split(",")))
    dimension = output.index("d")
    where = PartitionSpec(*("fsdp" if letter == "d" else None for letter in output))

    def on_device(a, b):
        x = product_around_ring(equation, a, b, "fsdp", dimension, sizes)
        return scattered(x, where, ("data", "fsdp"), first=1)

    with jax.set_mesh(make_mesh(dict(fsdp=8))):
        monkeypatch.setitem(torus._RINGS, jax.sharding.get_abstract_mesh().shape_tuple, {"fsdp": sizes})
        placed = (reshard(x, "batch", *[None] * (x.ndim - 1)) for x in (a, b))
        found = jax.jit(jax.shard_map(on_device, out_specs=where, check_vma=False))(*placed)
    np.testing.assert_allclose(found, jnp.einsum(equation, a, b), rtol=1e-5, atol=1e-5)


BLOCKS = [(dict(tensor=8), (8,)), (dict(tensor=8), (2, 4)), (dict(context=2, tensor=4), (4,)), (dict(fsdp=4, tensor=2), (2,))]


@pytest.mark.parametrize(("mesh", "sizes"), all_but([BLOCKS[1]], BLOCKS), ids=str)
def test_a_block_of_rows_that_are_split_over_tensor(mesh, sizes, monkeypatch):
    """It gathers its rows, and its end scatters them, ring by ring if tensor winds through several."""
    x, up, down, dy = (normal(n, shape) for n, shape in enumerate([(4, 16, 8), (8, 24), (24, 8), (4, 16, 8)]))

    def block(x, weights):
        up, down = weights
        h_BTF = matmul("btd,df->btf", x, up, dtype="float32", out=("batch", "length", "mlp"))
        return matmul("btf,fd->btd", h_BTF, down, dtype="float32", out=("batch", "sequence", None))

    expected = value_and_gradients(block, x, (up, down), dy)
    with jax.set_mesh(make_mesh(mesh)):
        monkeypatch.setitem(torus._RINGS, jax.sharding.get_abstract_mesh().shape_tuple, {"tensor": sizes})
        rows = [reshard(array, "batch", "sequence", None) for array in (x, dy)]
        weights = reshard(up, "embed", "mlp"), reshard(down, "mlp", "embed")
        found = value_and_gradients(block, rows[0], weights, rows[1])
        assert length_axis(found[0]) == length_axis(found[1]) == "sequence"
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected)
