"""Keys and values of many sequences in pages of memory, and attention to them.

A pool of pages holds the tokens of all sequences; a table names the pages of each, so a sequence needs no contiguous memory
and can share pages with others (Kwon et al. 2023). On a CPU the compiled functions of lm/kernels/cpu/attention.py read only
the pages that a token sees. Everywhere else, and without numba, the plain twins run.

Axes: T tokens of this step, H query heads, G key/value heads, K key size, V value size, R sequences, P pages of a sequence.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lm.kernels.attention import MASKED
from lm.kernels.head import softcapped
from lm.kernels.native.registered import compiled
from lm.kernels.quantize import dequantize_rows, quantize_rows


class Pages(NamedTuple):
    """A pool of pages. Slot s is token s % size of page s // size.

    values: float32, bfloat16 or int8 [pages, size, G, K]. scales: with int8 bfloat16 [pages, size, G], else None.
    """

    values: jax.Array
    scales: jax.Array | None = None


def empty_pages(pages: int, size: int, heads: int, dim: int, dtype=jnp.float32) -> Pages:
    """Return a pool of zeros."""
    scales = jnp.zeros((pages, size, heads), jnp.bfloat16) if dtype == jnp.int8 else None
    return Pages(jnp.zeros((pages, size, heads, dim), dtype), scales)


def write_pages(pages: Pages, new_TGK: jax.Array, slots_T: jax.Array) -> Pages:
    """Return the pool with the tokens written into their slots, in place if the caller donates it.

    slots_T: int32, distinct; −1 skips the token. Int8 pools quantize each token and head.
    """
    if pages.scales is None:
        return Pages(_written(pages.values, new_TGK.astype(pages.values.dtype), slots_T))
    values, scales = quantize_rows(new_TGK)
    return Pages(_written(pages.values, values, slots_T), _written(pages.scales[..., None], scales, slots_T)[..., 0])


def _written(pool, new, slots_T):
    if not compiled("cpu.attention"):
        return write_reference(pool, new, slots_T)
    call = jax.ffi.ffi_call("lm_write_pages", jax.ShapeDtypeStruct(pool.shape, pool.dtype), input_output_aliases={0: 0})
    return call(pool, new, slots_T.astype(jnp.int32))


def write_reference(pool: jax.Array, new_TGK: jax.Array, slots_T: jax.Array) -> jax.Array:
    """Plain twin of `write_pages` for one array: a scatter."""
    flat = pool.reshape(-1, *pool.shape[2:])
    places = jnp.where(slots_T < 0, flat.shape[0], slots_T)
    return flat.at[places].set(new_TGK, mode="drop", unique_indices=True).reshape(pool.shape)


def paged_attention(
    q_THK: jax.Array,
    k: Pages,
    v: Pages | None,
    tables_RP: jax.Array,
    rows_T: jax.Array,
    places_T: jax.Array,
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    sinks_H: jax.Array | None = None,
    value_size: int = 0,
) -> jax.Array:
    """Return float32 [T, H, V]: for each token the mixture of the values that it sees.

    A token at place p of its sequence sees places 0 … p, with a window the last `window` of these. Their keys and values,
    its own too, must have been written. Its result does not depend on the other tokens, to the bit. Tokens of a sequence
    are faster as neighbours.

    Args:
      q_THK: any float dtype. k, v: pools with the same pages; v None: the values are the first `value_size` elements of the
        keys (multi-head latent attention, whose one head holds latent and rotated key).
      tables_RP: int32, page ids of each sequence. Entries that hold nothing a token sees are not used.
      rows_T: int32, the sequence of each token; −1 is padding, whose result is 0. places_T: int32.
      scale, softcap, sinks_H: as in lm/kernels/attention.py.
    """
    if not compiled("cpu.attention"):
        options = dict(scale=scale, window=window, softcap=softcap, sinks_H=sinks_H, value_size=value_size)
        return paged_attention_reference(q_THK, k, v, tables_RP, rows_T, places_T, **options)
    v, V = (k, value_size) if v is None else (v, v.values.shape[-1])
    nothing = jnp.zeros((0,), jnp.bfloat16)
    scales = [nothing if pages.scales is None else pages.scales for pages in (k, v)]
    sinks = jnp.zeros((0,), jnp.float32) if sinks_H is None else sinks_H.astype(jnp.float32)
    tables = (x.astype(jnp.int32) for x in (tables_RP, rows_T, places_T))
    out = jax.ShapeDtypeStruct((*q_THK.shape[:2], V), jnp.float32)
    call = jax.ffi.ffi_call("lm_paged_attention", out)
    attributes = dict(scale=np.float32(scale), softcap=np.float32(softcap), window=np.int32(window))
    return call(q_THK.astype(jnp.float32), k.values, v.values, *scales, *tables, sinks, **attributes)


def paged_attention_reference(
    q_THK, k, v, tables_RP, rows_T, places_T, *, scale, window=0, softcap=0.0, sinks_H=None, value_size=0
) -> jax.Array:
    """Plain twin of `paged_attention`: gathers all pages of each token's sequence, for a few tokens at a time."""
    G = k.values.shape[2]

    def floats(pages, table):
        values, scales = pages.values[table], None if pages.scales is None else pages.scales[table]
        x = values.astype(jnp.float32) if scales is None else dequantize_rows(values, scales[..., None])
        return x.reshape(-1, *x.shape[2:])

    def one(token):
        q_HK, row, place = token
        table = jnp.clip(jnp.asarray(tables_RP)[row], 0, k.values.shape[0] - 1)
        k_SGK = floats(k, table)
        v_SGV = k_SGK[..., :value_size] if v is None else floats(v, table)
        places_S = jnp.arange(k_SGK.shape[0])
        seen_S = (places_S <= place) & (places_S > place - window if window else True)
        q_GRK = q_HK.astype(jnp.float32).reshape(G, -1, q_HK.shape[-1])
        scores = softcapped(scale * jnp.einsum("grk,sgk->grs", q_GRK, k_SGK), softcap)
        scores = jnp.where(seen_S, scores, MASKED)
        logz = jax.nn.logsumexp(scores, axis=-1, keepdims=True)
        if sinks_H is not None:
            logz = jnp.logaddexp(logz, sinks_H.astype(jnp.float32).reshape(G, -1, 1))
        mixed = jnp.einsum("grs,sgv->grv", jnp.exp(scores - logz), jnp.where(seen_S[:, None, None], v_SGV, 0))
        return jnp.where(row < 0, 0, mixed.reshape(-1, mixed.shape[-1]))

    return lax.map(one, (q_THK, rows_T, places_T), batch_size=16)
