"""The paged cache of an engine: keys and values of all its sequences in pages (Kwon et al. 2023, "PagedAttention").

On a mesh the tokens, sequences and pages are split into shards by the axes of a batch, and heads by the tensor axis. Numbers of
pages, sequences and slots count within the shard, so neither writing nor attention sends anything.

Axes: B tokens of any sequences, R sequences, N pages of a sequence, P pages, G key/value heads, K head size.
"""

import dataclasses
import functools
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from lm.config import LayerKind, ModelConfig
from lm.errors import UserError
from lm.kernels.attention import Scoring
from lm.kernels.cpu.pages import Pages, Places
from lm.kernels.native.registered import compiled
from lm.kernels.ops import combined_attention, combined_size, paged_attention, write_pages
from lm.model.cache import cache_dtype
from lm.model.indexer import Sought, chosen_slots
from lm.model.states import State, empty_states
from lm.parallel.arrays import AnyArray, PyTree
from lm.parallel.mesh import spec, spec_of

if TYPE_CHECKING:
    from lm.model.inputs import Step


class PageTable(NamedTuple):
    """Where the B tokens of a call belong. All int32.

    tables_RN: page ids of each sequence. row_B: sequence of each token, −1 for padding. place_B: its place there. slot_B: where
    its key and value go, page id · page + place in the page; −1: nowhere. length_B: length of the sequence that sets the angles
    of the token's rotation, if they depend on it (dynamic NTK, LongRoPE). states_B2: numbers of the state that the token
    continues and of the one that it leaves, for layers that have states.
    """

    tables_RN: AnyArray
    row_B: AnyArray
    place_B: AnyArray
    slot_B: AnyArray
    length_B: AnyArray
    states_B2: AnyArray


@functools.partial(jax.tree_util.register_dataclass, data_fields=("pools",), meta_fields=("latent",))
@dataclasses.dataclass(frozen=True)
class PagedCache:
    """The pages of one layer; arrays of a stack of layers have its repeats as their first axis.

    pools: grouped-query attention: k of G heads of size K, v; or where a kernel wants it, kv of 2·G heads, keys and values in
      turn, whose size may be padded. Latent attention: k of one head, which holds the latent and the rotated key; the latent is
      also the value; and index, the key of an indexer, if there is one. latent: its size R, or 0.
    """

    pools: dict[str, Pages]
    latent: int = 0

    def write(self, new: dict[str, jax.Array], step: "Step") -> "PagedCache":
        """Return the pages with the arrays [B, 1, G, K] of the call's tokens."""
        assert step.table is not None
        if self.latent:
            index = {"index": new["index"]} if "index" in new else {}
            new = {"k": jnp.concatenate((new["latent"], new["key"]), axis=-1), **index}
        new = {name: _squeezed(x) for name, x in new.items()}

        def local(pools: dict[str, Pages], new: dict[str, jax.Array], slot_B: AnyArray) -> dict[str, Pages]:
            if "kv" in pools:
                new = {"kv": _combined(new["k"], new["v"], pools["kv"].values.shape[-1])}
            return {name: write_pages(pools[name], x, slot_B) for name, x in new.items()}

        if spec() is None:
            return dataclasses.replace(self, pools=local(self.pools, new, step.table.slot_B))
        of_pools, of_new = _specs(self.pools), {name: spec("batch", _heads_axis(self.pools), None) for name in new}
        mapped = jax.shard_map(local, in_specs=(of_pools, of_new, spec("batch")), out_specs=of_pools, check_vma=False)
        return dataclasses.replace(self, pools=mapped(self.pools, new, step.table.slot_B))

    def attend(
        self, q_B1HK: jax.Array, step: "Step", scoring: Scoring, sinks_H: jax.Array | None = None, sought: Sought | None = None
    ) -> jax.Array:
        """Return the attention of queries to the pages, or to the keys in them that are sought, [B, 1, H, V] in q's dtype.

        Each device has some of the heads.
        """
        of_index = None if sought is None else (sought.q_BTHK, sought.weight_BTH)

        def local(
            q_BHK: jax.Array,
            pools: dict[str, Pages],
            places: Places,
            sinks_H: jax.Array | None,
            of_index: tuple[jax.Array, jax.Array] | None,
        ) -> jax.Array:
            page = next(iter(pools.values())).values.shape[1]
            if sought is not None and of_index is not None and sought.topk < page * places.tables_RP.shape[1]:
                places = chosen_slots(Sought(*of_index, sought.topk), pools["index"], places)
                pools = {"k": Pages(pools["k"].values.reshape(-1, 1, 1, q_BHK.shape[-1]))}
            if "kv" in pools:
                padded = _padded(q_BHK, pools["kv"].values.shape[-1])
                return combined_attention(padded, pools["kv"], places, scoring)[..., : q_BHK.shape[-1]]
            return paged_attention(q_BHK, pools["k"], pools.get("v"), places, scoring, sinks_H, self.latent)

        table = step.table
        assert table is not None
        q_BHK, places = _squeezed(q_B1HK), Places(table.tables_RN, table.row_B, table.place_B)
        if spec() is None:
            out_BHV = local(q_BHK, self.pools, places, sinks_H, of_index)
        else:
            heads = spec("batch", "heads", None)
            rows = None if sought is None else spec("batch")
            specs = (heads, _specs(self.pools), spec("batch"), None if sinks_H is None else spec("heads"), rows)
            mapped = jax.shard_map(local, in_specs=specs, out_specs=heads, check_vma=False)
            out_BHV = mapped(q_BHK, self.pools, places, sinks_H, of_index)
        return out_BHV.astype(q_B1HK.dtype)[:, None]


