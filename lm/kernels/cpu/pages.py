"""Keys and values of many sequences in pages of memory, and attention to them.

A pool of pages holds the tokens of all sequences; a table names the pages of each, so a sequence needs no contiguous memory
and can share pages with others (Kwon et al. 2023). The compiled functions of lm/kernels/cpu/attention.py read only the pages
that a token sees.

Axes: T tokens of this step, H query heads, G key/value heads, K key size, V value size, R sequences, P pages of a sequence.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from lm.kernels.attention import Scoring
from lm.kernels.native.registered import compiled
from lm.kernels.quantize import quantize_rows
from lm.parallel.arrays import AnyArray


class Pages(NamedTuple):
    """A pool of pages. Slot s is token s % size of page s // size.

    values: float32, bfloat16 or int8 [pages, size, G, K]. scales: with int8 bfloat16 [pages, size, G], else None.
    """

    values: jax.Array
    scales: jax.Array | None = None


class Places(NamedTuple):
    """Where the T tokens of a step are. All int32.

    tables_RP: page ids of each sequence; entries that hold nothing a token sees are not used. rows_T: the sequence of each
    token; −1 is padding, whose result is 0. places_T: its place in the sequence.
    """

    tables_RP: AnyArray
    rows_T: AnyArray
    places_T: AnyArray


def empty_pages(pages: int, size: int, heads: int, dim: int, dtype: DTypeLike = jnp.float32) -> Pages:
    """Return a pool of zeros."""
    scales = jnp.zeros((pages, size, heads), jnp.bfloat16) if dtype == jnp.int8 else None
    return Pages(jnp.zeros((pages, size, heads, dim), dtype), scales)


def takes(*arguments: object) -> bool:
    """Return whether the functions are compiled here."""
    return compiled("cpu.attention")


def write_pages(pages: Pages, new_TGK: jax.Array, slots_T: AnyArray) -> Pages:
    """Compute lm.kernels.ops.write_pages."""
    if pages.scales is None:
        return Pages(_written(pages.values, new_TGK.astype(pages.values.dtype), slots_T))
    values, scales = quantize_rows(new_TGK)
    return Pages(_written(pages.values, values, slots_T), _written(pages.scales[..., None], scales, slots_T)[..., 0])


def _written(pool: jax.Array, new: jax.Array, slots_T: AnyArray) -> jax.Array:
    call = jax.ffi.ffi_call("lm_write_pages", jax.ShapeDtypeStruct(pool.shape, pool.dtype), input_output_aliases={0: 0})
    return call(pool, new, slots_T.astype(jnp.int32))


def paged_attention(
    q_THK: jax.Array,
    k: Pages,
    v: Pages | None,
    places: Places,
    scoring: Scoring,
    sinks_H: jax.Array | None = None,
    value_size: int = 0,
) -> jax.Array:
    """Compute lm.kernels.ops.paged_attention."""
    v, V = (k, value_size) if v is None else (v, v.values.shape[-1])
    nothing = jnp.zeros((0,), jnp.bfloat16)
    scales = [nothing if pages.scales is None else pages.scales for pages in (k, v)]
    sinks = jnp.zeros((0,), jnp.float32) if sinks_H is None else sinks_H.astype(jnp.float32)
    out = jax.ShapeDtypeStruct((*q_THK.shape[:2], V), jnp.float32)
    call = jax.ffi.ffi_call("lm_paged_attention", out)
    window = np.int32(-scoring.window if scoring.chunked else scoring.window)
    how = dict(scale=np.float32(scoring.scale), softcap=np.float32(scoring.softcap), window=window)
    return call(q_THK.astype(jnp.float32), k.values, v.values, *scales, *(x.astype(jnp.int32) for x in places), sinks, **how)
