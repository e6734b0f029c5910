"""JAX's ragged kernel, run by Pallas' interpreter on this CPU, against the plain twin."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu.ragged_paged_attention import kernel

from lm.kernels.attention import Scoring
from lm.kernels.cpu.pages import Pages, Places
from lm.kernels.reference import combined_attention as plain
from lm.kernels.reference import paged_attention, write_pages
from lm.kernels.tpu import pages as tpu_pages
from lm.kernels.tpu.pages import LANES, combined_attention, combined_size
from tests.slow import all_but

LENGTHS, CHUNKS = (70, 1, 37, 64), (40, 1, 5, 1)  # tokens of each sequence; how many of the last are queries
ORDER = (2, 0, 3, 1)  # of the sequences in a step
NO_PAGE = 10**6
CASES = {
    "prompts beside decoding": (4, 2, 16, {}, jnp.float32),
    "window and soft-cap": (4, 1, 8, dict(window=30, softcap=5.0), jnp.float32),
    "bfloat16": (8, 4, 16, dict(window=50), jnp.bfloat16),
    "three queries a key, many pages": (6, 2, 4, {}, jnp.float32),
}


class Loaded:
    """The rows of a block of pages as a value, where the kernel takes a view of memory that the interpreter does not know."""

    def __init__(self, rows):
        self.rows, self.dtype = rows, rows.dtype

    def __getitem__(self, index):
        return self.rows[index]

    def reshape(self, *shape):
        return Loaded(self.rows.reshape(shape))

    def bitcast(self, dtype):
        rows, width = self.rows.shape
        pairs = jnp.swapaxes(self.rows.reshape(rows // 2, 2, width), 1, 2)  # two rows of bfloat16 are one of uint32
        return Loaded(jax.lax.bitcast_convert_type(pairs, dtype))


@pytest.fixture(autouse=True)
def what_the_interpreter_knows(monkeypatch):
    """Have the kernel read values in place of views, and store through masks by reading first."""

    def store(ref, value, mask):
        ref[...] = jnp.where(mask, value, ref[...])

    copies = kernel.MultiPageAsyncCopyDescriptor
    wait = copies.wait
    monkeypatch.setattr(copies, "wait", lambda self: Loaded(wait(self)[...]))
    monkeypatch.setattr(kernel.pltpu, "store", store)


def filled(page, heads, dtype):
    """Return a combined pool that holds all sequences, and their table."""
    rng, most = np.random.default_rng(0), -(-max(LENGTHS) // page)
    ids_RP = rng.permutation(len(LENGTHS) * most + 3)[: len(LENGTHS) * most].reshape(len(LENGTHS), most)
    tables_RP, slots = np.full((len(LENGTHS), most + 1), NO_PAGE, np.int32), []
    for row, length in enumerate(LENGTHS):
        used = -(-length // page)
        tables_RP[row, :used] = ids_RP[row, :used]
        slots += [ids_RP[row, t // page] * page + t % page for t in range(length)]
    pool = Pages(jnp.full((len(LENGTHS) * most + 3, page, 2 * heads, LANES), jnp.nan, dtype))
    new = jnp.asarray(rng.standard_normal((len(slots), 2 * heads, LANES)), dtype)
    return write_pages(pool, new, jnp.asarray(slots, jnp.int32)), jnp.asarray(tables_RP)


def queries(heads, dtype, padding=3):
    pairs = [(row, LENGTHS[row] - n) for row in ORDER for n in range(CHUNKS[row], 0, -1)] + padding * [(-1, 0)]
    rows_T, places_T = np.asarray(pairs, np.int32).T
    q_THK = jnp.asarray(np.random.default_rng(1).standard_normal((len(pairs), heads, LANES)), dtype)
    return q_THK, jnp.asarray(rows_T), jnp.asarray(places_T)


@pytest.mark.parametrize("name", all_but(list(CASES)[1:3], CASES))
def test_attention_is_that_of_the_twin(name, monkeypatch):
    monkeypatch.setattr(tpu_pages, "KEYS", 32)  # several blocks of keys
    heads, kv_heads, page, options, dtype = CASES[name]
    pages, tables_RP = filled(page, kv_heads, dtype)
    q_THK, rows_T, places_T = queries(heads, dtype)
    places, scoring = Places(tables_RP, rows_T, places_T), Scoring(LANES**-0.5, **options)
    mixed_THV = jax.jit(lambda *x: combined_attention(*x, scoring, interpret=True))(q_THK, pages, places)
    close = dict(rtol=1e-5, atol=1e-5) if dtype == jnp.float32 else dict(rtol=0.02, atol=0.02)
    np.testing.assert_allclose(mixed_THV, plain(q_THK, pages, places, scoring), **close)
    assert not mixed_THV[-3:].any()


def test_a_step_without_tokens_is_zeros():
    pages, tables_RP = filled(16, 2, jnp.float32)
    q_THK, rows_T, places_T = queries(4, jnp.float32)
    places = Places(jnp.zeros_like(tables_RP), jnp.full_like(rows_T[:8], -1), jnp.zeros_like(places_T[:8]))
    assert not combined_attention(q_THK[:8], pages, places, Scoring(0.1), interpret=True).any()


def test_the_twin_is_that_of_two_pools():
    pages, tables_RP = filled(8, 2, jnp.float32)
    q_THK, rows_T, places_T = queries(4, jnp.float32)
    places, scoring = Places(tables_RP, rows_T, places_T), Scoring(0.1, 20, 5.0)
    k, v = (Pages(pages.values[:, :, n::2]) for n in (0, 1))
    apart = paged_attention(q_THK, k, v, places, scoring)
    np.testing.assert_array_equal(plain(q_THK, pages, places, scoring), apart)


def test_pools_are_combined_where_the_kernel_computes_the_attention():
    assert combined_size(8, 128, jnp.bfloat16, sinks=False) == combined_size(4, 64, jnp.float32, sinks=False) == LANES
    for other in ((3, 64, jnp.bfloat16, False), (8, 256, jnp.bfloat16, False), (8, 128, jnp.int8, False)):
        assert not combined_size(*other)
    assert not combined_size(8, 64, jnp.bfloat16, True)
