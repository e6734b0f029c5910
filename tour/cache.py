"""The cache of keys and values, in pages (Kwon et al. 2023, "PagedAttention").

A token's keys and values do not change when later tokens come, so they are computed once and kept. They are kept in
pages of C slots, so that rows of any length share one pool and a finished row gives its pages back (serve.py).

Axes: L layers, P pages, C slots of a page, B rows, N pages of a row, S = N·C slots, T new tokens, G key/value heads,
K head size.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from tour.mesh import spec


class Cache(NamedTuple):
    """Position p of row b is in page table_BN[b, p // C], at slot p % C."""

    keys_LPCGK: Array
    values_LPCGK: Array
    table_BN: Array


def empty_cache(shape_LPCGK: tuple[int, ...], dtype: str, table_BN: Array) -> Cache:
    """Return a cache of zeros."""
    where = spec(None, None, None, "heads", None)
    keys, values = (jnp.zeros(shape_LPCGK, dtype, out_sharding=where) for _ in range(2))
    return Cache(keys, values, table_BN)


def rows_of_pages(rows: int, length: int, page_size: int) -> Array:
    """Return a table in which each row owns all the pages that `length` tokens need, int32 [rows, N]."""
    return jnp.arange(rows * -(-length // page_size), dtype=jnp.int32).reshape(rows, -1)


def write(pool_PCGK: Array, new_BTGK: Array, table_BN: Array, positions_BT: Array, valid_BT: Array) -> Array:
    """Return the pool of one layer with the keys (or values) of new tokens in their slots."""
    P, C = pool_PCGK.shape[:2]
    page_BT = jnp.take_along_axis(table_BN, positions_BT // C, axis=1)
    page_BT = jnp.where(valid_BT, page_BT, P)  # there is no page P: what padding writes is dropped
    # The pool is whole on each device (but for its heads), so all devices write the new tokens of all rows.
    page_BT, slot_BT = (jax.sharding.reshard(x, spec(None, None)) for x in (page_BT, positions_BT % C))
    new_BTGK = jax.sharding.reshard(new_BTGK, spec(None, None, "heads", None))
    return pool_PCGK.at[page_BT, slot_BT].set(new_BTGK, mode="drop")


def read(pool_PCGK: Array, table_BN: Array) -> Array:
    """Return the slots of all pages of each row in order, [B, S, G, K]. Those not yet written must be masked."""
    pages_BNCGK = pool_PCGK.at[table_BN].get(out_sharding=spec("batch", None, None, "heads", None))
    B, N, C, G, K = pages_BNCGK.shape
    return lax.reshape(pages_BNCGK, (B, N * C, G, K), out_sharding=spec("batch", None, "heads", None))
