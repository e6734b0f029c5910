"""The decoder: embedding, stacks of repeated blocks of layers, a norm and a head.

Axes: B batch, T time, D model, V vocabulary, S cache slots, E experts.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_policies
from jax.sharding import PartitionSpec as P

from lm.config import LayerKind, ModelConfig
from lm.kernels.attention import Branches, Visible
from lm.kernels.matmul import matmul, spec_of
from lm.model.attention import Cache, Step, attention_sublayer, empty_cache
from lm.model.feed_forward import FeedForward
from lm.model.initializers import STD, normal, parameter
from lm.model.linear import Linear, Score, scaled_output
from lm.model.moe import MoE, RouterStats
from lm.model.norms import layer_norm
from lm.model.positions import rotary_angles
from lm.parallel.mesh import reshard, spec

REMAT_POLICIES = {
    "none": checkpoint_policies.everything_saveable,
    "matmuls": checkpoint_policies.save_only_these_names("matmul"),
    "full": checkpoint_policies.nothing_saveable,
}


class DecodeState(NamedTuple):
    """What generation carries from call to call: every layer's cache, and which slots are filled by what.

    layers: of each position of each stack's block a Cache of all repeats, or, where layers are not scanned, one of each, so
    that it is written in place. segments_BS: int32, 0 for an empty or padding slot. slot: int32, the next free one; the number
    0 itself if there is nothing in it. Keys stay as they were turned when they came: where angles depend on the length (dynamic
    NTK), later tokens do not turn them anew, as in transformers; LongRoPE's one switch is up to the caller
    (lm/infer/decode.py).
    """

    layers: tuple[tuple[Cache, ...], ...]
    segments_BS: jax.Array
    slot: jax.Array


class Routing(NamedTuple):
    """What the routers report: two losses, summed over tokens and layers, and the load [n, E] or [E] of each, by its path."""

    balance: jax.Array
    z: jax.Array
    loads: dict[tuple, jax.Array]


class Hidden(NamedTuple):
    """What the layers make of tokens: x_BTD after the last norm, in the compute dtype; the next decode state, or None; and what
    the routers report, or None where there is none."""

    x_BTD: jax.Array
    state: DecodeState | None
    router: Routing | None


class Layer(nnx.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)); or the norms after the sublayers, or both (Gemma's sandwich)."""

    def __init__(self, config: ModelConfig, kind: LayerKind, rngs: nnx.Rngs):
        before, after = config.norm_position in ("pre", "sandwich"), config.norm_position in ("post", "sandwich")
        self.attention_norm = layer_norm(config) if before else None
        self.attention = attention_sublayer(config, rngs, config.window if kind.local else 0)
        self.post_attention_norm = layer_norm(config) if after else None
        self.feed_forward_norm = layer_norm(config) if before else None
        self.feed_forward = MoE(config, rngs) if kind.moe else FeedForward(config, rngs, config.mlp_dim)
        self.post_feed_forward_norm = layer_norm(config) if after else None

    def __call__(self, x_BTD, step: Step, cache: Cache | None = None):
        """(x, the layer's next cache or None, RouterStats or None)."""
        mixed_BTD, cache = self.attention(_normed(self.attention_norm, x_BTD), step, cache)
        x_BTD = x_BTD + _normed(self.post_attention_norm, mixed_BTD)
        y_BTD, router = _normed(self.feed_forward_norm, x_BTD), None
        if isinstance(self.feed_forward, MoE):
            y_BTD, router = self.feed_forward(y_BTD, step.valid_BT)
        else:
            y_BTD = self.feed_forward(y_BTD)
        return x_BTD + _normed(self.post_feed_forward_norm, y_BTD), cache, router


def _normed(norm, x_BTD):
    return x_BTD if norm is None else norm(x_BTD)


