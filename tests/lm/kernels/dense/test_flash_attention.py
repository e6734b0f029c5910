"""Compiled attention of training against the plain twin in float32."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.kernels.attention import Scoring, Visible
from lm.kernels.dense.attention import attention as flash_attention
from lm.kernels.dense.usable import multiplied
from lm.kernels.ops import attention
from lm.kernels.reference import masked_attention
from lm.parallel.mesh import make_mesh, reshard
from tests.lm.kernels.programs import count_calls
from tests.slow import all_but

pytestmark = pytest.mark.skipif(not multiplied(), reason="this processor has no AVX2")
DTYPE = multiplied()[-1] if multiplied() else ""  # bfloat16 where it is fast

# B, T, H, G, K, V, window, documents of a row
CASES = {
    "one document": (1, 256, 2, 2, 64, 64, 0, 1),
    "grouped heads, odd sizes": (2, 777, 6, 3, 48, 40, 0, 4),
    "one key head": (1, 515, 3, 1, 64, 64, 0, 3),
    "many documents": (2, 640, 2, 1, 16, 24, 0, 60),
    "window": (2, 777, 2, 2, 80, 128, 100, 4),
    "window beyond a chunk of keys": (1, 1500, 2, 1, 128, 128, 700, 1),
    "window of three": (1, 130, 1, 1, 32, 32, 3, 2),
    "several chunks of keys": (1, 1600, 2, 2, 64, 64, 0, 3),
    "short": (3, 9, 2, 1, 8, 8, 0, 2),
}
OFTEN = [(case, dtype) for case in CASES for dtype in multiplied() if dtype == DTYPE or case in ("window", "short")]


def example(B, T, H, G, K, V, documents, dtype=DTYPE):
    rng = np.random.default_rng(0)
    shapes = (B, T, H, K), (B, T, G, K), (B, T, G, V), (B, T, H, V)
    arrays = [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]
    ends = np.sort(rng.integers(0, T, (B, documents - 1)), axis=1)
    segments = np.stack([np.searchsorted(row, np.arange(T), side="right") for row in ends])
    return *arrays, jnp.asarray(segments % 3 if documents < 5 else segments, jnp.int32)


def in_rows(segments) -> Visible:
    return Visible(segments, segments, jnp.arange(segments.shape[1]))


@functools.partial(jax.jit, static_argnums=0)
def results(function, q, k, v, cotangent):
    out, gradients = jax.vjp(function, q, k, v)
    return out, *gradients(cotangent.astype(out.dtype))


@pytest.mark.parametrize("case, dtype", all_but(OFTEN, itertools.product(CASES, multiplied())))
def test_it_differs_from_the_twin_by_rounding_only(case, dtype):
    *sizes, window, documents = CASES[case]
    q, k, v, cotangent, segments = example(*sizes, documents, dtype)
    scale, visible = sizes[4] ** -0.5, in_rows(segments)
    mask = visible.mask(window)
    wanted = results(lambda q, k, v: masked_attention(q, k, v, mask, Scoring(scale)), *_floats(q, k, v), cotangent)

    mine = results(lambda q, k, v: flash_attention(q, k, v, visible, Scoring(scale, window)), q, k, v, cotangent)
    for found, want in zip(mine, wanted, strict=True):
        assert found.dtype == dtype
        # A bfloat16 has 8 bits: rounding alone is 0.0017.
        assert _distance(found, want) < (0.004 if dtype == "bfloat16" else 2e-6)


def test_large_scores_of_late_keys_replace_the_sums_of_earlier_ones():
    q, k, v, cotangent, segments = example(1, 1300, 1, 1, 32, 32, 1)
    k = k * jnp.linspace(0.1, 30, 1300)[None, :, None, None].astype(k.dtype)
    visible = in_rows(segments)
    wanted = masked_attention(*_floats(q, k, v), visible.mask(), Scoring(1.0))
    assert _distance(flash_attention(q, k, v, visible, Scoring(1.0)), wanted) < 0.005


@pytest.mark.parametrize("factor", (1e6, 1e20))
def test_scores_of_any_size_are_finite(factor):
    """Rounding errors of such scores are large numbers too, and their exponentials would overflow."""
    q, k, v, cotangent, segments = example(1, 600, 2, 1, 32, 32, 2)
    q = (q * factor).astype(q.dtype)
    visible = in_rows(segments)
    wanted = results(lambda q, k, v: masked_attention(q, k, v, visible.mask(), Scoring(0.2)), *_floats(q, k, v), cotangent)
    found = results(lambda q, k, v: flash_attention(q, k, v, in_rows(segments), Scoring(0.2)), q, k, v, cotangent)
    assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in found)
    assert _distance(found[0], wanted[0]) < 0.005


def test_what_is_not_finite_reaches_its_own_queries_only():
    q, k, v, _, segments = example(1, 600, 2, 2, 32, 32, 1)
    segments = jnp.asarray(np.arange(600) // 300, jnp.int32)[None]
    plain = np.asarray(flash_attention(q, k, v, in_rows(segments), Scoring(0.2)), np.float32)
    found = np.asarray(flash_attention(q, k.at[0, 100, 0, 0].set(jnp.nan), v, in_rows(segments), Scoring(0.2)), np.float32)
    assert np.isnan(found[0, 100:300, 0]).all()
    others = np.delete(np.arange(600), np.s_[100:300])
    np.testing.assert_array_equal(found[0, others, 0], plain[0, others, 0])
    np.testing.assert_array_equal(found[0, :, 1], plain[0, :, 1])


def test_attention_takes_it_for_what_it_computes():
    q, k, v, cotangent, segments = example(2, 600, 2, 1, 64, 64, 3)

    def calls(sinks_H=None, **options):
        def both(*arrays):
            q, k, v, cotangent = (reshard(x, "batch", None, "heads", None) for x in arrays)
            visible = in_rows(reshard(segments, "batch", None))
            return results(lambda q, k, v: attention(q, k, v, visible, Scoring(0.1, **options), sinks_H), q, k, v, cotangent)

        return count_calls(jax.jit(both).lower(q, k, v, cotangent).as_text(), "lm_flash")

    assert calls() == 1 and calls(window=50) == 1
    assert calls(softcap=5.0) == 0 and calls(sinks_H=jnp.zeros(2)) == 0
    with jax.set_mesh(make_mesh({}, jax.devices()[:1])):
        assert calls() == 1
    with jax.set_mesh(make_mesh({"data": 2}, jax.devices()[:2])):
        assert calls() == 0


def _floats(*arrays):
    return [x.astype(jnp.float32) for x in arrays]


def _distance(found, wanted):
    found, wanted = (np.asarray(x, np.float32) for x in (found, wanted))
    return np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
