"""The decoder: embedding, stacks of repeated blocks of layers, a norm and a head.

Axes: B batch, T time, D model, V vocabulary, S cache slots, E experts, n repeats of a block.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx

from lm.config import LayerKind, ModelConfig
from lm.config.checks import PATTERNS
from lm.kernels.head import softcapped
from lm.kernels.ops import embedding, matmul
from lm.kernels.saved import saved
from lm.model.attention import attention_sublayer
from lm.model.audio import AudioTower
from lm.model.cache import Given, LayerCache
from lm.model.execution import layer_policy, through, unstacked
from lm.model.feed_forward import feed_forward_sublayer
from lm.model.initializers import STD, no_values, normal, parameter, stacked
from lm.model.inputs import Inputs, Memory, Step, steps_of, with_given
from lm.model.linear import Linear, Score, scaled_output, stored
from lm.model.media import with_media, with_vectors
from lm.model.moe import MoE, RouterStats
from lm.model.norms import layer_norm
from lm.model.pages import PagedLayer, PagedState
from lm.model.vision import VisionTower
from lm.parallel.arrays import PyTree
from lm.parallel.context import axis_between_blocks, length_axis, shift, whole_rows
from lm.parallel.mesh import reshard, spec

LayerPath: TypeAlias = tuple[str | int, ...]  # of a module in the parameters
AnyCache: TypeAlias = LayerCache | PagedLayer | Given | None
WIDE_STD, HEAD_STD = 0.8, 0.001  # of embedding and head with model.init=fan_in (nanochat)
STACKED = ("stacks.", "vision.layers.", "audio.layers.")  # begin the dotted names of parameters with an axis of layers


class Routing(NamedTuple):
    """Reports of all routers: two losses, summed over tokens and layers, and the load [n, E] or [E] of each router by path."""

    balance: jax.Array
    z: jax.Array
    loads: dict[LayerPath, jax.Array]


class Hidden(NamedTuple):
    """x_BTD: after the last norm, in the compute dtype. memory: the next one of the kind that was passed, or None. router: None
    without experts."""

    x_BTD: jax.Array
    memory: Memory | None
    router: Routing | None


class Layer(nnx.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)); or the norms after the sublayers, or both (Gemma's sandwich).

    Parallel: x + attention(norm(x)) + feed_forward(norm(x)), with one norm (GPT-J, Wang and Komatsuzaki 2021). A layer may have
    one of the two alone, with its norms.
    """

    def __init__(self, config: ModelConfig, kind: LayerKind, rngs: nnx.Rngs):
        before, after = config.norm_position in ("pre", "sandwich"), config.norm_position in ("post", "sandwich")
        self.parallel, self.scale = config.norm_position == "parallel", config.residual_scale
        mixes, feeds = kind.recurrent != "none", kind.feed_forward
        self.attention_norm = layer_norm(config) if mixes and (before or self.parallel) else None
        self.attention = attention_sublayer(config, rngs, kind) if mixes else None
        self.post_attention_norm = layer_norm(config) if mixes and after else None
        self.feed_forward_norm = layer_norm(config) if feeds and before else None
        self.feed_forward = MoE(config, rngs) if kind.moe else feed_forward_sublayer(config, rngs, kind) if feeds else None
        self.post_feed_forward_norm = layer_norm(config) if feeds and after else None
        if not (config.altup_streams or config.laurel_rank or config.layer_embed_dim):
            self.streams = None
        else:
            from lm.model.streams import Streams  # here, because most models have none

            self.streams = Streams(config, rngs)

    def __call__(
        self, x_BTD: jax.Array, step: Step, cache: AnyCache = None, given_BTP: jax.Array | None = None
    ) -> tuple[jax.Array, AnyCache, RouterStats | None]:
        """Return (x, the layer's next cache or None, RouterStats or None). given_BTP: its part of `LayerEmbedding`."""
        streams, router = [], None
        if self.streams is not None:
            x_BTD, *_ = streams = self.streams.predicted(x_BTD)
        with jax.named_scope("attention"):  # names in a trace
            normed_BTD = _normed(self.attention_norm, x_BTD)
            if self.attention is not None:
                mixed_BTD, cache = self.attention(normed_BTD, step, cache)
                x_BTD = x_BTD + _normed(self.post_attention_norm, mixed_BTD, self.scale)
                x_BTD = saved(x_BTD if self.streams is None else self.streams.augmented(x_BTD, normed_BTD))
        if self.feed_forward is not None:
            with jax.named_scope("feed_forward"):
                y_BTD = normed_BTD if self.parallel else _normed(self.feed_forward_norm, x_BTD)
                if isinstance(self.feed_forward, MoE):
                    y_BTD, router = self.feed_forward(y_BTD, step.valid_BT)
                else:
                    y_BTD = self.feed_forward(y_BTD)
                x_BTD = x_BTD + _normed(self.post_feed_forward_norm, y_BTD, self.scale)
        return x_BTD if self.streams is None else self.streams.corrected(streams, x_BTD, given_BTP), cache, router