class AheadModule(nnx.Module):
    """One more token ahead (DeepSeek-V3, 2024, §2.2): layer(projection([norm(next token's embedding), norm(hidden)])).

    The embedding and the head are the model's own. What it gives goes through `norm` to the head and to the next, as what the
    model gives goes through its last norm: the paper leaves open where the norm stands, and so the published weights are used.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        D = config.embed_dim
        self.embedding_norm, self.hidden_norm = layer_norm(config), layer_norm(config)
        self.projection = Linear(config, rngs, "ahead.projection", "btc,cd->btd", (2 * D, D), ("norm", "embed"))
        self.layer = Layer(config, config.layer_kinds[-1], rngs)
        self.norm = layer_norm(config)

    def __call__(self, hidden_BTD, next_BTD, step: Step):
        both = jnp.concatenate((self.embedding_norm(next_BTD), self.hidden_norm(hidden_BTD)), axis=-1)
        return self.layer(self.projection(both), step)


class Transformer(nnx.Module):
    """Tokens to logits. `model(tokens_BT)` gives float32 logits; training asks for `hidden` and the head apart."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        V, D = config.vocab_size, config.embed_dim
        # What makes logits starts small enough that they are near 0 and the first loss near ln V at every width.
        width = config.mup_base_dim or D
        std = min(STD, 0.4 * width**-0.5) if config.tie_embeddings else STD
        self.embedding = parameter(normal(rngs, (V, D), std), ("vocab", "embed"), "embedding")
        if config.positions == "learned":
            shape = (config.max_positions, D)
            self.position_embedding = parameter(normal(rngs, shape), ("norm", "embed"), "embedding")

        self.stacks = nnx.List(
            nnx.List(stacked_layers(config, kind, repeats, rngs) for kind in block) for block, repeats in config.stacks
        )
        self.norm = layer_norm(config)
        if not config.tie_embeddings:
            self.head = parameter(normal(rngs, (V, D), min(STD, 0.2 * width**-0.5)), ("vocab", "embed"), "head")
        if config.mtp_depth:
            self.mtp = nnx.List([AheadModule(config, rngs) for _ in range(config.mtp_depth)])
        if config.score_head != "none":
            score = jnp.zeros((D,), jnp.float32) if config.score_head == "value" else normal(rngs, (D,))
            self.score = parameter(score, ("norm",), "head", Score)

    def __call__(self, tokens_BT, segment_ids_BT=None, positions_BT=None, state: DecodeState | None = None, layers=None):
        """float32 logits [B, T, V]; with a decode state, (logits, the next state).

        tokens_BT: int. segment_ids_BT: int, tokens see only earlier tokens of their own segment, 0 is padding
        (default: all 1). positions_BT: int, default 0, 1, … (with a state: must be given). layers: what `unstacked` gave, so
        that a loop around this need not take the stacks apart each time.
        """
        out = self.hidden(tokens_BT, segment_ids_BT, positions_BT, state, layers=layers)
        logits = self.logits(out.x_BTD)
        return logits if state is None else (logits, out.state)

    def hidden(
        self,
        tokens_BT,
        segment_ids_BT=None,
        positions_BT=None,
        state: DecodeState | None = None,
        noise_BTD=None,
        layers=None,
        branches: Branches | None = None,
    ) -> Hidden:
        """Hidden states after the last norm; arguments as for a call.

        noise_BTD is added to the embeddings. branches: of rows that hold several continuations.
        """
        x_BTD, _, state, router = self._layers(tokens_BT, segment_ids_BT, positions_BT, state, noise_BTD, layers, branches)
        return Hidden(self.norm(x_BTD), state, router)

    def unstacked(self) -> list:
        """The parameters of each layer of each stack, where layers are not scanned."""
        params = [tuple(nnx.split(module)[1] for module in stack) for stack in self.stacks]
        return [unstacked(one, repeats) for one, (_, repeats) in zip(params, self.config.stacks, strict=True)]

    def residual(self, tokens_BT, segment_ids_BT=None, positions_BT=None) -> jax.Array:
        """The residual stream after the last layer, before the norm: what μP keeps of one size as the model gets wider."""
        return self._layers(tokens_BT, segment_ids_BT, positions_BT, None)[0]

    def hidden_ahead(self, tokens_BT, targets_BT, segment_ids_BT, positions_BT, noise_BTD=None) -> tuple[Hidden, list[Hidden]]:
        """Hidden states of the model and of its modules that look ahead, for training.

        Module k = 1, 2, … at time t has read token t + k and predicts token t + k + 1. targets_BT: the token after each; what
        lies beyond the row's end counts as token 0, and the caller must give those places no weight.
        """
        x_BTD, steps, _, router = self._layers(tokens_BT, segment_ids_BT, positions_BT, None, noise_BTD)
        x_BTD, ahead = self.norm(x_BTD), []
        main = Hidden(x_BTD, None, router)
        step = steps[self.config.layer_kinds[-1].local]
        for k, module in enumerate(self.mtp if self.config.mtp_depth else ()):
            next_BT = targets_BT if k == 0 else jnp.pad(targets_BT[:, k:], ((0, 0), (0, k)))
            graph, params = nnx.split(module)

            def apply(params, *inputs, graph=graph):
                return nnx.merge(graph, params)(*inputs, step)

            policy = REMAT_POLICIES[self.config.remat]
            x_BTD, _, stats = jax.checkpoint(apply, policy=policy)(params, x_BTD, self._embedded(next_BT))
            x_BTD = module.norm(x_BTD)
            ahead.append(Hidden(x_BTD, None, routing({("mtp", k, "layer"): stats})))
        return main, ahead

    def logits(self, x_BTD):
        """float32 logits of hidden states."""
        config = self.config
        x_BTD, axes = self.to_head(x_BTD), ("batch", "length", "vocab")
        y = matmul("btd,vd->btv", x_BTD, self.head_VD, dtype=config.compute_dtype, out=axes)
        y = y.astype(jnp.float32)
        return config.logit_softcap * jnp.tanh(y / config.logit_softcap) if config.logit_softcap else y

    def scores(self, x_BTD) -> jax.Array:
        """What the score head makes of hidden states after the last norm: float32 [B, T]."""
        return jnp.einsum("btd,d->bt", x_BTD.astype(jnp.float32), self.score[...])

    @property
    def head_VD(self) -> jax.Array:
        """The float32 matrix of the head. Logits are products of it and `to_head` of hidden states."""
        return self.embedding[...] if self.config.tie_embeddings else self.head[...]

    def to_head(self, x_BTD) -> jax.Array:
        """Hidden states after the last norm as the head reads them."""
        return scaled_output(self.config, x_BTD)

    def _embedded(self, tokens_BT):
        config = self.config
        table = reshard(self.embedding[...].astype(config.compute_dtype), "vocab", None)
        x_BTD = table.at[tokens_BT].get(out_sharding=spec("batch", "length", None))
        return x_BTD if config.embed_scale == 1 else x_BTD * jnp.asarray(config.embed_scale, x_BTD.dtype)

    def _layers(self, tokens_BT, segment_ids_BT, positions_BT, state, noise_BTD=None, layers=None, branches=None):
        """(x before the last norm, Step of layers that are global and local, the next decode state, Routing or None)."""
        tokens_BT = jnp.asarray(tokens_BT)
        segment_ids_BT = jnp.ones_like(tokens_BT) if segment_ids_BT is None else jnp.asarray(segment_ids_BT)
        if positions_BT is None:
            positions_BT = jnp.zeros_like(tokens_BT) + jnp.arange(tokens_BT.shape[1], dtype=tokens_BT.dtype)
        positions_BT = jnp.asarray(positions_BT)
        steps, state = self._steps(segment_ids_BT, positions_BT, state, branches)
        x_BTD = self._embedded(tokens_BT)
        if self.config.positions == "learned":
            table = reshard(self.position_embedding[...].astype(x_BTD.dtype), None, None)
            x_BTD = x_BTD + table.at[positions_BT].get(out_sharding=spec("batch", "length", None))
        if noise_BTD is not None:
            x_BTD = x_BTD + noise_BTD.astype(x_BTD.dtype)
        caches, stats = [], {}
        for s, (block, repeats) in enumerate(self.config.stacks):
            x_BTD, new, routers = self._stack(
                self.stacks[s], block, repeats, x_BTD, steps, state and state.layers[s], layers and layers[s]
            )
            caches.append(new)
            stats |= {("stacks", s, p): router for p, router in enumerate(routers)}
        if state is not None:
            state = state._replace(layers=tuple(caches), slot=jnp.int32(state.slot + tokens_BT.shape[1]))
        return x_BTD, steps, state, routing(stats)

    def _steps(self, segments_BT, positions_BT, state, branches):
        """What global and what local layers need to know of these tokens, and the state with the tokens' slots filled."""
        config = self.config
        start, keys_BS, alone = 0, segments_BT, True
        if state is not None:
            start, alone = state.slot, is_empty(state.slot)
            filled_BS = lax.dynamic_update_slice_in_dim(state.segments_BS, segments_BT, start, axis=1)
            state = state._replace(segments_BS=filled_BS)
            if not alone:
                keys_BS = filled_BS
        visible = Visible(segments_BT, keys_BS, start + jnp.arange(positions_BT.shape[1]), branches)
        length = jnp.max(positions_BT) + 1 if config.rope.depends_on_length else None

        def angles(positions, local):
            rope = config.local_rope if local else config.rope
            return rotary_angles(positions, config.rope_head_dim, rope, length)

        has_local = any(kind.local for kind in config.layer_kinds)
        has_global = not all(kind.local for kind in config.layer_kinds)
        two_ropes = has_local and has_global and config.local_rope != config.rope

        kinds = ([False] if has_global else []) + ([True] if has_local else [])
        rotary = {}
        if config.positions == "rotary":
            turning = kinds if two_ropes else kinds[:1]
            rotary = once(lambda positions_BT: {local: angles(positions_BT, local) for local in turning}, positions_BT)
        slot, valid_BT = None if state is None else start, segments_BT > 0
        shared = next(iter(rotary.values()), None)
        return {local: Step(rotary.get(local, shared), visible, alone, slot, valid_BT) for local in kinds}, state

    def _stack(self, modules, block, repeats, x_BTD, steps, caches, layers=None):
        """x, and for each of the block's positions its caches and its RouterStats or None, stacked over the repeats."""
        config = self.config
        graphs, params = zip(*(nnx.split(module) for module in modules))

        def apply(x, layer):
            all_params, caches = layer
            new, stats = [], []
            for graph, kind, one, cache in zip(graphs, block, all_params, caches or [None] * len(block)):
                x, cache, router = nnx.merge(graph, one)(x, steps[kind.local], cache)
                new.append(cache)
                stats.append(router)
            return x, (tuple(new), tuple(stats))

        if config.remat != "none":
            apply = jax.checkpoint(apply, policy=REMAT_POLICIES[config.remat], prevent_cse=not config.scan_layers)
        if config.scan_layers:
            x_BTD, (caches, stats) = lax.scan(apply, x_BTD, (params, caches), length=repeats)
            return x_BTD, caches, stats
        new, stats = [], []
        for n, one in enumerate(layers or unstacked(params, repeats)):
            x_BTD, (cache, router) = apply(x_BTD, (one, caches and tuple(cache[n] for cache in caches)))
            new.append(cache)
            stats.append(router)
        return x_BTD, tuple(zip(*new, strict=True)), jax.tree.map(lambda *x: jnp.stack(x), *stats)


