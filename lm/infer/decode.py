"""The compiled programs of sampling: `start` reads prompts and samples the first token, `loop` samples the others.

Axes: B rows, P padded prompt slots, S cache slots, N sampled tokens, V vocabulary. Prompts are padded on the left, so every
row's next token goes into the same slot. Padding is segment 0, which no real token attends to.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from lm.config import ModelConfig
from lm.model.cache import DecodeState, empty_state, fork, repeat, resize, take, unstack
from lm.model.inputs import Inputs
from lm.model.linear import cast_matrices
from lm.model.media import Media
from lm.model.transformer import Transformer
from lm.parallel.arrays import AnyArray, PyTree
from lm.parallel.mesh import reshard, spec

APART = 1 << 31  # largest size in bytes of weights that `decoding_weights` copies


class SamplingState(NamedTuple):
    """The state of generation after n tokens; `sample_step` returns the next one."""

    decode: DecodeState
    last_B: jax.Array  # int32, the token to feed next
    positions_B: jax.Array  # int32, its position in its own sequence
    done_B: jax.Array  # bool, an end token was sampled
    lost_B: jax.Array  # bool, the last logits were not finite, so the last token is invalid
    out_BN: jax.Array  # int32, tokens sampled so far
    logps_BN: jax.Array  # float32, log-probability of each at the sampling temperature, in nats
    n: jax.Array  # int32, number of tokens sampled so far


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Settings of sampling.

    temperature: 0 is greedy. top_p: in (0, 1]. top_k: 0 is off. stop_ids: each ends a row. vocab_size: larger ids are never
    sampled; 0: no limit. seed: a row's tokens depend only on (seed, its number) and its prompt. cache_dtype: "int8" keeps keys
    and values as integers with a scale for each token and head; "": the compute dtype.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop_ids: tuple[int, ...] = ()
    vocab_size: int = 0
    seed: int = 0
    cache_dtype: str = ""

    def compiled(self) -> "Sampling":
        """Return the settings that compiled programs depend on; the others are 0."""
        return dataclasses.replace(self, max_new_tokens=0, vocab_size=0, seed=0)


class Prompts(NamedTuple):
    """What `start` reads: prompts, padded on the left; a beginning that many share, read before; images and sound."""

    tokens_BP: AnyArray
    segments_BP: AnyArray
    prefix_WQ: AnyArray | None = None
    media: Media | None = None


class Draws(NamedTuple):
    """What the draws depend on beside the logits: a number of each row, a seed, and which ids may be drawn (bool)."""

    rows_B: AnyArray
    seed: AnyArray | np.uint32
    allowed_V: AnyArray


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def start(
    graph: nnx.GraphDef,
    reader: nnx.GraphDef,
    sampling: Sampling,
    slots: int,
    room: int,
    params: nnx.State,
    prompts: Prompts,
    draws: Draws,
) -> SamplingState:
    """Read the prompts into an empty cache and sample the first token of each row; a prompt may have several rows.

    This is a separate program, so that `loop` does not compile again for prompts of another width.
    """
    model, dtype = nnx.merge(reader, params), sampling.cache_dtype
    tokens_BP, segments_BP, prefix_WQ, media = prompts
    (count, P), B = tokens_BP.shape, draws.rows_B.shape[0]
    each, Q = B // count, 0
    positions_BP = jnp.maximum(0, jnp.cumsum(segments_BP, axis=1) - 1)
    free = slots if each == 1 else P
    if prefix_WQ is None:
        before = empty_state(model.config, count, free, dtype)
    else:
        W, Q = prefix_WQ.shape
        first = model.hidden(prefix_WQ, empty_state(model.config, W, Q, dtype), prefill=True).memory
        before = fork(first, model.config, count // W, free, dtype)
    inputs = Inputs(jnp.asarray(tokens_BP), jnp.asarray(segments_BP), Q + positions_BP, media=media)
    read = model.hidden(inputs, before, prefill=prefix_WQ is None)
    logits_BV = repeat(model.logits(read.x_BTD[:, -1:])[:, 0], each)
    lengths_B = Q + repeat(segments_BP.sum(axis=1), each)
    decode = read.memory if each == 1 else fork(read.memory, model.config, each, slots, dtype)
    if model.config.scan_layers and not nnx.merge(graph, params).config.scan_layers:
        decode = unstack(decode, model.config)
    nothing = jnp.zeros((B, room), jnp.int32, out_sharding=spec("batch", None))
    first = SamplingState(
        decode, lengths_B * 0, lengths_B - 1, lengths_B < 0, lengths_B < 0, nothing, nothing.astype(jnp.float32), jnp.int32(0)
    )
    return _drawn(first, logits_BV, sampling, draws)


def sample_step(
    graph: nnx.GraphDef,
    sampling: Sampling,
    params: nnx.State,
    state: SamplingState,
    tokens_BP: jax.Array | None,
    draws: Draws,
    layers: list[PyTree] | None = None,
) -> SamplingState:
    """Feed the last token and sample the next one. layers: of `decoding_weights`."""
    model = nnx.merge(graph, params)
    ones = jnp.ones_like(state.last_B)[:, None]
    before = state.decode
    if model.config.rope.scaling == "longrope":
        switches = jnp.max(state.positions_B) == model.config.rope.original_positions
        before = lax.cond(switches, lambda: _read_again(model, state, tokens_BP), lambda: before)
    read = model.hidden(Inputs(state.last_B[:, None], ones, state.positions_B[:, None]), before, layers=layers)
    logits_BV = model.logits(read.x_BTD)[:, 0]
    return _drawn(state._replace(decode=read.memory), logits_BV, sampling, draws)


def _read_again(model: Transformer, state: SamplingState, tokens_BP: jax.Array | None) -> DecodeState:
    """Return the decode state of the same tokens, rotated by the angles of a sequence one token longer.

    LongRoPE rotates every token differently once the sequence exceeds the original context (lm/model/positions.py).
    """
    assert tokens_BP is not None  # as for all models with LongRoPE
    decode, P = state.decode, tokens_BP.shape[1]
    segments_BS = decode.segments_BS
    tokens_BS = jnp.zeros_like(segments_BS).at[:, :P].set(tokens_BP)
    N = min(state.out_BN.shape[1], segments_BS.shape[1] - P)
    tokens_BS = tokens_BS.at[:, P : P + N].set(state.out_BN[:, :N])
    positions_BS = jnp.maximum(0, jnp.cumsum(segments_BS, axis=1) - 1)
    # The position of a free slot only sets the length of the sequence, which must include the next token.
    positions_BS = positions_BS.at[:, -1].max(model.config.rope.original_positions)
    fresh = jax.tree.map(jnp.zeros_like, decode)
    memory = model.hidden(Inputs(tokens_BS, segments_BS, positions_BS), fresh).memory
    assert isinstance(memory, DecodeState)
    return memory._replace(slot=decode.slot)


@functools.partial(jax.jit, static_argnums=(0, 1))
def changed(
    config: ModelConfig, more: int, state: SamplingState, tokens_BP: jax.Array, rows_B: jax.Array, kept_B: jax.Array | None
) -> tuple[SamplingState, jax.Array, jax.Array]:
    """Return (state, tokens_BP, rows_B) with `more` slots, of the rows kept_B (indices; None: all rows)."""
    decode = resize(state.decode, config, kept_B, more)

    def remaining(x: jax.Array) -> jax.Array:
        return x if kept_B is None or not x.ndim else take(x, kept_B)

    rest = {name: remaining(x) for name, x in state._asdict().items() if name != "decode"}
    return SamplingState(decode, **rest), remaining(jnp.asarray(tokens_BP)), remaining(jnp.asarray(rows_B))


@functools.partial(jax.jit, static_argnums=0)
def decoding_weights(graph: nnx.GraphDef, params: nnx.State) -> tuple[nnx.State, list[PyTree] | None]:
    """Return (params, layers) for `loop`: the parameters of each layer apart, and matrices in float32 if it computes in it.

    Otherwise a CPU would split the stacks at each token, and cast the matrices in each call of `loop`. (It computes bfloat16
    products in float32, and does cast in each call.) Weights of more than APART bytes stay as they are, with layers None,
    because both would be in memory.
    """
    config = nnx.merge(graph, params).config
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params))
    if jax.default_backend() != "cpu" or config.scan_layers or size > APART:
        return params, None
    params = cast_matrices(config, params) if config.compute_dtype == jnp.float32 else params
    return params, nnx.merge(graph, params).unstacked()


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=4)
def loop(
    graph: nnx.GraphDef,
    sampling: Sampling,
    params: nnx.State,
    layers: list[PyTree] | None,
    state: SamplingState,
    tokens_BP: jax.Array | None,
    draws: Draws,
    until: jax.Array,
) -> SamplingState:
    """Return the state after `until` tokens, or earlier if all rows are done or one is lost.

    params, layers: of `decoding_weights`.
    """
    return lax.while_loop(
        lambda s: (s.n < until) & ~s.done_B.all() & ~s.lost_B.any(),
        lambda s: sample_step(graph, sampling, params, s, tokens_BP, draws, layers),
        state,
    )


def _drawn(state: SamplingState, logits_BV: jax.Array, sampling: Sampling, draws: Draws) -> SamplingState:
    """Return the state after sampling token n from these logits. Finished rows repeat their end token."""
    logits_BV = reshard(logits_BV, "batch", None)
    keys = jax.vmap(lambda row: jax.random.fold_in(jax.random.fold_in(jax.random.key(draws.seed), row), state.n))(draws.rows_B)
    drawn_B = sample(keys, jnp.where(draws.allowed_V, logits_BV, -jnp.inf), sampling)
    drawn_B = jnp.where(state.done_B, state.last_B, drawn_B).astype(jnp.int32)
    logits_BV = logits_BV / (sampling.temperature or 1.0)
    logp_B = _picked(logits_BV, drawn_B) - jax.nn.logsumexp(logits_BV, axis=-1)
    # If any logit is NaN or +inf, so is logsumexp; if all are -inf, so is the picked one. So no other reduction is needed.
    lost_B = ~state.done_B & ~jnp.isfinite(logp_B)

    def put(old_BN: jax.Array, new_B: jax.Array) -> jax.Array:
        return lax.dynamic_update_slice_in_dim(old_BN, new_B[:, None], state.n, axis=1)

    done = state.done_B
    for stop in sampling.stop_ids:
        done = done | (drawn_B == stop)
    out_BN, logps_BN = put(state.out_BN, drawn_B), put(state.logps_BN, logp_B)
    return SamplingState(state.decode, drawn_B, state.positions_B + 1, done, lost_B, out_BN, logps_BN, state.n + 1)


def _picked(x_BV: jax.Array, index_B: jax.Array) -> jax.Array:
    """Return x[b, index[b]] for each row b."""
    return jnp.sum(jnp.where(jnp.arange(x_BV.shape[1]) == index_B[:, None], x_BV, 0), axis=-1)


def sample(keys_B: jax.Array, logits_BV: jax.Array, sampling: Sampling) -> jax.Array:
    """Sample one token for each row, int32 [B].

    Temperature comes first, then top-k, then nucleus sampling: the smallest set of tokens whose probabilities reach top_p
    (Holtzman et al. 2020); it always contains the most likely one. Of equal logits, which are common in bfloat16, the lower
    ids are kept, so top_k=1 is greedy.
    """
    if sampling.temperature == 0:
        return first_of_most(logits_BV)
    logits_BV = logits_BV / sampling.temperature

    def draw(keys_B: jax.Array, logits_BV: jax.Array) -> jax.Array:
        """Sample by the Gumbel-max trick (Gumbel 1954): argmax of log p + g, where g = −log(−log u) and u is uniform."""
        noise_BV = jax.vmap(lambda key: jax.random.gumbel(key, logits_BV.shape[1:]))(keys_B)
        return first_of_most(logits_BV + noise_BV)

    if not sampling.top_k and sampling.top_p == 1:
        return draw(keys_B, logits_BV)
    V = logits_BV.shape[-1]
    ranked, ids = lax.top_k(logits_BV, min(sampling.top_k or V, V))
    if sampling.top_p < 1:
        p = jax.nn.softmax(ranked, axis=-1)
        ranked = jnp.where(jnp.cumsum(p, axis=-1) - p < sampling.top_p, ranked, -jnp.inf)
    return _picked(ids, draw(keys_B, ranked))


def first_of_most(x: jax.Array) -> jax.Array:
    """Return the argmax of the last axis, int32; the first of equal values.

    It takes two plain reductions, because one over (value, index) pairs is much slower on a CPU.
    """
    ids = lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
    return jnp.min(jnp.where(x == jnp.max(x, axis=-1, keepdims=True), ids, x.shape[-1] - 1), axis=-1)
