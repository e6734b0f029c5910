"""The cache of rows that go on from the same tokens: scores of choices, and answers to one prompt in an update.

Only this module creates, reads and changes it. What generates has pages (lm/model/pages.py). A cache of either kind has two
methods: `write` adds the keys and values of a call's tokens, and `attend` lets queries see all that was written.

Axes: B batch, T time, S cache slots, G key/value heads, K head size, R latent size.
"""

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from lm.config import LayerKind, ModelConfig
from lm.kernels.attention import Scoring
from lm.kernels.ops import attention, cached_attention
from lm.model.indexer import Sought, narrowed
from lm.model.states import State, empty_states
from lm.parallel.arrays import PyTree
from lm.parallel.mesh import platform, spec, spec_of

if TYPE_CHECKING:
    from lm.model.inputs import Step


class Cache(NamedTuple):
    """The cache of one layer; arrays of a stack of layers have its repeats as their first axis.

    values: grouped-query {"k": [B, G, S, K], "v": [B, G, S, K]}; latent {"latent": [B, 1, S, R], "key": [B, 1, S, K]}, the
      rotated key, and with an indexer "index" [B, 1, S, K], its key. The slots of a head are adjacent in memory, which products
      over them need.
    prefixes: caches of shared prefixes, the oldest first. Row p of one serves rows p·n … (p+1)·n − 1 of this cache.
    """

    values: dict[str, jax.Array]
    prefixes: tuple["Cache", ...] = ()

    def write(self, new: dict[str, jax.Array], step: "Step") -> "Cache":
        """Return the cache with [B, T, G, …] arrays written from `step.slot` on, which counts the slots of prefixes."""
        slot = step.slot - sum(next(iter(part.values.values())).shape[2] for part in self.prefixes)

        def put(old: jax.Array, x: jax.Array) -> jax.Array:
            return lax.dynamic_update_slice_in_dim(old, x.astype(old.dtype), slot, axis=2)

        return self._replace(values={name: put(self.values[name], jnp.swapaxes(x, 1, 2)) for name, x in new.items()})

    def attend(
        self, q_BTHK: jax.Array, step: "Step", scoring: Scoring, sinks_H: jax.Array | None = None, sought: Sought | None = None
    ) -> jax.Array:
        """Return the attention of queries to the cache, or to the keys of it that are sought, [B, T, H, V] in q's dtype.

        Of latents, queries must have W_key_up in them; V is the latent size.
        """
        assert step.visible is not None
        visible = step.visible
        if scoring.chunked:  # a window counts slots, also empty ones; the segments of `visible` say all of chunks
            scoring = scoring._replace(window=0)
        caches = (*self.prefixes, self)
        if sought is not None:
            of_parts = [part.values["index"][:, 0] for part in caches]
            of_rows = [repeat(x, len(of_parts[-1]) // len(x)) for x in of_parts]
            visible = narrowed(visible, sought, jnp.concatenate(of_rows, axis=1))
        parts = [part.keys_and_values() for part in caches]
        return cached_attention(q_BTHK, parts, visible, scoring, sinks_H)

    def keys_and_values(self) -> tuple[jax.Array, jax.Array]:
        """Return keys and values [B, G, S, …] without prefixes."""
        stored = self.values
        if "latent" in stored:
            return jnp.concatenate((stored["latent"], stored["key"]), axis=-1), stored["latent"]
        return stored["k"], stored["v"]


LayerCache = Cache | State


class Given(NamedTuple):
    """The keys and values of a layer to which later ones attend (model.shared_kv_layers), with the cache's two methods.

    cache: of the layer, a Cache or pages; None in training. k, v: [B, T, G, K] of the tokens of this call.
    """

    cache: Any
    k: jax.Array | None = None
    v: jax.Array | None = None

    def write(self, new: dict[str, jax.Array], step: "Step") -> "Given":
        return Given(None if self.cache is None else self.cache.write(new, step), new["k"], new["v"])

    def attend(self, q_BTHK: jax.Array, step: "Step", scoring: Scoring, sinks_H: jax.Array | None = None) -> jax.Array:
        """Return the attention of queries to the cache, or if the step does not read it, to this call's tokens alone."""
        if step.reads_cache:
            return self.cache.attend(q_BTHK, step, scoring, sinks_H)
        assert step.visible is not None and self.k is not None and self.v is not None
        return attention(q_BTHK, self.k, self.v, step.visible, scoring, sinks_H)


class DecodeState(NamedTuple):
    """The state of decoding between calls: the caches of all layers, and which slots are filled.

    layers: for each position in the block of each stack, a Cache (or State) of all repeats; without scanned layers a tuple of
      them, one for each repeat, so that each is written in place. None for a layer that takes the keys of another.
    segments_BS: int32, 0 for an empty or padding slot. positions_BS: int32, of each slot's token in its text.
    slot: int32, the next free slot; it counts the slots of prefixes.
    Keys are rotated when they are written. If angles depend on the length (dynamic NTK), later tokens do not rotate them again,
    as in transformers.
    """

    layers: tuple[tuple[LayerCache | None | tuple[LayerCache | None, ...], ...], ...]
    segments_BS: jax.Array
    positions_BS: jax.Array
    slot: jax.Array

    def filled(self, segments_BT: jax.Array, positions_BT: jax.Array, slot: jax.Array | int) -> "DecodeState":
        """Return the state in which the slots from `slot` on hold tokens of these segments and positions."""

        def put(old: jax.Array, new: jax.Array) -> jax.Array:
            return lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), slot, axis=1)

        segments_BS, positions_BS = put(self.segments_BS, segments_BT), put(self.positions_BS, positions_BT)
        return self._replace(segments_BS=segments_BS, positions_BS=positions_BS)

    def after(self, layers: tuple[PyTree, ...], T: int) -> "DecodeState":
        """Return the state after T more tokens. layers: the new caches."""
        return self._replace(layers=layers, slot=jnp.int32(self.slot + T))


