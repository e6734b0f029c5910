"""The decoder: embedding, stacks of repeated blocks of layers, a norm and a head.

Axes: B batch, T time, D model, V vocabulary, S cache slots, E experts, n repeats of a block.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from lm.config import LayerKind, ModelConfig
from lm.kernels.head import softcapped
from lm.kernels.ops import embedding, matmul
from lm.kernels.saved import from_bits, kept_input, saved
from lm.kernels.visible import Branches, Visible
from lm.model.attention import Step, attention_sublayer
from lm.model.audio import AudioTower
from lm.model.cache import Cache, DecodeState
from lm.model.feed_forward import FeedForward
from lm.model.initializers import STD, no_values, normal, parameter
from lm.model.linear import Linear, Score, scaled_output, stored
from lm.model.media import Given, Media, with_given, with_media
from lm.model.moe import MoE, RouterStats
from lm.model.norms import layer_norm
from lm.model.pages import PagedState
from lm.model.positions import once, rotary_angles
from lm.model.remat import layer_policy, offloads, tick_policy
from lm.model.repeated import repeated
from lm.model.stages import of_rows, rows_of, unstacked
from lm.model.vision import VisionTower
from lm.parallel.context import later, slots
from lm.parallel.mesh import over_stages, reshard, spec
from lm.parallel.pipeline import layer_of, pipelined, schedule
from lm.parallel.sequence import axis_between_blocks, length_axis, whole_rows

STACKED = ("stacks.", "vision.layers.", "audio.layers.")  # begin the dotted names of parameters with an axis of layers


class Routing(NamedTuple):
    """Reports of all routers: two losses, summed over tokens and layers, and the load [n, E] or [E] of each router by path."""

    balance: jax.Array
    z: jax.Array
    loads: dict[tuple, jax.Array]


class Hidden(NamedTuple):
    """x_BTD: after the last norm, in the compute dtype. state: the next state of the kind that was given, or None. router: None
    without experts."""

    x_BTD: jax.Array
    state: DecodeState | PagedState | None
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
        """Return (x, the layer's next cache or None, RouterStats or None)."""
        with jax.named_scope("attention"):  # names in a trace
            mixed_BTD, cache = self.attention(_normed(self.attention_norm, x_BTD), step, cache)
            x_BTD = saved(x_BTD + _normed(self.post_attention_norm, mixed_BTD))
        with jax.named_scope("feed_forward"):
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

    It shares the model's embedding and head. Its output goes through `norm` to the head and to the next module. The paper
    does not place that norm; this is the place that the published weights need.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        D = config.embed_dim
        self.embedding_norm, self.hidden_norm = layer_norm(config), layer_norm(config)
        self.projection = Linear(config, rngs, "ahead.projection", "btc,cd->btd", (2 * D, D), ("replicated", "embed"))
        self.layer = Layer(config, config.layer_kinds[-1], rngs)
        self.norm = layer_norm(config)

    def __call__(self, hidden_BTD, next_BTD, step: Step):
        both = jnp.concatenate((self.embedding_norm(next_BTD), self.hidden_norm(hidden_BTD)), axis=-1)
        return self.layer(self.projection(both, length_axis(both)), step)


class Transformer(nnx.Module):
    """A decoder. `model(tokens_BT)` returns float32 logits; training calls `hidden` and computes the loss from the head."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        V, D = config.vocab_size, config.embed_dim
        # The head starts so small that logits are near 0 and the first loss is near ln V at every width.
        width = config.mup_base_dim or D
        std = min(STD, 0.4 * width**-0.5) if config.tie_embeddings else STD
        self.embedding = parameter(normal(rngs, (V, D), std), ("vocab", "embed"), "embedding")
        if config.positions == "learned":
            shape = (config.max_positions, D)
            self.position_embedding = parameter(normal(rngs, shape), ("replicated", "embed"), "embedding")

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
            self.score = parameter(score, ("replicated",), "head", Score)
        self.vision = VisionTower(config, rngs) if config.vision.num_layers else None
        self.audio = AudioTower(config, rngs) if config.audio.num_layers else None

    def __call__(self, tokens_BT, segment_ids_BT=None, positions_BT=None, state: DecodeState | None = None, **options):
        """Return float32 logits [B, T, V]; with a decode state (logits, the next state). Arguments as for `hidden`."""
        out = self.hidden(tokens_BT, segment_ids_BT, positions_BT, state, **options)
        logits = self.logits(out.x_BTD)
        return logits if state is None else (logits, out.state)

    def hidden(
        self,
        tokens_BT,
        segment_ids_BT=None,
        positions_BT=None,
        state: DecodeState | None = None,
        *,
        prefill: bool = False,
        noise_BTD=None,
        layers=None,
        branches: Branches | None = None,
        paged: PagedState | None = None,
        media: Media | None = None,
        given: Given | None = None,
    ) -> Hidden:
        """Return hidden states after the last norm.

        Args:
          tokens_BT: int. segment_ids_BT: int; tokens see only earlier tokens of their own segment, 0 is padding (default 1).
          positions_BT: int, default 0, 1, …; must be given with a state. state: caches that the tokens are added to.
          prefill: the state is empty, so the tokens only attend to one another, a block of queries at a time.
          noise_BTD: added to the embeddings. layers: from `unstacked`, so that a loop need not split the stacks each time.
          branches: for rows that hold several continuations.
          paged: pages that the tokens are added to, in place of a state. Every row is one token (T = 1) of some sequence, and
            attends to its own; the segment of padding is 0.
          media: images and sound that take the places of some of these tokens. given: their vectors, if they are known.
        """
        x_BTD, state, router = self._layers(
            tokens_BT, segment_ids_BT, positions_BT, state, prefill, noise_BTD, layers, branches, paged, media, given
        )
        return Hidden(whole_rows(self.norm(x_BTD)), state, router)

    def unstacked(self) -> list:
        """Return the parameters of each layer of each stack, one tree a layer."""
        params = [tuple(nnx.split(module)[1] for module in stack) for stack in self.stacks]
        return [unstacked(one, repeats) for one, (_, repeats) in zip(params, self.config.stacks, strict=True)]

    def residual(self, tokens_BT, segment_ids_BT=None, positions_BT=None) -> jax.Array:
        """Return the residual stream before the last norm, whose size μP keeps constant as the model gets wider."""
        return whole_rows(self._layers(tokens_BT, segment_ids_BT, positions_BT)[0])

    def ahead(self, x_BTD, targets_BT, segment_ids_BT, positions_BT) -> list[Hidden]:
        """Return hidden states of the modules that look ahead (multi-token prediction), from those of `hidden`, for training.

        Module k = 1, 2, … at time t has read token t + k and predicts token t + k + 1. targets_BT: the token after each. After
        the end of a row a module reads token 0; the caller must give those places weight 0.
        """
        found = []
        steps, _ = self._steps(segment_ids_BT, positions_BT, None, False, None)
        axis = axis_between_blocks(targets_BT.shape[1])
        x_BTD = reshard(x_BTD, "batch", axis, None)
        step = steps[self.config.layer_kinds[-1].local]
        for k, module in enumerate(self.mtp if self.config.mtp_depth else ()):
            next_BT = later(targets_BT, k)
            graph, params = nnx.split(module)

            def apply(params, *inputs, graph=graph):
                return nnx.merge(graph, params)(*inputs, step)

            policy = layer_policy(self.config)
            x_BTD, _, stats = jax.checkpoint(apply, policy=policy)(params, x_BTD, self._embedded(next_BT, axis))
            x_BTD = module.norm(x_BTD)
            found.append(Hidden(whole_rows(x_BTD), None, routing({("mtp", k, "layer"): stats})))
        return found

    @jax.named_scope("head")
    def logits(self, x_BTD):
        """Return float32 logits [B, T, V] of hidden states after the last norm."""
        config = self.config
        x_BTD, axes = self.to_head(x_BTD), ("batch", "length", "vocab")
        head = stored(self.embedding if config.tie_embeddings else self.head)
        y = matmul("btd,vd->btv", x_BTD, head, dtype=config.compute_dtype, out=axes)
        return softcapped(y.astype(jnp.float32), config.logit_softcap)

    def scores(self, x_BTD) -> jax.Array:
        """Return the score head's float32 [B, T] for hidden states after the last norm."""
        return jnp.einsum("btd,d->bt", x_BTD.astype(jnp.float32), self.score[...])

    @property
    def head_VD(self) -> jax.Array:
        """Return the float32 matrix of the head; logits are `to_head(x) · head_VDᵀ`."""
        return self.embedding[...] if self.config.tie_embeddings else self.head[...]

    def to_head(self, x_BTD) -> jax.Array:
        """Return hidden states after the last norm, scaled for the head (μP)."""
        return scaled_output(self.config, x_BTD)

    @jax.named_scope("embedding")
    def _embedded(self, tokens_BT, axis: str = "length"):
        config = self.config
        x_BTD = embedding(stored(self.embedding), tokens_BT, config.compute_dtype, axis)
        return x_BTD if config.embed_scale == 1 else x_BTD * jnp.asarray(config.embed_scale, x_BTD.dtype)

    def _layers(
        self,
        tokens_BT,
        segment_ids_BT=None,
        positions_BT=None,
        state=None,
        prefill=False,
        noise_BTD=None,
        layers=None,
        branches=None,
        paged=None,
        media=None,
        given=None,
    ):
        """Return (x before the last norm, the next state, Routing or None)."""
        tokens_BT = jnp.asarray(tokens_BT)
        segment_ids_BT = jnp.ones_like(tokens_BT) if segment_ids_BT is None else jnp.asarray(segment_ids_BT)
        if positions_BT is None:
            positions_BT = jnp.zeros_like(tokens_BT) + slots(tokens_BT.shape[1]).astype(tokens_BT.dtype)
        positions_BT = jnp.asarray(positions_BT)
        steps, state = self._steps(segment_ids_BT, positions_BT, state, prefill, branches, paged)
        kept = paged if state is None else state
        axis = axis_between_blocks(tokens_BT.shape[1]) if kept is None else "length"
        x_BTD = self._embedded(tokens_BT, axis)
        if noise_BTD is not None:
            x_BTD = x_BTD + reshard(noise_BTD.astype(x_BTD.dtype), "batch", axis, None)
        if media is not None:
            x_BTD = with_media(self.config, x_BTD, tokens_BT, (self.vision, self.audio), media)
        if given is not None:
            x_BTD = with_given(x_BTD, given)
        if self.config.positions == "learned":
            table = reshard(self.position_embedding[...].astype(x_BTD.dtype), None, None)
            x_BTD = x_BTD + table.at[reshard(positions_BT, "batch", axis)].get(out_sharding=spec("batch", axis, None))
        caches, stats = [], {}
        for s, (block, repeats) in enumerate(self.config.stacks):
            x_BTD, new, routers = self._stack(
                self.stacks[s], block, repeats, x_BTD, steps, kept and kept.layers[s], layers and layers[s]
            )
            caches.append(new)
            stats |= {("stacks", s, p): router for p, router in enumerate(routers)}
        if kept is not None:
            kept = kept._replace(layers=tuple(caches))
        if state is not None:
            kept = kept._replace(slot=jnp.int32(state.slot + tokens_BT.shape[1]))
        return x_BTD, kept, routing(stats)

    def _steps(self, segments_BT, positions_BT, state, prefill, branches, paged=None):
        """Return ({is the layer local: its Step}, the decode state with the tokens' slots marked as filled)."""
        config = self.config
        from_cache = state is not None and not prefill
        slot = state.slot if from_cache else 0
        if state is not None:
            filled_BS = lax.dynamic_update_slice_in_dim(state.segments_BS, segments_BT, slot, axis=1)
            state = state._replace(segments_BS=filled_BS)
        keys_BS = state.segments_BS if from_cache else segments_BT
        visible = Visible(segments_BT, keys_BS, slot + slots(positions_BT.shape[1]), branches) if paged is None else None
        tokens = [positions_BT] if paged is None else [positions_BT.T]  # of a paged call [1, B], for `once`
        length = None
        if config.rope.depends_on_length and paged is None:
            length = jnp.max(positions_BT) + 1
        elif config.rope.depends_on_length:
            tokens.append(paged.table.length_B[None])

        def angles(positions, local, lengths=None):
            rope = config.local_rope if local else config.rope
            return rotary_angles(positions, config.rope_head_dim, rope, length if lengths is None else lengths[..., None, None])

        kinds = sorted({kind.local for kind in config.layer_kinds})
        rotary = {}
        if config.positions == "rotary":
            different = len(kinds) == 2 and config.local_rope != config.rope
            own = kinds if different else kinds[:1]
            rotary = once(lambda positions, *rest: {local: angles(positions, local, *rest) for local in own}, *tokens)
            rotary = rotary if paged is None else jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), rotary)
        shared = next(iter(rotary.values()), None)
        table = paged and paged.table
        steps = {local: Step(rotary.get(local, shared), visible, from_cache, slot, segments_BT > 0, table) for local in kinds}
        return steps, state

    def _stack(self, modules, block, repeats, x_BTD, steps, caches, layers=None):
        """Return x, and for each position of the block its caches and its RouterStats or None, stacked over the repeats.

        A stack that is split over the stages of the mesh is a pipeline. With a cache, or if the pipeline's repeats do not
        divide it, it is not: then each layer's parameters are sent to all devices before they are used.
        """
        config = self.config
        graphs, params = zip(*(nnx.split(module) for module in modules))
        on_stages, offloaded = over_stages(repeats) and layers is None, offloads(config)

        def compute_block(steps, x, x_bits, layer):
            if offloaded:
                x, x_bits = kept_input(x, x_bits)
            x, (all_params, n, caches) = from_bits(x_bits, x), layer
            all_params = layer_of(params, n) if all_params is None else all_params
            new, stats = [], []
            for graph, kind, one, cache in zip(graphs, block, all_params, caches or [None] * len(block)):
                x, cache, router = nnx.merge(graph, one)(x, steps[kind.local], cache)
                new.append(cache)
                stats.append(router)
            return x, (tuple(new), tuple(stats))

        def through(params, x, steps, repeats):
            """Return x after the layers, their caches and reports. params: None: each layer's are sent when it comes."""
            compute = functools.partial(compute_block, steps)
            return repeated(config, compute, x, params, caches, repeats, layers)

        plan = schedule(config.pipeline, len(x_BTD)) if on_stages and caches is None else None
        if plan is None or repeats % (plan.stages * plan.repeats):
            return through(None if on_stages else params, x_BTD, steps, repeats)

        def stage(params, x, rows):
            x, _, stats = through(params, x, of_rows(rows), repeats // (plan.stages * plan.repeats))
            return x, stats

        x_BTD, stats = pipelined(stage, params, x_BTD, rows_of(steps), plan, tick_policy(config))
        return x_BTD, (None,) * len(block), stats


def routing(stats: dict[tuple, RouterStats | None]) -> Routing | None:
    """Sum the reports of layers, or stacks of layers, given by path; None if no layer has experts."""
    stats = {path: one for path, one in stats.items() if one is not None}
    if not stats:
        return None
    balance, z = (sum(jnp.sum(getattr(one, name)) for one in stats.values()) for name in ("balance", "z"))
    return Routing(balance, z, {path: one.load_E for path, one in stats.items()})


def stacked_layers(config: ModelConfig, kind: LayerKind, repeats: int, rngs: nnx.Rngs) -> Layer:
    """Return `repeats` layers of a kind as one module; each parameter has the leading axis "layers"."""

    @nnx.split_rngs(splits=repeats)
    @nnx.vmap(in_axes=(0,), out_axes=0, transform_metadata={nnx.PARTITION_NAME: "layers"})
    def stack(rngs):
        return Layer(config, kind, rngs)

    return stack(rngs)


def build(config: ModelConfig, seed: int) -> nnx.State:
    """Return initial parameters, a pure function of (config, seed) and the same on every mesh. Call it under jit."""
    with nnx.use_eager_sharding(False):
        return nnx.split(Transformer(config, nnx.Rngs(params=seed)))[1]


def skeleton(config: ModelConfig):
    """Return (graph, abstract parameters): the first argument of `nnx.merge`, and shapes and axes of the second."""
    graph, abstract = _skeleton(config, jax.sharding.get_abstract_mesh())
    return graph, jax.tree.map(lambda x: x, abstract)  # a copy, because a State can be changed in place


@functools.lru_cache(maxsize=32)
def _skeleton(config: ModelConfig, mesh: jax.sharding.AbstractMesh):
    with nnx.use_eager_sharding(False), no_values():
        return nnx.split(nnx.eval_shape(lambda: Transformer(config, nnx.Rngs(params=0))))
