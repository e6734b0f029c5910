"""The decoder: embedding, a stack of like layers, a norm and a head.

Axes: B batch, T time, D model, V vocabulary, L layers, S cache slots.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_policies

from lm.config import ModelConfig
from lm.kernels.attention import causal_mask
from lm.kernels.matmul import matmul
from lm.model.attention import Attention, Cache
from lm.model.feed_forward import SwiGLU
from lm.model.initializers import STD, normal
from lm.model.norms import RMSNorm
from lm.model.positions import rotary_angles
from lm.parallel.mesh import reshard, spec

REMAT_POLICIES = {
    "none": checkpoint_policies.everything_saveable,
    "matmuls": checkpoint_policies.save_only_these_names("matmul"),
    "full": checkpoint_policies.nothing_saveable,
}


class DecodeState(NamedTuple):
    """What generation carries from call to call: every layer's cache, and which slots are filled by what.

    layers: Cache of [L, B, S, G, K]. segments_BS: int32, 0 for an empty or padding slot. slot: int32, the next free one.
    """

    layers: Cache
    segments_BS: jax.Array
    slot: jax.Array


class Layer(nnx.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.attention_norm = RMSNorm(config.embed_dim, config.norm_eps)
        self.attention = Attention(config, rngs)
        self.feed_forward_norm = RMSNorm(config.embed_dim, config.norm_eps)
        self.feed_forward = SwiGLU(config, rngs)

    def __call__(self, x_BTD, rotary, mask_BTS, cache=None, slot=None):
        mixed, cache = self.attention(self.attention_norm(x_BTD), rotary, mask_BTS, cache, slot)
        x_BTD = x_BTD + mixed
        return x_BTD + self.feed_forward(self.feed_forward_norm(x_BTD)), cache


class Transformer(nnx.Module):
    """Tokens to logits. `model(tokens_BT)` gives float32 logits; training asks for `hidden` and the head apart."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        V, D = config.vocab_size, config.embed_dim
        # What makes logits starts small enough that they are near 0 and the first loss near ln V at every width.
        std = min(STD, 0.4 * D**-0.5) if config.tie_embeddings else STD
        self.embedding = nnx.Param(normal(rngs, (V, D), std=std), out_sharding=("vocab", "embed"))

        @nnx.split_rngs(splits=config.num_layers)
        @nnx.vmap(in_axes=(0,), out_axes=0, transform_metadata={nnx.PARTITION_NAME: "layers"})
        def stack(rngs):
            return Layer(config, rngs)

        self.layers = stack(rngs)
        self.norm = RMSNorm(D, config.norm_eps)
        if not config.tie_embeddings:
            self.head = nnx.Param(normal(rngs, (V, D), std=min(STD, 0.2 * D**-0.5)), out_sharding=("vocab", "embed"))

    def __call__(self, tokens_BT, segment_ids_BT=None, positions_BT=None, state: DecodeState | None = None):
        """float32 logits [B, T, V]; with a decode state, (logits, the next state).

        tokens_BT: int. segment_ids_BT: int, tokens see only earlier tokens of their own segment, 0 is padding
        (default: all 1). positions_BT: int, default 0, 1, … (with a state: must be given).
        """
        x_BTD, state_out = self.hidden(tokens_BT, segment_ids_BT, positions_BT, state)
        logits = self.logits(x_BTD)
        return logits if state is None else (logits, state_out)

    def hidden(self, tokens_BT, segment_ids_BT=None, positions_BT=None, state=None):
        """Hidden states after the last norm, [B, T, D] in the compute dtype, and the next decode state (or None)."""
        config = self.config
        tokens_BT = jnp.asarray(tokens_BT)
        T = tokens_BT.shape[1]
        segment_ids_BT = jnp.ones_like(tokens_BT) if segment_ids_BT is None else segment_ids_BT
        if positions_BT is None:
            positions_BT = jnp.zeros_like(tokens_BT) + jnp.arange(T, dtype=tokens_BT.dtype)
        start = 0 if state is None else state.slot
        key_segments_BS = segment_ids_BT
        if state is not None:
            key_segments_BS = lax.dynamic_update_slice_in_dim(state.segments_BS, segment_ids_BT, start, axis=1)
        rotary, mask_BTS = once(
            lambda positions_BT, segments_BT, slots_T: (
                rotary_angles(positions_BT, config.head_dim, config.rope_theta),
                causal_mask(segments_BT, key_segments_BS, slots_T),
            ),
            positions_BT, segment_ids_BT, start + jnp.arange(T),
        )  # fmt: skip

        table = reshard(self.embedding[...].astype(config.compute_dtype), "vocab", None)
        x_BTD = table.at[tokens_BT].get(out_sharding=spec("batch", "length", None))
        x_BTD, caches = self._stack(x_BTD, rotary, mask_BTS, state)
        x_BTD = self.norm(x_BTD)
        return x_BTD, None if state is None else DecodeState(caches, key_segments_BS, start + T)

    def logits(self, x_BTD):
        """float32 logits of hidden states."""
        compute = self.config.compute_dtype
        y = matmul("btd,vd->btv", x_BTD, self.head_VD, dtype=compute, out=("batch", "length", "vocab"))
        return y.astype(jnp.float32)

    @property
    def head_VD(self) -> jax.Array:
        return self.embedding[...] if self.config.tie_embeddings else self.head[...]

    def _stack(self, x_BTD, rotary, mask_BTS, state):
        graph, params = nnx.split(self.layers)

        def apply(x, layer):
            layer_params, cache = layer
            return nnx.merge(graph, layer_params)(x, rotary, mask_BTS, cache, None if state is None else state.slot)

        if state is None:
            apply = jax.checkpoint(apply, policy=REMAT_POLICIES[self.config.remat], prevent_cse=not self.config.scan_layers)
        layers = (params, None if state is None else state.layers)
        return lax.scan(apply, x_BTD, layers, unroll=1 if self.config.scan_layers else self.config.num_layers)