def _normed(norm: Callable[[jax.Array], jax.Array] | None, x_BTD: jax.Array, scale: float = 1.0) -> jax.Array:
    x_BTD = x_BTD if norm is None else norm(x_BTD)
    return x_BTD if scale == 1 else x_BTD * jnp.asarray(scale, x_BTD.dtype)


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

    def __call__(
        self, hidden_BTD: jax.Array, next_BTD: jax.Array, step: Step, cache: AnyCache = None
    ) -> tuple[jax.Array, AnyCache, RouterStats | None]:
        both = jnp.concatenate((self.embedding_norm(next_BTD), self.hidden_norm(hidden_BTD)), axis=-1)
        return self.layer(self.projection(both, length_axis(both)), step, cache)


class Transformer(nnx.Module):
    """A decoder. `model(tokens_BT)` returns float32 logits; training calls `hidden` and computes the loss from the head."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        V, D = config.vocab_size, config.embed_dim
        # The head starts so small that logits are near 0 and the first loss is near ln V at every width.
        width = config.mup_base_dim or D
        untied_std = WIDE_STD if config.init == "fan_in" else STD
        std = min(STD, 0.4 * width**-0.5) if config.tie_embeddings else untied_std
        self.embedding = parameter(normal(rngs, (V, D), std), ("vocab", "embed"), "embedding")
        if config.positions == "learned":
            shape = (config.max_positions, D)
            self.position_embedding = parameter(normal(rngs, shape), ("replicated", "embed"), "embedding")

        if config.altup_streams or config.layer_embed_dim:
            from lm.model.streams import LayerEmbedding, StreamEnds  # here, because most models have none

            self.layer_embedding = LayerEmbedding(config, rngs) if config.layer_embed_dim else None
            self.streams = StreamEnds(config, rngs) if config.altup_streams else None
        else:
            self.layer_embedding = self.streams = None
        self.stacks = nnx.List(
            nnx.List(stacked(repeats, functools.partial(Layer, config, kind), rngs) for kind in block)
            for block, repeats in config.stacks
        )
        self.norm = layer_norm(config)
        if not config.tie_embeddings:
            std = min(STD, 0.2 * width**-0.5) if config.init == "gpt2" else HEAD_STD
            self.head = parameter(normal(rngs, (V, D), std), ("vocab", "embed"), "head")
        if config.mtp_depth:
            self.mtp = nnx.List([AheadModule(config, rngs) for _ in range(config.mtp_depth)])
        if config.score_head != "none":
            score = jnp.zeros((D,), jnp.float32) if config.score_head == "value" else normal(rngs, (D,))
            self.score = parameter(score, ("replicated",), "head", Score)
        self.vision = VisionTower(config, rngs) if config.vision.num_layers else None
        self.audio = AudioTower(config, rngs) if config.audio.num_layers else None

    def __call__(
        self,
        inputs: Inputs | jax.Array,
        memory: Memory | None = None,
        *,
        prefill: bool = False,
        layers: list[PyTree] | None = None,
    ) -> jax.Array | tuple[jax.Array, Memory | None]:
        """Return float32 logits [B, T, V]; with a memory (logits, the next memory). Arguments as for `hidden`."""
        out = self.hidden(inputs, memory, prefill=prefill, layers=layers)
        logits = self.logits(out.x_BTD)
        return logits if memory is None else (logits, out.memory)

    def hidden(
        self,
        inputs: Inputs | jax.Array,
        memory: Memory | None = None,
        *,
        prefill: bool = False,
        layers: list[PyTree] | None = None,
        normed: bool = True,
    ) -> Hidden:
        """Return hidden states after the last norm.

        Args:
          inputs: or tokens alone, int [B, T].
          memory: of earlier tokens, to which these are added: a DecodeState, or the pages of an engine. With pages every row is
            one token (T = 1) of some sequence, and attends to its own; the segment of padding is 0.
          prefill: the memory is empty, so the tokens only attend to one another, a block of queries at a time.
          layers: from `unstacked`, so that a loop need not split the stacks each time.
          normed: False: those before the last norm.
        """
        inputs = (inputs if isinstance(inputs, Inputs) else Inputs(inputs)).filled()
        T = inputs.tokens_BT.shape[1]
        steps, memory = steps_of(self.config, inputs, memory, prefill)
        x_BTD = self._embedded(inputs, axis_between_blocks(T) if memory is None else "length")
        given = None if self.layer_embedding is None else self.layer_embedding(inputs.tokens_BT, x_BTD)
        x_BTD = x_BTD if self.streams is None else self.streams.begun(x_BTD)
        caches = []
        stats: dict[LayerPath, RouterStats | None] = {}
        for s, (block, repeats) in enumerate(self.config.stacks):
            of_stack = None if memory is None else memory.layers[s]
            stack = (self.stacks[s], block, repeats)
            ours = None if given is None else given[s]
            x_BTD, new, routers = through(self.config, stack, len(x_BTD), steps, of_stack, layers and layers[s], ours)(x_BTD)
            if block[0].gives:  # such a layer is a stack of its own
                steps, new = with_given(steps, block[0].local, new)
            caches.append(new)
            stats |= {("stacks", s, p): router for p, router in enumerate(routers)}
        memory = None if memory is None else memory.after(tuple(caches), T)
        x_BTD = x_BTD if self.streams is None else self.streams.ended(x_BTD)
        return Hidden(whole_rows(self.norm(x_BTD) if normed else x_BTD), memory, routing(stats))

    def unstacked(self) -> list[list[PyTree]]:
        """Return the parameters of each layer of each stack, one tree a layer."""
        params = [tuple(nnx.split(module)[1] for module in stack) for stack in self.stacks]
        return [unstacked(of_stack, repeats) for of_stack, (_, repeats) in zip(params, self.config.stacks, strict=True)]

    def residual(self, inputs: Inputs | jax.Array) -> jax.Array:
        """Return the residual stream before the last norm, whose size μP keeps constant as the model gets wider."""
        return self.hidden(inputs, normed=False).x_BTD

    def ahead(
        self, x_BTD: jax.Array, targets_BT: jax.Array, segment_ids_BT: jax.Array, positions_BT: jax.Array
    ) -> list[Hidden]:
        """Return hidden states of the modules that look ahead (multi-token prediction), from those of `hidden`, for training.

        Module k = 1, 2, … at time t has read token t + k and predicts token t + k + 1. targets_BT: the token after each. After
        the end of a row a module reads token 0; the caller must give those places weight 0.
        """
        predictions = []
        steps, _ = steps_of(self.config, Inputs(targets_BT, segment_ids_BT, positions_BT), None, False)
        axis = axis_between_blocks(targets_BT.shape[1])
        x_BTD = reshard(x_BTD, "batch", axis, None)
        step = steps[self.config.layer_kinds[-1].local]
        for k, module in enumerate(self.mtp if self.config.mtp_depth else ()):
            next_BT = shift(targets_BT, k)
            graph, params = nnx.split(module)

            def apply(
                params: nnx.State, *inputs: jax.Array, graph: nnx.GraphDef = graph
            ) -> tuple[jax.Array, None, RouterStats | None]:
                return nnx.merge(graph, params)(*inputs, step)

            policy = layer_policy(self.config)
            x_BTD, _, stats = jax.checkpoint(apply, policy=policy)(params, x_BTD, self._rows(next_BT, axis))
            x_BTD = module.norm(x_BTD)
            predictions.append(Hidden(whole_rows(x_BTD), None, routing({("mtp", k, "layer"): stats})))
        return predictions

    def next_ahead(self, x_BTD: jax.Array, inputs: Inputs, memory: PagedState) -> Hidden:
        """Return the hidden states of the first module that looks ahead, for decoding with its own pages.

        x_BTD: of `hidden`, or of this. inputs: the token after each, with the positions of x. memory: of a model with the
        config `of_module`.
        """
        config, module = of_module(self.config), self.mtp[0]
        steps, _ = steps_of(config, inputs.filled(), memory, False)
        (cache,) = jax.tree.leaves(memory.layers, is_leaf=lambda x: isinstance(x, PagedLayer))
        x_BTD, cache, _ = module(x_BTD, self._rows(inputs.tokens_BT), steps[config.layer_kinds[0].local], cache)
        return Hidden(module.norm(x_BTD), memory.after((((cache,),),), 1), None)

    @jax.named_scope("head")
    def logits(self, x_BTD: jax.Array) -> jax.Array:
        """Return float32 logits [B, T, V] of hidden states after the last norm."""
        config = self.config
        x_BTD, axes = self.to_head(x_BTD), ("batch", "length", "vocab")
        head = stored(self.embedding if config.tie_embeddings else self.head)
        y = matmul("btd,vd->btv", x_BTD, head, dtype=config.compute_dtype, out=axes)
        return softcapped(y.astype(jnp.float32), config.logit_softcap)

    def scores(self, x_BTD: jax.Array) -> jax.Array:
        """Return the score head's float32 [B, T] for hidden states after the last norm."""
        return jnp.einsum("btd,d->bt", x_BTD.astype(jnp.float32), self.score[...])

    @property
    def head_VD(self) -> jax.Array:
        """Return the float32 matrix of the head; logits are `to_head(x) · head_VDᵀ`."""
        return self.embedding[...] if self.config.tie_embeddings else self.head[...]

    def to_head(self, x_BTD: jax.Array) -> jax.Array:
        """Return hidden states after the last norm, scaled for the head (μP, model.logit_scale)."""
        return scaled_output(self.config, x_BTD, self.config.logit_scale)

    def _embedded(self, inputs: Inputs, axis: str) -> jax.Array:
        """Return what the first layer gets, [B, T, D]; axis: the logical axis of T."""
        x_BTD = self._rows(inputs.tokens_BT, axis)
        if inputs.noise_BTD is not None:
            x_BTD = x_BTD + reshard(inputs.noise_BTD.astype(x_BTD.dtype), "batch", axis, None)
        if inputs.media is not None:
            x_BTD = with_media(self.config, x_BTD, inputs.tokens_BT, (self.vision, self.audio), inputs.media)
        if inputs.vectors is not None:
            x_BTD = with_vectors(x_BTD, inputs.vectors)
        if self.config.positions == "learned":
            assert inputs.positions_BT is not None  # they are `filled`
            table = reshard(self.position_embedding[...].astype(x_BTD.dtype), None, None)
            where = spec("batch", axis, None)
            x_BTD = x_BTD + table.at[reshard(inputs.positions_BT, "batch", axis)].get(out_sharding=where)
        return x_BTD

    @jax.named_scope("embedding")
    def _rows(self, tokens_BT: jax.Array, axis: str = "length") -> jax.Array:
        config = self.config
        x_BTD = embedding(self.embedding.get_value(), tokens_BT, config.compute_dtype, axis)
        return x_BTD if config.embed_scale == 1 else x_BTD * jnp.asarray(config.embed_scale, x_BTD.dtype)


