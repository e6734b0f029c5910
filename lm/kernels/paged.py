"""Attention to keys and values in pages, and writing into them.

A page holds `page` adjacent tokens of one sequence; a table lists the pages of each sequence in order, so token t of sequence r
is in page tables[r, t // page] at place t % page. Pages may be shared by sequences with the same beginning.

Axes: B query tokens of any sequences, R sequences, N pages of a sequence, P pages in all, H query heads, G key/value heads,
K head size of queries and keys, V head size of values, S = N·page keys.
"""

import jax
import jax.numpy as jnp
from jax import lax

from lm.kernels.attention import MASKED
from lm.kernels.head import softcapped
from lm.kernels.matmul import product, spec_of
from lm.parallel.mesh import reshard, spec


def paged_attention(
    q_BHK, k_pages, v_pages, tables_RN, row_B, place_B, *, scale: float, window: int = 0, softcap: float = 0.0, sinks_H=None
) -> jax.Array:
    """Return softmax(scale·q·kᵀ)·v of each query over the keys of its own sequence at or before its place, [B, H, V].

    Args:
      q_BHK: float; the products use float32 accumulation. k_pages: [P, page, G, K]; v_pages: [P, page, G, V]; float.
      tables_RN: int32, page ids. row_B: int32, the sequence of each query. place_B: int32, its place in the sequence.
      window, softcap, sinks_H: as for `lm.kernels.attention.attention`.
    The result of a query depends on its own sequence only. Every page in a table is read, also those after the last token.
    """
    (B, H, K), (_, page, G, V) = q_BHK.shape, v_pages.shape
    S = tables_RN.shape[1] * page

    def of_queries(pages):
        """Return the pages of each query's sequence, [B, S, G, …]."""
        where = spec("batch", None, None, None, None) if spec_of(pages) is None else spec(None, None, None, "kv_heads", None)
        found = pages.at[tables_RN[row_B]].get(out_sharding=where if spec_of(pages) is not None else None)
        return lax.reshape(
            found, (B, S, G, pages.shape[-1]), out_sharding=spec_of(found) and spec(None, None, "kv_heads", None)
        )

    q_BGRK = lax.reshape(q_BHK, (B, G, H // G, K), out_sharding=spec_of(q_BHK) and spec(None, "kv_heads", None, None))
    scores = softcapped(scale * product("bgrk,bsgk->bgrs", q_BGRK, of_queries(k_pages).astype(q_BHK.dtype)), softcap)
    distance_BS = place_B[:, None] - jnp.arange(S)
    seen_BS = distance_BS >= 0
    if window:
        seen_BS &= distance_BS < window
    scores = jnp.where(seen_BS[:, None, None], scores, MASKED)
    top = jnp.max(scores, axis=-1, keepdims=True)
    if sinks_H is not None:
        sinks = lax.reshape(reshard(sinks_H, "heads").astype(jnp.float32), (G, H // G, 1))
        top = jnp.maximum(top, sinks)
    p = jnp.exp(scores - top)
    z = jnp.sum(p, axis=-1, keepdims=True)
    if sinks_H is not None:
        z += jnp.exp(sinks - top)
    out = product("bgrs,bsgv->bgrv", p.astype(q_BHK.dtype), of_queries(v_pages).astype(q_BHK.dtype)) / z
    return lax.reshape(out.astype(q_BHK.dtype), (B, H, V), out_sharding=spec_of(q_BHK))


def write_pages(pages, new_BGK, slot_B) -> jax.Array:
    """Return the pages [P, page, G, K] with new tokens at their slots, page id · page + place; slot −1: not written."""
    P, page = pages.shape[:2]
    slot_B = jnp.where(slot_B < 0, P * page, slot_B)  # out of bounds, so dropped
    return pages.at[slot_B // page, slot_B % page].set(new_BGK.astype(pages.dtype), mode="drop")
