"""Attention to pages against its plain twin: ragged sequences, windows, caps, sinks, dtypes, latent heads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.kernels.attention import Scoring
from lm.kernels.cpu.pages import Pages, Places, empty_pages
from lm.kernels.ops import paged_attention, write_pages
from lm.kernels.reference import paged_attention as paged_attention_reference
from lm.kernels.reference import write_pages as write_pages_reference
from tests.slow import all_but

LENGTHS, CHUNKS = (100, 1, 37, 64), (40, 1, 5, 1)  # tokens of each sequence; how many of the last are queries
NO_PAGE = 10**6


def filled(rng, page, heads, size, dtype):
    """Return a pool that holds all sequences, and their table."""
    most = -(-max(LENGTHS) // page)
    ids_RP = rng.permutation(len(LENGTHS) * most + 3)[: len(LENGTHS) * most].reshape(len(LENGTHS), most)
    tables_RP = np.full((len(LENGTHS), most + 1), NO_PAGE, np.int32)
    slots = []
    for row, length in enumerate(LENGTHS):
        used = -(-length // page)
        tables_RP[row, :used] = ids_RP[row, :used]
        slots += [ids_RP[row, t // page] * page + t % page for t in range(length)]
    pool = empty_pages(len(LENGTHS) * most + 3, page, heads, size, dtype)
    new = jnp.asarray(rng.standard_normal((len(slots), heads, size)), jnp.float32)
    return write_pages(pool, new, jnp.asarray(slots, jnp.int32)), jnp.asarray(tables_RP)


def queries(rng, heads, size):
    """Return queries with one token of padding among them, their sequences and their places."""
    pairs = [(row, length - n) for row, length in enumerate(LENGTHS) for n in range(CHUNKS[row], 0, -1)]
    pairs.insert(41, (-1, 0))
    rows_T, places_T = np.asarray(pairs, np.int32).T
    q_THK = jnp.asarray(rng.standard_normal((len(pairs), heads, size)), jnp.float32)
    return q_THK, jnp.asarray(rows_T), jnp.asarray(places_T)


SIZES = (
    (9, 3, 64, 64, 16, {}),
    (4, 4, 20, 36, 5, dict(window=30, softcap=5.0, sinks=True)),
    (8, 1, 40, 24, 16, dict(latent=True, window=70)),
    (6, 2, 32, 32, 8, dict(window=26, chunked=True)),
)
CASES = [(*sizes, dtype) for sizes in SIZES for dtype in ("float32", "bfloat16", "int8")]


@pytest.mark.parametrize(
    ("heads", "kv_heads", "size", "value_size", "page", "options", "dtype"),
    all_but(CASES[:9:4] + CASES[2:3] + CASES[9:10], CASES),
)
def test_attention_is_that_of_the_twin_and_tokens_are_independent(heads, kv_heads, size, value_size, page, options, dtype):
    rng = np.random.default_rng(0)
    k, tables_RP = filled(rng, page, kv_heads, size, dtype)
    v = None if options.get("latent") else filled(np.random.default_rng(0), page, kv_heads, value_size, dtype)[0]
    q_THK, rows_T, places_T = queries(rng, heads, size)
    sinks_H = jnp.asarray(rng.standard_normal(heads), jnp.float32) if options.get("sinks") else None
    window, chunked = options.get("window", 0), options.get("chunked", False)
    how = Scoring(size**-0.5, window, options.get("softcap", 0.0), chunked=chunked), sinks_H, value_size
    attend = jax.jit(lambda q, rows, places: paged_attention(q, k, v, Places(tables_RP, rows, places), *how))
    mixed_THV = attend(q_THK, rows_T, places_T)
    expected = paged_attention_reference(q_THK, k, v, Places(tables_RP, rows_T, places_T), *how)
    np.testing.assert_allclose(mixed_THV, expected, rtol=2e-5, atol=2e-5)
    assert not mixed_THV[41].any()
    for t in (0, 39, 42, len(rows_T) - 1):
        alone = attend(q_THK[t : t + 1], rows_T[t : t + 1], places_T[t : t + 1])
        np.testing.assert_array_equal(alone[0], mixed_THV[t])


@pytest.mark.parametrize("dtype", (jnp.float32, jnp.bfloat16, jnp.int8))
def test_tokens_are_written_into_their_slots_in_place(dtype):
    pool = jnp.arange(4 * 5 * 2 * 3).reshape(4, 5, 2, 3).astype(dtype)
    new_TGK = 1 + jnp.arange(3 * 2 * 3, dtype=jnp.float32).reshape(3, 2, 3).astype(dtype)
    slots_T = jnp.asarray([19, -1, 7])
    expected = write_pages_reference(Pages(pool), new_TGK, slots_T).values
    where = pool.unsafe_buffer_pointer()
    write = jax.jit(lambda pool, new, slots: write_pages(Pages(pool), new, slots).values, donate_argnums=0)
    written = write(pool, new_TGK, slots_T)
    np.testing.assert_array_equal(written, expected)
    assert written.unsafe_buffer_pointer() == where
