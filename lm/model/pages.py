"""The paged cache of an engine: keys and values of all its sequences in pages (Kwon et al. 2023, "PagedAttention").

Axes: B tokens of any sequences, R sequences, N pages of a sequence, P pages, G key/value heads, K head size.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lm.config import ModelConfig
from lm.kernels.matmul import spec_of
from lm.kernels.paged import paged_attention, write_pages
from lm.kernels.quantize import dequantize_rows, quantize_rows
from lm.model.cache import cache_dtype
from lm.parallel.mesh import spec


class Pages(NamedTuple):
    """The pages of one layer; arrays of a stack of layers have its repeats as their first axis.

    values: grouped-query {"k": [P, page, G, K], "v": [P, page, G, V]}; latent attention {"k": [P, page, 1, R + K]}, the latent
      and the rotated key of a token, of which the latent is also the value.
    scales: with int8 values an entry [P, page, G, 1] for each array; else empty.
    """

    values: dict[str, jax.Array]
    scales: dict[str, jax.Array]


class PageTable(NamedTuple):
    """Where the B tokens of a call belong. All int32.

    tables_RN: page ids of each sequence. row_B: sequence of each token. place_B: its place there. slot_B: where its key and
    value go, page id · page + place in the page; −1: nowhere (padding). length_B: length of the sequence that sets the angles
    of the token's rotation, if they depend on it (dynamic NTK, LongRoPE).
    """

    tables_RN: jax.Array
    row_B: jax.Array
    place_B: jax.Array
    slot_B: jax.Array
    length_B: jax.Array


class PagedState(NamedTuple):
    """The pages of all layers, as lm.model.cache.DecodeState has its caches, and the table of this call."""

    layers: tuple[tuple[Pages | tuple[Pages, ...], ...], ...]
    table: PageTable


def page_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Return (heads, size) of each array that a layer keeps of a token, by name."""
    if config.mla.kv_rank:
        return {"k": (1, config.mla.kv_rank + config.mla.rope_head_dim)}
    return dict.fromkeys(("k", "v"), (config.num_kv_heads, config.head_dim))


def empty_pages(config: ModelConfig, count: int, page: int, dtype: str = "") -> tuple[tuple, ...]:
    """Return `layers` of a PagedState with `count` pages of `page` tokens.

    dtype: "int8", "bfloat16" or "float32"; "": the dtype of other caches.
    """
    kept = dtype or cache_dtype(config)

    def pages(repeats: tuple[int, ...]) -> Pages:
        where = spec(*[None] * len(repeats), None, None, None if config.mla.kv_rank else "kv_heads", None)
        shapes = {name: (*repeats, count, page, *shape) for name, shape in page_shapes(config).items()}
        values = {name: jnp.zeros(shape, kept, out_sharding=where) for name, shape in shapes.items()}
        scales = {name: jnp.zeros((*s[:-1], 1), jnp.bfloat16, out_sharding=where) for name, s in shapes.items()}
        return Pages(values, scales if dtype == "int8" else {})

    def of_stack(repeats: int):
        return pages((repeats,)) if config.scan_layers else tuple(pages(()) for _ in range(repeats))

    return tuple(tuple(of_stack(repeats) for _ in block) for block, repeats in config.stacks)


def page_bytes(config: ModelConfig, page: int, dtype: str = "") -> int:
    """Return the bytes of one page in all layers and on all devices."""
    each = 1 if dtype == "int8" else jnp.dtype(dtype or cache_dtype(config)).itemsize
    scale = 2 if dtype == "int8" else 0
    return config.num_layers * page * sum(heads * (size * each + scale) for heads, size in page_shapes(config).values())


def write(pages: Pages, new: dict[str, jax.Array], table: PageTable) -> Pages:
    """Return the pages with the arrays [B, G, K] of the call's tokens."""
    if not pages.scales:
        return pages._replace(values={name: write_pages(pages.values[name], x, table.slot_B) for name, x in new.items()})
    rows = {name: quantize_rows(x) for name, x in new.items()}
    values = {name: write_pages(pages.values[name], x, table.slot_B) for name, (x, _) in rows.items()}
    return Pages(values, {name: write_pages(pages.scales[name], scale, table.slot_B) for name, (_, scale) in rows.items()})


def attend(q_BHK, pages: Pages, table: PageTable, value_size: int = 0, **options) -> jax.Array:
    """Return `paged_attention` to the pages. value_size: the values are that many first numbers of the keys; 0: their own."""

    def read(name):
        if pages.scales:
            return dequantize_rows(pages.values[name], pages.scales[name]).astype(q_BHK.dtype)
        return pages.values[name]

    k = read("k")
    v = k[..., :value_size] if value_size else read("v")
    return paged_attention(q_BHK, k, v, table.tables_RN, table.row_B, table.place_B, **options)


def squeezed(x_B1GK: jax.Array) -> jax.Array:
    """Return [B, G, K]: in a call with pages every token is a row of its own."""
    B, _, G, K = x_B1GK.shape
    where = spec_of(x_B1GK)
    return jax.lax.reshape(x_B1GK, (B, G, K), out_sharding=where and jax.sharding.PartitionSpec(where[0], *where[2:]))