def cache_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Return (heads, size) of each array that a layer keeps of a token, by name."""
    if config.mla.kv_rank:
        index = {"index": (1, config.mla.index_head_dim)} if config.mla.index_topk else {}
        return {"latent": (1, config.mla.kv_rank), "key": (1, config.mla.rope_head_dim), **index}
    return dict.fromkeys(("k", "v"), (config.num_kv_heads, config.head_dim))


def cache_spec(config: ModelConfig, rows: str | None, stacked: int = 0) -> P | None:
    """Return the sharding of a cache: rows as `rows` says, after `stacked` leading axes that are not split."""
    # All query heads share the one head of latent attention, so every device holds it whole.
    return spec(*[None] * stacked, rows, None if config.mla.kv_rank else "kv_heads", None, None)


def cache_dtype(config: ModelConfig) -> jnp.dtype:
    """Return the dtype of cached values: the compute dtype; on a CPU float32 for bfloat16.

    A CPU would convert all slots for each token, and XLA (jaxlib 0.10) compiles bfloat16 products over shared prefixes that it
    cannot run.
    """
    dtype = config.compute_dtype
    return jnp.dtype(jnp.float32) if platform() == "cpu" and dtype == jnp.bfloat16 else jnp.dtype(dtype)


def empty_cache(config: ModelConfig, batch: int, slots: int, repeats: tuple[int, ...] = ()) -> Cache:
    """Return a cache of zeros for one layer, or for n layers with repeats=(n,)."""
    kept, where = cache_dtype(config), cache_spec(config, "batch", len(repeats))
    shapes = {name: (*repeats, batch, heads, slots, size) for name, (heads, size) in cache_shapes(config).items()}
    return Cache({name: jnp.zeros(shape, kept, out_sharding=where) for name, shape in shapes.items()})


def empty_state(config: ModelConfig, batch: int, slots: int) -> DecodeState:
    """Return a decode state with `slots` free slots for `batch` rows."""

    def cache(kind: LayerKind, repeats: tuple[int, ...]) -> LayerCache | None:
        if kind.recurrent:
            return empty_states(config, kind.recurrent, batch, repeats)
        return None if kind.takes else empty_cache(config, batch, slots, repeats)

    def caches(kind: LayerKind, repeats: int) -> LayerCache | None | tuple[LayerCache | None, ...]:
        return cache(kind, (repeats,)) if config.scan_layers else tuple(cache(kind, ()) for _ in range(repeats))

    layers = tuple(tuple(caches(kind, repeats) for kind in block) for block, repeats in config.stacks)
    empty = functools.partial(jnp.zeros, (batch, slots), jnp.int32, out_sharding=spec("batch", None))
    return DecodeState(layers, empty(), empty(), jnp.int32(0))


def fork(state: DecodeState, config: ModelConfig, copies: int, slots: int) -> DecodeState:
    """Return a state with `copies` rows for each row of a full one, side by side, that share its slots as a prefix.

    state: without free slots. slots: free slots of each new row.
    """
    own = empty_state(config, state.segments_BS.shape[0] * copies, slots)

    def after(new: LayerCache, old: LayerCache) -> LayerCache:
        if isinstance(old, State):
            return jax.tree.map(lambda x: repeat(x, copies, axis=int(config.scan_layers)), old)
        assert isinstance(new, Cache)
        return new._replace(prefixes=(*old.prefixes, old._replace(prefixes=())))

    layers = jax.tree.map(after, own.layers, state.layers, is_leaf=lambda x: isinstance(x, LayerCache))
    pairs = (state.segments_BS, own.segments_BS), (state.positions_BS, own.positions_BS)
    segments_BS, positions_BS = (jnp.concatenate((repeat(old, copies), new), axis=1) for old, new in pairs)
    return DecodeState(layers, segments_BS, positions_BS, state.slot)


def repeat(x: jax.Array, times: int, axis: int = 0) -> jax.Array:
    """Return jnp.repeat(x, times, axis), sharded as x is."""
    where = spec_of(x)
    if times == 1:
        return x
    if where is None:
        return jnp.repeat(x, times, axis)
    shape = (*x.shape[: axis + 1], times, *x.shape[axis + 1 :])
    wide = jnp.broadcast_to(jnp.expand_dims(x, axis + 1), shape, out_sharding=P(*where[: axis + 1], None, *where[axis + 1 :]))
    return lax.reshape(wide, (*x.shape[:axis], x.shape[axis] * times, *x.shape[axis + 1 :]), out_sharding=where)
