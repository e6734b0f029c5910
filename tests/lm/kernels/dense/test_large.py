"""Large compiled products against XLA's, through the product of the whole codebase."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.kernels.dense.large import product as large_product
from lm.kernels.dense.large import takes
from lm.kernels.dense.usable import multiplied
from lm.kernels.ops import matmul, product
from lm.kernels.reference import product as product_reference
from lm.parallel.mesh import make_mesh
from tests.lm.kernels.programs import count_calls

needs_avx2 = pytest.mark.skipif(not multiplied(), reason="this processor has no AVX2")
needs_bfloat16 = pytest.mark.skipif("bfloat16" not in multiplied(), reason="this processor does not multiply bfloat16")
FAST = multiplied()[-1] if multiplied() else "float32"  # bfloat16 where it is fast

# Sizes beside multiples of tiles, blocks, chunks of a sum and panels; operands whose inputs lie side by side or apart.
SIZES = {"b": 3, "t": 167, "d": 336, "h": 5, "k": 40, "f": 1100, "v": 2081, "m": 33, "n": 1030, "s": 2100, "x": 20}
EQUATIONS = (
    "btd,df->btf",
    "btd,dhk->bthk",
    "bthk,hkd->btd",
    "btf,df->btd",
    "bthk,dhk->btd",
    "btd,btf->df",
    "bthk,btd->hkd",
    "btd,bthk->dhk",
    "btd,vd->btv",
    "btv,vd->btd",
    "btv,btd->vd",
    "ms,ns->mn",
    "sm,sn->nm",
    "ms,ns->nm",
    "vs,xs->vx",
    "sv,xs->xv",
)


def operands(equation, dtypes=(FAST, FAST)):
    terms = equation.split("->")[0].split(",")
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal([SIZES[axis] for axis in term]), dtype) for term, dtype in zip(terms, dtypes)]


def distance(found, wanted):
    found, wanted = (np.asarray(x, np.float32) for x in (found, wanted))
    return np.linalg.norm(found - wanted) / np.linalg.norm(wanted)


@pytest.mark.parametrize("dtype", multiplied())
@pytest.mark.parametrize("equation", EQUATIONS)
def test_a_product_is_that_of_xla(equation, dtype):
    a, b = operands(equation, (dtype, dtype))
    assert takes(equation, a, b)
    found = jax.jit(product, static_argnums=0)(equation, a, b)
    assert found.dtype == jnp.float32
    assert distance(found, product_reference(equation, a, b)) < 1e-6


@needs_bfloat16
@pytest.mark.parametrize("out", ("float32", "bfloat16"))
@pytest.mark.parametrize("dtypes", (("float32", "float32"), ("float32", "bfloat16"), ("bfloat16", "float32")), ids=str)
@pytest.mark.parametrize("equation", ("btd,vd->btv", "btf,df->btd", "btd,btf->df"))
def test_floats_are_rounded_as_by_a_cast(equation, dtypes, out):
    a, b = operands(equation, dtypes)
    found = jax.jit(large_product, static_argnums=0, static_argnames=("dtype", "result"))(
        equation, a, b, dtype="bfloat16", result=out
    )
    assert found.dtype == jnp.dtype(out)
    assert distance(found, product_reference(equation, a, b, dtype="bfloat16", result=out)) < (
        1e-6 if out == "float32" else 1e-3
    )


@needs_avx2
@pytest.mark.parametrize("out", ("float32", "bfloat16"))
@pytest.mark.parametrize("equation", ("ms,ns->mn", "sm,sn->mn"))
def test_half_of_a_symmetric_product_is_computed_and_mirrored(equation, out):
    x = operands("ns,ns->nn", (FAST, FAST))[0]
    x = x if equation.startswith("m") else x.T
    whole = jax.jit(lambda a, b: large_product(equation, a, b, result=out))(x, x)
    found = np.asarray(jax.jit(lambda x: large_product(equation, x, x, result=out))(x))
    np.testing.assert_array_equal(found, whole)
    np.testing.assert_array_equal(found, found.T)
    y = x[:, :64] if equation.startswith("m") else x[:64]  # of short sums
    np.testing.assert_array_equal(*[jax.jit(lambda *y: large_product(equation, y[0], y[-1]))(*[y] * n) for n in (1, 2)])


@needs_avx2
@pytest.mark.parametrize("equation", ("btd,btf->df", "btv,btd->vd", "ms,ns->nm"))
def test_products_are_added_to_a_total(equation):
    a, b = operands(equation)
    y = product_reference(equation, a, b)
    start = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)

    @jax.jit
    def added(start, a, b):  # in a loop, as the head does, where the total is changed in place
        return jax.lax.scan(
            lambda total, scale: (product(equation, scale * a, b, total=total), None), start, jnp.array([1, 2], FAST)
        )

    kept = np.asarray(start)
    found, _ = added(start, a, b)
    assert count_calls(added.lower(start, a, b).as_text(), "lm_gemm") == 1
    assert distance(found, start + 3 * y) < 1e-5
    np.testing.assert_array_equal(start, kept)


@needs_avx2
def test_its_gradient_is_that_of_the_twin():
    a, b = operands("ms,ns->mn", ("float32", FAST))
    weights = jnp.cos(jnp.arange(33 * 1030, dtype=jnp.float32)).reshape(33, 1030)

    def gradients(function):
        return jax.jit(jax.grad(lambda a, b: jnp.sum(weights * function("ms,ns->mn", a, b)), (0, 1)))(a, b)

    found = gradients(lambda equation, a, b: large_product(equation, a, b, dtype=FAST))
    for mine, theirs in zip(
        found, gradients(lambda equation, a, b: product_reference(equation, a, b, dtype=FAST)), strict=True
    ):
        assert mine.dtype == theirs.dtype and distance(mine, theirs) < 1e-5


@needs_avx2
def test_values_that_are_not_finite_stay_in_their_row():
    a, b = operands("ms,ns->mn")
    found = np.asarray(jax.jit(product, static_argnums=0)("ms,ns->mn", a.at[7, 3].set(jnp.nan).at[9, 4].set(jnp.inf), b))
    plain = np.asarray(jax.jit(product, static_argnums=0)("ms,ns->mn", a, b))
    assert np.isnan(found[7]).all() and np.isinf(found[9]).all()
    others = np.delete(np.arange(len(found)), (7, 9))
    np.testing.assert_array_equal(found[others], plain[others])


@needs_avx2
@pytest.mark.parametrize("meshed", (False, True))
def test_matmul_and_its_gradients_use_it_on_one_device_only(meshed):
    x, w = operands("btd,df->btf", (FAST, "float32"))

    def step(x, w):
        y, gradients = jax.vjp(lambda x, w: matmul("btd,df->btf", x, w, dtype=FAST, out=("batch", None, "mlp")), x, w)
        return y, gradients(y)

    def plain(x, w):
        y = product_reference("btd,df->btf", x, w, dtype=FAST, result=FAST)
        return y, (
            product_reference("btf,df->btd", y, w, dtype=FAST, result=x.dtype),
            product_reference("btd,btf->df", x, y, dtype=FAST),
        )

    if meshed:
        with jax.set_mesh(make_mesh({}, jax.devices()[:1])):
            found, program = jax.jit(step)(x, w), jax.jit(step).lower(x, w).as_text()
        with jax.set_mesh(make_mesh({"tensor": 4}, jax.devices()[:4])):
            assert count_calls(jax.jit(step).lower(x, w).as_text(), "lm_gemm") == 0
    else:
        found, program = jax.jit(step)(x, w), jax.jit(step).lower(x, w).as_text()
    assert count_calls(program, "lm_gemm") == 3
    for mine, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(plain(x, w)), strict=True):
        assert mine.dtype == theirs.dtype and distance(mine, theirs) < 2e-3


@pytest.mark.parametrize(
    ("equation", "shapes", "dtype"),
    (
        ("mk,kn->mn", ((64, 64), (64, 64)), "bfloat16"),  # small
        ("mk,kn->mn", ((8, 2**16), (2**16, 64)), "bfloat16"),  # thin
        ("bmk,bkn->bmn", ((4, 256, 256), (4, 256, 256)), "bfloat16"),  # a batch of products
        ("mkd,dkn->mn", ((256, 16, 16), (16, 16, 256)), "bfloat16"),  # inputs in another order
    ),
)
def test_other_products_stay_with_xla(equation, shapes, dtype):
    a, b = (jnp.ones(shape, dtype) for shape in shapes)
    assert not takes(equation, a, b)
    np.testing.assert_allclose(product(equation, a, b), product_reference(equation, a, b), rtol=1e-6)