PagedLayer = PagedCache | State
PagedLayers: TypeAlias = tuple[tuple[PagedLayer | None | tuple[PagedLayer | None, ...], ...], ...]


class PagedState(NamedTuple):
    """The pages of all layers, as lm.model.cache.DecodeState has its caches, and the table of this call.

    A layer with a state has some of these instead, for states_B2; one that takes the keys of another has None. Without scanned
    layers there is a tuple of caches for each position of a block.
    """

    layers: PagedLayers
    table: PageTable

    def after(self, layers: tuple[PyTree, ...], T: int) -> "PagedState":
        """Return the state with these pages."""
        return self._replace(layers=layers)


def page_shapes(config: ModelConfig, dtype: DTypeLike) -> dict[str, tuple[int, int]]:
    """Return (heads, size) of each array that a layer keeps of a token, by name. dtype: in which it keeps them."""
    if config.mla.index_topk and jnp.dtype(dtype) == jnp.int8:
        raise UserError(f"cache_dtype=int8 would change which keys model.mla.index_topk={config.mla.index_topk} chooses")
    if config.mla.kv_rank:
        index = {"index": (1, config.mla.index_head_dim)} if config.mla.index_topk else {}
        return {"k": (1, config.mla.kv_rank + config.mla.rope_head_dim), **index}
    beyond = config.attention_sinks or config.chunked or bool(config.attention)  # what the kernel of such a pool computes
    if size := combined_size(config.num_kv_heads, config.head_dim, dtype, beyond):
        return {"kv": (2 * config.num_kv_heads, size)}
    return dict.fromkeys(("k", "v"), (config.num_kv_heads, config.head_dim))


def reads_few_pages(config: ModelConfig, dtype: str = "") -> bool:
    """Return whether attention reads only pages that tokens see, however wide their table is. dtype: as in `empty_layers`.

    An indexer scores all columns of the table.
    """
    if config.mla.index_topk:
        return False
    return compiled("cpu.attention") or "kv" in page_shapes(config, dtype or cache_dtype(config))


def empty_layers(config: ModelConfig, count: int, page: int, dtype: str = "", rows: int = 1) -> PagedLayers:
    """Return `layers` of a PagedState with `count` pages of `page` tokens, and states of `rows` sequences.

    On a mesh its shards have equal parts of them. dtype: of pages, "int8", "bfloat16" or "float32"; "": that of other caches.
    """
    kept = jnp.dtype(dtype or cache_dtype(config))
    heads_axis = None if config.mla.kv_rank else "kv_heads"

    def pool(repeats: tuple[int, ...], heads: int, size: int) -> Pages:
        before = [None] * len(repeats)
        where = spec(*before, "batch", None, heads_axis, None)
        values = jnp.zeros((*repeats, count, page, heads, size), kept, out_sharding=where)
        if kept != jnp.int8:
            return Pages(values)
        where = spec(*before, "batch", None, heads_axis)
        return Pages(values, jnp.zeros((*repeats, count, page, heads), jnp.bfloat16, out_sharding=where))

    def of_layer(kind: LayerKind, repeats: tuple[int, ...]) -> PagedLayer | None:
        if kind.recurrent:
            return empty_states(config, kind.recurrent, rows, repeats)
        if kind.takes:
            return None
        pools = {name: pool(repeats, *shape) for name, shape in page_shapes(config, kept).items()}
        return PagedCache(pools, config.mla.kv_rank)

    def of_stack(kind: LayerKind, repeats: int) -> PagedLayer | None | tuple[PagedLayer | None, ...]:
        return of_layer(kind, (repeats,)) if config.scan_layers else tuple(of_layer(kind, ()) for _ in range(repeats))

    return tuple(tuple(of_stack(kind, repeats) for kind in block) for block, repeats in config.stacks)


def page_bytes(config: ModelConfig, page: int, dtype: str = "") -> int:
    """Return the bytes of one page in all layers and on all devices."""
    kept = jnp.dtype(dtype or cache_dtype(config))
    scale = 2 if kept == jnp.int8 else 0
    shapes = page_shapes(config, kept).values()
    return config.attention_layers * page * sum(heads * (size * kept.itemsize + scale) for heads, size in shapes)


def _heads_axis(pools: dict[str, Pages]) -> str | None:
    """Return the logical axis of the heads. Latent attention has one for all query heads, so every device holds it."""
    return None if pools.keys() <= {"k", "index"} else "kv_heads"


def _specs(pools: dict[str, Pages]) -> PyTree:
    """Return the partitions of the pages' values [P, page, G, K] and scales [P, page, G]."""
    axis = _heads_axis(pools)
    return jax.tree.map(lambda x: spec("batch", None, axis, *[None] * (x.ndim - 3)), pools)


def _combined(k_BGK: jax.Array, v_BGK: jax.Array, size: int) -> jax.Array:
    """Return keys and values as the heads of a combined pool of this head size."""
    B, G, _ = k_BGK.shape
    return _padded(jnp.stack((k_BGK, v_BGK), axis=2).reshape(B, 2 * G, -1), size)


def _padded(x_BHK: jax.Array, size: int) -> jax.Array:
    return jnp.pad(x_BHK, ((0, 0), (0, 0), (0, size - x_BHK.shape[-1])))


def _squeezed(x_B1GK: jax.Array) -> jax.Array:
    """Return [B, G, K]: in a call with pages every token is a row of its own."""
    B, _, G, K = x_B1GK.shape
    where = spec_of(x_B1GK)
    return jax.lax.reshape(x_B1GK, (B, G, K), out_sharding=where and jax.sharding.PartitionSpec(where[0], *where[2:]))
