"""Attention to pages on a TPU: JAX's ragged kernel, which reads only the pages that a sequence has, prompts beside decoding.

It wants keys and values in one pool, as alternating heads of LANES numbers; smaller heads are padded, as a TPU's memory would
pad them anyway. A pool of that kind exists only where `combined_size` says that the kernel computes the model's attention.

Axes: T tokens of this step, H query heads, G key/value heads, K head size, R sequences, P pages of a sequence, S sequences that
have tokens in this step.
"""

import contextlib
import re

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas.ops.tpu.ragged_paged_attention import ragged_paged_attention
from jax.typing import DTypeLike

from lm.kernels.attention import Scoring
from lm.kernels.cpu.pages import Pages, Places
from lm.parallel.mesh import ways

LANES = 128  # the only head size that the kernel can load
TILE = 8  # heads: a divisor or a multiple of this fills the tiles of memory
QUERIES, KEYS = 32, 1024  # tokens of a block: the usual ones of JAX's table of measured sizes


def combined_size(heads: int, size: int, dtype: DTypeLike, sinks: bool) -> int:
    """Return LANES if the kernel computes attention to `heads` key/value heads of `size`; else 0.

    It has neither sinks nor scales of integers.
    """
    heads //= ways("kv_heads")
    fits = heads > 0 and (TILE % heads == 0 or heads % TILE == 0)
    return LANES if fits and size <= LANES and not sinks and jnp.issubdtype(dtype, jnp.floating) else 0


def combined_attention(
    q_THK: jax.Array, pages: Pages, places: Places, scoring: Scoring, *, interpret: bool = False
) -> jax.Array:
    """Compute lm.kernels.ops.combined_attention. interpret: run without a TPU, slowly."""
    T, H, K = q_THK.shape
    pool, rows_T, places_T = pages.values, jnp.asarray(places.rows_T), jnp.asarray(places.places_T)
    tables_RP, page = jnp.asarray(places.tables_RP), pool.shape[1]
    S, P = min(T, len(tables_RP)), tables_RP.shape[1]
    # The kernel begins to read the pages of the first sequence whether there is one or not, so padding stands for it.
    tokens = jnp.maximum(1, jnp.sum(rows_T >= 0))
    begins_T = jnp.arange(T) < tokens
    begins_T &= (rows_T != jnp.roll(rows_T, 1)).at[0].set(True)
    first_S = jnp.nonzero(begins_T, size=S, fill_value=tokens)[0]
    first_S1 = jnp.append(first_S, tokens).astype(jnp.int32)
    last_S = jnp.clip(first_S1[1:] - 1, 0)
    with jax.named_scope(f"ragged_T{T}_H{H}_S{len(tables_RP)}_P{P * page}"):  # for kernel_cost
        with pltpu.force_tpu_interpret_mode() if interpret else contextlib.nullcontext():
            out_THK = ragged_paged_attention(
                q_THK.astype(pool.dtype),
                pool,
                places_T[last_S] + 1,
                tables_RP[jnp.clip(rows_T[last_S], 0)],
                first_S1,
                jnp.sum(begins_T, keepdims=True).astype(jnp.int32),
                sm_scale=scoring.scale,
                sliding_window=scoring.window or None,
                soft_cap=scoring.softcap or None,
                num_kv_pages_per_block=max(1, min(P, KEYS // page)),
                num_queries_per_block=min(T, QUERIES),
            )
    return jnp.where((rows_T >= 0)[:, None, None], out_THK.astype(jnp.float32), 0)


def kernel_cost(name: str, text: str) -> tuple[int, int]:
    """Return the FLOPs of a kernel of `combined_attention` in a compiled program, and the bytes of pages that it reads.

    They are those of a full cache, whose pages all sequences share evenly. (0, 0) for any other kernel.
    name, text: of the instruction, as XLA prints them.
    """
    found = re.search(r"ragged_T(\d+)_H(\d+)_S(\d+)_P(\d+)", text)
    pool = re.search(rf"(?:bf|f)(\d+)\[(\d+),(\d+),(\d+),{LANES}\]", text)
    if not name.startswith("%ragged_paged_attention") or not found or not pool:
        return 0, 0
    (T, H, S, longest), (bits, count, page, heads) = map(int, found.groups()), map(int, pool.groups())
    keys = min(longest, max(1, count * page // S))
    return T * H * keys * 2 * 2 * LANES, min(S, T) * keys * heads * LANES * bits // 8