def unstacked(tree, repeats: int) -> list:
    """The layers of a stack, one by one; their gradients come together again in one piece."""
    leaves, kind = jax.tree.flatten(tree)
    split = [lax.split(leaf, (1,) * repeats) for leaf in leaves]
    return [jax.tree.unflatten(kind, [jnp.squeeze(parts[n], 0) for parts in split]) for n in range(repeats)]


def routing(stats: dict[tuple, RouterStats | None]) -> Routing | None:
    """The reports of some layers, or stacks of layers, by path, as one."""
    stats = {path: one for path, one in stats.items() if one is not None}
    if not stats:
        return None
    balance, z = (sum(jnp.sum(getattr(one, name)) for one in stats.values()) for name in ("balance", "z"))
    return Routing(balance, z, {path: one.load_E for path, one in stats.items()})


def stacked_layers(config: ModelConfig, kind: LayerKind, repeats: int, rngs: nnx.Rngs) -> Layer:
    """`repeats` layers of a kind as one module, each of its parameters with an axis "layers" in front."""

    @nnx.split_rngs(splits=repeats)
    @nnx.vmap(in_axes=(0,), out_axes=0, transform_metadata={nnx.PARTITION_NAME: "layers"})
    def stack(rngs):
        return Layer(config, kind, rngs)

    return stack(rngs)


