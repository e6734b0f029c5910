"""States in chunks of tokens are those of one token after the other, with their gradients."""

import itertools
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.kernels import recurrence as fast
from lm.kernels import reference as slow
from lm.kernels.dense import convolution
from lm.kernels.dense import recurrence as compiled
from lm.kernels.dense.usable import usable
from lm.kernels.recurrence import Flow
from tests.slow import all_but

OFTEN = [(True, True, 32), (True, False, 128), (False, True, 128), (False, False, 32)]  # each pair of values once
WAYS = list(itertools.product((True, False), (True, False), (32, 128)))
B, T, G, R, K, V = 2, 75, 2, 3, 16, 12


def arguments(has_beta: bool, has_state: bool):
    rng = np.random.default_rng(0)
    q, k = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in rng.standard_normal((2, B, T, G, K)).astype(np.float32))
    v, decay = rng.standard_normal((B, T, G, R, V)).astype(np.float32), -rng.exponential(1.0, (B, T, G, R)).astype(np.float32)
    beta, state = rng.random((B, T, G, R), np.float32), rng.standard_normal((B, G, R, K, V)).astype(np.float32)
    return q, k, v, decay, beta if has_beta else None, state if has_state else None


def flow() -> Flow:
    """Sequences that begin within chunks, at their first and last token, and twice in one; padding at the end."""
    fresh, valid = np.zeros((B, T), bool), np.arange(T) < np.array([[T], [70]])
    fresh[0, [0, 1, 37, 64]] = fresh[1, [31, 32, 40, 45]] = True
    return Flow(fresh, valid)


@pytest.mark.parametrize("has_beta, has_state, chunk", all_but(OFTEN, WAYS))
def test_chunks_are_one_token_after_the_other(has_beta, has_state, chunk):
    compare(fast, has_beta, has_state, chunk)


@pytest.mark.skipif(not usable("chunks", jnp.float32), reason="there are compiled chunks on x86 processors only")
@pytest.mark.parametrize("has_beta, chunk, units", [(True, 32, 8), (True, 128, 1), (False, 64, 1)])
@pytest.mark.parametrize("dtype, limit", [("float32", 1e-5), ("bfloat16", 1e-2)])  # a few roundings of 4e-3
def test_compiled_chunks_are_one_token_after_the_other(has_beta, chunk, units, dtype, limit, monkeypatch):
    monkeypatch.setattr(compiled, "UNITS", units)  # heads in three parts, or in one
    compare(compiled, has_beta, False, chunk, dtype, limit)


def compare(kernel: ModuleType, has_beta: bool, has_state: bool, chunk: int, dtype: str = "float32", limit: float = 1e-5):
    """Assert that a module's recurrence, its state and its gradients are those of the plain twin. dtype: of q, k and v."""
    where = flow()

    def run(kernel, values):
        y, state = kernel.recurrence(*values, where, chunk)
        y = jnp.where(where.valid_BT[..., None, None, None], y.astype(jnp.float32), 0.0)
        return jnp.sum(jnp.sin(y)) + (0.0 if state is None else jnp.sum(jnp.cos(state))), (y, state)

    q, k, v, *rest = arguments(has_beta, has_state)
    given = (*(jnp.asarray(x, dtype) for x in (q, k, v)), *rest)
    found, expected = (
        jax.jit(jax.value_and_grad(lambda values, kernel=kernel: run(kernel, values), has_aux=True))(given)
        for kernel in (kernel, slow)
    )
    assert (found[0][1][1] is None) == (not has_state)
    same(found, expected, limit)


def same(found, expected, limit: float):
    """Assert that two trees have the same dtypes, and numbers that differ by a part of the largest one: of bfloat16 1e-2."""
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert x.dtype == y.dtype
        part = 1e-2 if x.dtype == jnp.bfloat16 else limit  # two roundings
        np.testing.assert_allclose(x.astype(jnp.float32), y.astype(jnp.float32), rtol=part, atol=part * np.abs(y).max())


def test_a_convolution_in_pieces_is_that_of_the_whole_row():
    rng, where = np.random.default_rng(1), flow()
    x, taps = rng.standard_normal((B, T, 5)).astype(np.float32), rng.standard_normal((5, 4)).astype(np.float32)
    whole, _ = slow.short_convolution(x, taps, None, None, where)
    tail, found = jnp.zeros((B, 5, 3)), []
    for begin, end in ((0, 2), (2, 3), (3, 40), (40, T)):
        y, tail = slow.short_convolution(x[:, begin:end], taps, None, tail, Flow(*(each[:, begin:end] for each in where)))
        found.append(y)
    np.testing.assert_allclose(np.concatenate(found, axis=1), whole, atol=1e-6)
    np.testing.assert_allclose(tail[1], x[1, 67:70].T, atol=0)
    for b, t in ((0, 36), (0, 38), (1, 46)):  # by its definition
        begin = max(np.flatnonzero(where.fresh_BT[b, : t + 1]).max(), t - 3)
        np.testing.assert_allclose(whole[b, t], sum(x[b, s] * taps[:, 3 - (t - s)] for s in range(begin, t + 1)), atol=1e-5)


@pytest.mark.skipif(not usable("taps", jnp.float32), reason="there are compiled convolutions on x86 processors only")
@pytest.mark.parametrize("dtype, W, has_bias", [("float32", 4, True), ("bfloat16", 3, False)])
def test_a_compiled_convolution_is_that_of_shifts(dtype, W, has_bias):
    rng, where, C = np.random.default_rng(2), flow(), 300
    x, taps = jnp.asarray(rng.standard_normal((B, T, C)), dtype), rng.standard_normal((C, W)).astype(np.float32)
    bias = rng.standard_normal(C).astype(np.float32) if has_bias else None

    def run(kernel, values):
        y, _ = kernel.short_convolution(*values, None, where, silu=has_bias)
        return jnp.sum(jnp.sin(y.astype(jnp.float32))), y

    found, expected = (
        jax.jit(jax.value_and_grad(lambda values, kernel=kernel: run(kernel, values), has_aux=True))((x, taps, bias))
        for kernel in (convolution, slow)
    )
    same(found, expected, 1e-5)
