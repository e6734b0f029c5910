"""Attention against a plain twin in which every query head has keys and values of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.kernels.attention import attention, causal_mask

B, G, R, K = 2, 2, 3, 8


def plain(q_BTHK, k_BSGK, v_BSGK, mask_BTS):
    k, v = (jnp.repeat(x.astype(jnp.float32), R, axis=2) for x in (k_BSGK, v_BSGK))
    scores = jnp.einsum("bthk,bshk->bhts", q_BTHK.astype(jnp.float32), k, precision="highest") / K**0.5
    weights = jax.nn.softmax(jnp.where(mask_BTS[:, None], scores, -jnp.inf), axis=-1)
    return jnp.einsum("bhts,bshk->bthk", weights, v, precision="highest")


def example(T, S, dtype):
    keys = jax.random.split(jax.random.key(T), 4)
    shapes = (B, T, G * R, K), (B, S, G, K), (B, S, G, K), (B, T, G * R, K)
    return [jax.random.normal(key, shape).astype(dtype) for key, shape in zip(keys, shapes, strict=True)]


def segments_of(S):
    """Documents of uneven length, then padding: a row of several and a row of one."""
    return (
        np.stack([np.searchsorted([S // 5, S // 2, S - 3], np.arange(S), side="right") + 1, np.arange(S) < S - 7]) % 4
    )


@pytest.mark.parametrize("T", [1, 20, 128, 300])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_and_gradients(T, dtype):
    q, k, v, cotangent = example(T, T, dtype)
    segments = segments_of(T).astype(np.int32) if T > 1 else np.ones((B, 1), np.int32)
    mask = np.tril(np.ones((T, T), bool)) & (segments[:, :, None] == segments[:, None, :])

    @jax.jit
    def both(q, k, v, cotangent):
        ours, vjp = jax.vjp(lambda q, k, v: attention(q, k, v, causal_mask(segments, segments, np.arange(T))), q, k, v)
        twin, twin_vjp = jax.vjp(lambda q, k, v: plain(q, k, v, mask), q, k, v)
        return (ours, *vjp(cotangent)), (twin, *twin_vjp(cotangent.astype(jnp.float32)))

    tolerance = dict(atol=1e-5, rtol=1e-5) if dtype == "float32" else dict(atol=5e-2, rtol=5e-2)
    for ours, twin in zip(*both(q, k, v, cotangent), strict=True):
        assert ours.dtype == q.dtype
        np.testing.assert_allclose(ours.astype(jnp.float32), twin.astype(jnp.float32), **tolerance)


@pytest.mark.parametrize("T", [1, 4])
def test_queries_inside_a_cache(T):
    S, slot = 16, 9
    q, k, v, _ = example(T, S, "float32")
    key_segments = np.ones((B, S), np.int32)
    key_segments[1, :4] = 0  # left padding
    mask = np.arange(S) <= slot + np.arange(T)[:, None]
    mask = mask & (key_segments[:, None, :] == 1)
    ours = jax.jit(attention)(q, k, v, causal_mask(np.ones((B, T), np.int32), key_segments, slot + np.arange(T)))
    np.testing.assert_allclose(ours, plain(q, k, v, mask), atol=1e-5, rtol=1e-5)


def test_large_scores_stay_finite():
    q, k, v, cotangent = example(20, 20, "float32")
    segments = np.ones((B, 20), np.int32)

    @jax.jit
    def value_and_gradients(q, k, v, cotangent):
        out, vjp = jax.vjp(lambda q, k, v: attention(q, k, v, causal_mask(segments, segments, np.arange(20))), q, k, v)
        return out, *vjp(cotangent)

    assert all(np.isfinite(x).all() for x in value_and_gradients(1e3 * q, k, v, cotangent))