def of_module(config: ModelConfig) -> ModelConfig:
    """Return the config of a model of one layer, of the kind of a module that looks ahead."""
    last = config.num_layers - 1
    kind: dict[str, Any] = {name: (getattr(config, name)[last % len(getattr(config, name))],) for name in PATTERNS}
    return dataclasses.replace(config, num_layers=1, mtp_depth=0, scan_layers=False, **kind)


def routing(stats: dict[LayerPath, RouterStats | None]) -> Routing | None:
    """Sum the reports of layers, or stacks of layers, given by path; None if no layer has experts."""
    known = {path: of_stack for path, of_stack in stats.items() if of_stack is not None}
    if not known:
        return None
    parts = [[jnp.sum(getattr(of_stack, name)) for of_stack in known.values()] for name in ("balance", "z")]
    balance, z = (sum(of_stacks[1:], start=of_stacks[0]) for of_stacks in parts)
    return Routing(balance, z, {path: of_stack.load_E for path, of_stack in known.items()})


def build(config: ModelConfig, seed: int) -> nnx.State:
    """Return initial parameters, a pure function of (config, seed) and the same on every mesh. Call it under jit."""
    with nnx.use_eager_sharding(False):
        return nnx.split(Transformer(config, nnx.Rngs(params=seed)))[1]


def skeleton(config: ModelConfig) -> tuple[nnx.GraphDef, nnx.State]:
    """Return (graph, abstract parameters): the first argument of `nnx.merge`, and shapes and axes of the second."""
    graph, abstract = _skeleton(config, jax.sharding.get_abstract_mesh())
    return graph, jax.tree.map(lambda x: x, abstract)  # a copy, because a State can be changed in place


@functools.lru_cache(maxsize=32)
def _skeleton(config: ModelConfig, mesh: jax.sharding.AbstractMesh) -> tuple[nnx.GraphDef, nnx.State]:
    with nnx.use_eager_sharding(False), no_values():
        return nnx.split(nnx.eval_shape(lambda: Transformer(config, nnx.Rngs(params=0))))