def once(f, positions_BT, segments_BT, slots_T):
    """f of these arrays, its results [B, T, …] written out, in two halves of T.

    The compiler would otherwise fuse what f does into every layer that reads it and work it out anew there; it does not
    fuse the results of a loop. On a CPU that is a quarter of a training step.
    """
    T = slots_T.shape[0]
    if T % 2:
        return f(positions_BT, segments_BT, slots_T)

    def halves(x):
        return jnp.moveaxis(x.reshape(x.shape[0], 2, T // 2), 1, 0)

    parts = lax.map(lambda x: f(*x), (halves(positions_BT), halves(segments_BT), slots_T.reshape(2, T // 2)))
    return jax.tree.map(lambda y: jnp.moveaxis(y, 0, 1).reshape(y.shape[1], T, *y.shape[3:]), parts)


def empty_state(config: ModelConfig, batch: int, slots: int) -> DecodeState:
    """A decode state of `slots` free slots for `batch` rows: 2·L·B·S·G·K elements of the compute dtype."""
    shape = (config.num_layers, batch, slots, config.num_kv_heads, config.head_dim)
    zeros = jnp.zeros(shape, config.compute_dtype)
    return DecodeState(Cache(zeros, zeros), jnp.zeros((batch, slots), jnp.int32), jnp.zeros((), jnp.int32))


def build(config: ModelConfig, seed: int) -> nnx.State:
    """Freshly initialised parameters, a pure function of (config, seed): the same on every mesh. Trace it under jit."""
    with nnx.use_eager_sharding(False):
        return nnx.split(Transformer(config, nnx.Rngs(params=seed)))[1]


def skeleton(config: ModelConfig):
    """(graph, abstract parameters): what `nnx.merge` needs beside real parameters, and their shapes and axes."""
    with nnx.use_eager_sharding(False):
        return nnx.split(nnx.eval_shape(lambda: Transformer(config, nnx.Rngs(params=0))))