def once(f, x_BT):
    """f of an array, its results [B, T, …] written out, in two halves of T.

    The compiler would otherwise fuse what f does into every layer that reads it and work it out anew there; it does not
    fuse the results of a loop. On a CPU that is a quarter of a training step.
    """
    B, T = x_BT.shape
    if T == 1:
        return f(x_BT)
    half = -(-T // 2)
    halves = jnp.pad(x_BT, ((0, 0), (0, 2 * half - T))).reshape(B, 2, half)
    parts = lax.map(f, jnp.moveaxis(halves, 1, 0))
    return jax.tree.map(lambda y: jnp.moveaxis(y, 0, 1).reshape(y.shape[1], 2 * half, *y.shape[3:])[:, :T], parts)


def empty_state(config: ModelConfig, batch: int, slots: int, cache_dtype: str = "") -> DecodeState:
    """A decode state of `slots` free slots for `batch` rows. cache_dtype: "" the compute dtype, or "int8"."""

    def caches(repeats: int):
        if config.scan_layers:
            return empty_cache(config, batch, slots, cache_dtype, (repeats,))
        return tuple(empty_cache(config, batch, slots, cache_dtype) for _ in range(repeats))

    layers = tuple(tuple(caches(repeats) for _ in block) for block, repeats in config.stacks)
    segments_BS = jnp.zeros((batch, slots), jnp.int32, out_sharding=spec("batch", None))
    return DecodeState(layers, segments_BS, 0)


def is_empty(slot: jax.Array | int) -> bool:
    """Whether a state of this next slot is known to be empty, as `empty_state` leaves it and no traced function gets it: then
    tokens need only see one another, a block of them at a time."""
    return isinstance(slot, int) and slot == 0


def continued(state: DecodeState, config: ModelConfig, each: int, slots: int, cache_dtype: str = "") -> DecodeState:
    """`each` rows with `slots` free slots for each row of a full state, one after the other; what that one keeps, they share.

    A full state has no slots left. cache_dtype: as it was made with.
    """
    own = empty_state(config, state.segments_BS.shape[0] * each, slots, cache_dtype)

    def after(new: Cache, old: Cache) -> Cache:
        return new._replace(before=(*old.before, old._replace(before=())))

    layers = jax.tree.map(after, own.layers, state.layers, is_leaf=lambda x: isinstance(x, Cache))
    segments_BS = jnp.concatenate((repeated(state.segments_BS, each), own.segments_BS), axis=1)
    return DecodeState(layers, segments_BS, state.slot)


def resized(state: DecodeState, config: ModelConfig, kept_B: jax.Array | None, more: int) -> DecodeState:
    """A decode state with `more` free slots behind its own, of the rows at the places kept_B; None: of all, in their order.

    Rows of scanned layers stay. Others are picked array by array, each of which all devices hold whole for the moment; what
    several rows share must be the same for all.
    """
    slots = 2 + int(config.scan_layers)

    def of(cache: Cache) -> Cache:
        def wanted(x):
            x = x if kept_B is None else taken(x, kept_B)
            return jnp.pad(x, [(0, more if axis == slots else 0) for axis in range(x.ndim)]) if more else x

        values, scales = jax.tree.map(wanted, (cache.values, cache.scales))
        return cache._replace(values=values, scales=scales)

    layers = jax.tree.map(of, state.layers, is_leaf=lambda x: isinstance(x, Cache))
    segments_BS = state.segments_BS if kept_B is None else taken(state.segments_BS, kept_B)
    return DecodeState(layers, jnp.pad(segments_BS, ((0, 0), (0, more))), state.slot)


def taken(x: jax.Array, places: jax.Array) -> jax.Array:
    """x[places] of its first axis, split over the mesh as x is."""
    where = spec_of(x)
    if where is None:
        return x[places]
    return jax.sharding.reshard(x, P(None, *where[1:])).at[places].get(out_sharding=where)


def repeated(x: jax.Array, each: int, axis: int = 0) -> jax.Array:
    """jnp.repeat(x, each, axis), split over the mesh as x is."""
    where = spec_of(x)
    if each == 1:
        return x
    if where is None:
        return jnp.repeat(x, each, axis)
    shape = (*x.shape[: axis + 1], each, *x.shape[axis + 1 :])
    wide = jnp.broadcast_to(jnp.expand_dims(x, axis + 1), shape, out_sharding=P(*where[: axis + 1], None, *where[axis + 1 :]))
    return lax.reshape(wide, (*x.shape[:axis], x.shape[axis] * each, *x.shape[axis + 1 :]), out_sharding=where)


def build(config: ModelConfig, seed: int) -> nnx.State:
    """Freshly initialised parameters, a pure function of (config, seed): the same on every mesh. Trace it under jit."""
    with nnx.use_eager_sharding(False):
        return nnx.split(Transformer(config, nnx.Rngs(params=seed)))[1]


def skeleton(config: ModelConfig):
    """(graph, abstract parameters): what `nnx.merge` needs beside real parameters, and their shapes and axes."""
    with nnx.use_eager_sharding(False):
        return nnx.split(nnx.eval_shape(lambda: Transformer(config, nnx.Rngs(params=0))))
