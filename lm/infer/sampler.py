"""Sampling with a key/value cache: a compiled loop, and the same step one by one for streaming.

Axes: B prompts, P padded prompt slots, S cache slots, V vocabulary. Prompts are padded on the left, so that every
row's next token goes into the same slot; padding is segment 0 and no real token sees it.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.sharding import NamedSharding

from data.chat import Message
from data.hf_tokenizer import HFTokenizer
from data.tokenizer import Tokenizer
from lm.config import ModelConfig
from lm.errors import UserError
from lm.infer import not_finite
from lm.infer.prompts import read as prompts_as_ids
from lm.model.transformer import (
    DecodeState,
    Transformer,
    continued,
    empty_state,
    repeated,
    resized,
    skeleton,
    taken,
    unstacked,
)
from lm.parallel.hosts import gathered
from lm.parallel.mesh import reshard, row_ways, spec

UNROLLED = 48  # layers of a kind at most; more would take long to compile
COARSE = 2  # steps of _slots where a loop is interrupted: evaluations have prompts of all lengths
APART = 1 << 31  # bytes of weights at most that are kept layer by layer as well: a CPU would take them apart at each token


class SamplingState(NamedTuple):
    """One moment of generation; a step makes the next one."""

    decode: DecodeState
    last_B: jax.Array  # int32, the token to feed next
    positions_B: jax.Array  # int32, its position in its own sequence
    done_B: jax.Array  # bool, an end token was drawn
    lost_B: jax.Array  # bool, the last logits were not finite, so that the last token means nothing
    out_BN: jax.Array  # int32, tokens drawn so far
    logps_BN: jax.Array  # float32, of each under the model at that temperature, nats
    n: jax.Array  # int32, how many


class Settings(NamedTuple):
    """temperature 0 is greedy; top_p in (0, 1]; top_k 0 is off; drawing a stop id ends a row; cache_dtype as in generate."""

    temperature: float
    top_p: float
    top_k: int
    stop_ids: tuple[int, ...] = ()
    cache_dtype: str = ""


class Call(NamedTuple):
    """A request laid out.

    graph: of the model that goes on from its cache; reader: of the same model as it reads prompts. slots: of a continuation's
    own, its prompt among them if none shares it. room: of the array of drawn tokens. limit: tokens at most.
    """

    graph: nnx.GraphDef
    reader: nnx.GraphDef
    settings: Settings
    slots: int
    room: int
    limit: int
    params: nnx.State
    tokens_BP: jax.Array
    segments_BP: jax.Array
    rows_B: jax.Array
    seed: np.uint32
    allowed_V: np.ndarray
    prefix_WQ: jax.Array | None


class Drawn(NamedTuple):
    """What was drawn after each prompt.

    tokens: with the stop id that ended a row. logps: log-probability of each token under the model, nats, at the temperature of
    the draw (1 if that is 0) and before top_k and top_p. ended: not cut by the length.
    """

    tokens: list[list[int]]
    logps: list[list[float]]
    ended: list[bool]


def generate(
    model: Transformer, tokenizer: Tokenizer | HFTokenizer, prompts: Sequence[str | Sequence[int] | Sequence[Message]], *,
    max_new_tokens: int = 64, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0, seed: int = 0,
    stream: Callable[[str], None] | None = None, cache_dtype: str = "", template: str | None = None,
) -> list[str | list[int]]:  # fmt: skip
    """Continues each prompt until an end token or `max_new_tokens`.

    A prompt is a string, token ids, or the messages of a conversation, which the assistant answers; lm/infer/prompts.py says
    how each is read and what ends it. A row's draws depend on (seed, its index), not on the other rows.

    Args:
      stream: called with each piece of text as it is drawn; for a single prompt.
      cache_dtype: "int8" keeps keys and values as integers with a scale for each token and head; "": as they are computed.
      template: the Jinja chat template of messages; None: the tokenizer's own.
    Returns: the completions alone, without the end token: token ids for token ids, strings for the others.
    """
    read = prompts_as_ids(tokenizer, prompts, template)
    if stream is not None and len(read) != 1:
        raise UserError("streaming takes one prompt")
    options = dict(
        vocab_size=tokenizer.vocab_size, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k,
        seed=seed, cache_dtype=cache_dtype,
    )  # fmt: skip
    drawn: dict[int, list[int]] = {}
    if stream is not None:
        shown = ""
        for row in _growing(model, [read[0].ids], stop_ids=read[0].stops, **options):
            shown = _show(stream, tokenizer, row, shown, read[0].stops)
        _show(stream, tokenizer, row, shown, read[0].stops, last=True)
        drawn[0] = row
    else:
        for stops in dict.fromkeys(prompt.stops for prompt in read):
            rows = [n for n, prompt in enumerate(read) if prompt.stops == stops]
            some = draw(model, [read[n].ids for n in rows], stop_ids=stops, rows=rows, names=rows, **options).tokens
            drawn |= dict(zip(rows, some, strict=True))
    found = []
    for n, prompt in enumerate(read):
        row = drawn[n][:-1] if drawn[n] and drawn[n][-1] in prompt.stops else drawn[n]
        found.append(tokenizer.decode(row) if prompt.is_text else row)
    return found


def draw(
    model: Transformer, prompts: Sequence[Sequence[int]], *, stop_ids: Sequence[int], vocab_size: int, max_new_tokens: int,
    temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0, seed: int = 0, width: int = 0, cache_dtype: str = "",
    each: int = 1, rows: Sequence[int] | None = None, prefix: Sequence[int] = (), every: int = 0,
    enough: Callable[[int, list[int]], bool] = lambda number, tokens: False, names: Sequence[int] | None = None,
) -> Drawn:  # fmt: skip
    """Continues prompts of token ids, all together, on the mesh that is set.

    Args:
      stop_ids: drawing one of these ends a row. vocab_size: of the tokenizer; ids from there on are never drawn.
      width: prompts are padded to as many slots, or to a power of two if one is longer: calls of many lengths compile once.
      seed: a row's draws depend on (seed, its index) and its own prompt.
      each: so many continuations of each prompt, which stand one after the other; it is read once for all of them.
      rows: a number below 2³¹ of each continuation, which stands for its index, so that draws do not depend on their order.
      prefix: ids in front of all prompts, read once. Not for models with windows or angles that depend on the length.
      every: after each so many tokens, enough(number of a continuation, its tokens so far) says whether it needs no more. Slots
        are made as they are needed, and where a quarter of the rows is left, only these go on. Not together with `each`.
      names: the number by which errors call each prompt; None: its index.
    On several hosts every process calls this with the same arguments and gets all rows.
    Raises: UserError at the first token whose logits are NaN or infinite; it names the prompt and the likely cause.
    """
    if not len(prompts):
        return Drawn([], [], [])
    if every and each > 1:
        raise ValueError("continuations that share a prompt go on together")
    until = min(every or max_new_tokens, max_new_tokens)
    call = _prepared(
        model, prompts, stop_ids, vocab_size, max_new_tokens, temperature, top_p, top_k, seed, width, cache_dtype, each, rows,
        prefix, min(2 * every or max_new_tokens, max_new_tokens), COARSE if every else 8,
    )  # fmt: skip
    state = _loop_of(call, _start_of(call), until)
    count, numbers = len(prompts) * each, np.arange(call.rows_B.shape[0])  # of the continuation that each row is
    going = numbers < count  # the others fill the batch
    found: list[tuple[list[int], list[float], bool] | None] = [None] * count
    names = range(len(prompts)) if names is None else names
    while True:
        _check_finite(model, state, [names[int(n) // each if n < count else 0] for n in numbers], temperature)
        for place, told in enumerate(zip(*_told(state, stop_ids))):
            if going[place] and (told[2] or until == max_new_tokens or enough(int(numbers[place]), told[0])):
                found[numbers[place]], going[place] = told, False
        if not going.any():
            return Drawn(*map(list, zip(*found)))
        until = min(until + every, max_new_tokens)
        call, state, numbers, going = _resumed(call, state, numbers, going, until)


def _check_finite(model: Transformer, state: SamplingState, prompts: Sequence[int], temperature: float) -> None:
    """Raises UserError if the last step found logits that are not finite. prompts: the index of each row's prompt."""
    rows = np.flatnonzero(gathered(state.lost_B))
    if rows.size:
        before = int(state.n) - 1
        after = f" after {before} new token{'s' if before > 1 else ''}" if before else ""
        cause = f"or temperature={temperature} is too small: 0 is greedy" if 0 < temperature < 1e-3 else ""
        raise not_finite.error(model, f"generate: the logits of prompt {prompts[rows[0]]} (counted from 0){after}", cause)


def _told(state: SamplingState, stop_ids: Sequence[int]) -> tuple[list[list[int]], list[list[float]], list[bool]]:
    """What each row has drawn so far, as Drawn has it."""
    n = int(state.n)
    out, logps = gathered((state.out_BN, state.logps_BN))
    out = out[:, :n]
    ends = np.isin(out, stop_ids)
    ended = ends.any(axis=1)
    counts = np.where(ended, ends.argmax(axis=1) + 1, n)  # up to and with the token that ended a row
    tokens = [row[:count].tolist() for row, count in zip(out, counts)]
    return tokens, [row[: len(drawn)].tolist() for row, drawn in zip(logps, tokens)], ended.tolist()


def _resumed(
    call: Call, state: SamplingState, numbers: np.ndarray, going: np.ndarray, until: int
) -> tuple[Call, SamplingState, np.ndarray, np.ndarray]:  # fmt: skip
    """The state after `until` tokens, of the rows that are going on at least; of its rows the numbers, and whether they are."""
    ways, left, kept, config = row_ways(), int(going.sum()), None, nnx.merge(call.graph, call.params).config
    size = ways << (-(-left // ways) - 1).bit_length()
    if 4 * size <= len(numbers) and not config.scan_layers:
        kept = np.resize(np.flatnonzero(going), size)
        numbers, going = numbers[kept], np.arange(size) < left
    drawn, end = int(state.n), int(state.decode.slot) - int(state.n)
    slots, more = state.decode.segments_BS.shape[1], 0
    if end + until > slots:
        more = _slots(end + min(call.limit, max(until, 2 * drawn)), COARSE) - slots
    if more or kept is not None:
        state, tokens_BP, rows_B = _changed(config, more, state, call.tokens_BP, call.rows_B, kept)
        call = call._replace(tokens_BP=tokens_BP, rows_B=rows_B)
    state = state._replace(done_B=state.done_B | _placed((~going,))[0])
    return call, _loop_of(call, state, until), numbers, going


def _growing(model, prompts, **options):
    """The one row after each token."""
    o = options
    call = _prepared(
        model, prompts, o["stop_ids"], o["vocab_size"], o["max_new_tokens"], o["temperature"], o["top_p"], o["top_k"],
        o["seed"], 0, o["cache_dtype"],
    )  # fmt: skip
    state = _start_of(call)
    while True:
        _check_finite(model, state, [0] * state.lost_B.shape[0], o["temperature"])
        yield np.asarray(state.out_BN)[0, : int(state.n)].tolist()
        if int(state.n) == call.limit or bool(state.done_B[0]):
            return
        state = _next(
            call.graph, call.settings, call.params, state, call.tokens_BP, call.rows_B, call.seed, call.allowed_V
        )  # fmt: skip


def _prepared(
    model, prompts, stop_ids, vocab_size, max_new_tokens, temperature, top_p, top_k, seed, width, cache_dtype, each=1,
    rows=None, prefix=(), until=0, steps=8,
) -> Call:  # fmt: skip
    """Checks a request and lays it out, with slots for `until` tokens, or all; steps: see _slots."""
    if max_new_tokens < 1 or not 0 <= temperature < np.inf or not 0 < top_p <= 1 or top_k < 0 or each < 1:
        raise UserError("generate needs max_new_tokens ≥ 1, temperature ≥ 0, 0 < top_p ≤ 1, top_k ≥ 0 and each ≥ 1")
    if cache_dtype not in ("", "int8"):
        raise UserError(f"cache_dtype={cache_dtype!r} is neither int8 nor empty")
    vocab = model.config.vocab_size
    if prefix and (model.config.rope.depends_on_length or any(kind.local for kind in model.config.layer_kinds)):
        raise ValueError("a model with windows, or whose angles depend on the length, reads each prompt whole")
    if any(not row or min(row) < 0 or max(row) >= vocab for row in (*prompts, *([prefix] if prefix else []))):
        raise UserError(f"a prompt of token ids must not be empty, and its ids must be in 0…{vocab - 1}")
    longest = len(prefix) + max(map(len, prompts)) + max_new_tokens
    if model.config.positions == "learned" and longest > model.config.max_positions:
        most = model.config.max_positions
        raise UserError(f"prompt and max_new_tokens come to {longest} tokens, the model has {most} positions: ask for fewer")
    ways = row_ways()
    # To read a prompt once would leave devices without work, or make what must be turned anew be shared.
    if len(prompts) % ways or model.config.rope.depends_on_length:
        prompts, each = [prompt for prompt in prompts for _ in range(each)], 1
    filled = [*prompts, *[prompts[0]] * (-len(prompts) % ways)]
    rows_B = np.arange(len(filled) * each, dtype=np.int32)
    if rows is not None:
        rows_B[: len(rows)] = rows
    tokens_BP, segments_BP, rows_B = _placed((*_padded(filled, width), rows_B))
    # Read on each device: a row for each way that rows are split.
    prefix_WQ = _placed((np.tile(np.asarray(prefix, np.int32), (ways, 1)),))[0] if prefix else None
    graph, params = nnx.split(model)
    reader = graph
    if model.config.scan_layers and max(repeats for _, repeats in model.config.stacks) <= UNROLLED:
        graph = _unrolled(model.config)
        # Scanned layers compile in a quarter of the time; but their caches stand twice for a moment, in one piece and apart.
        reader = reader if jax.default_backend() == "cpu" else graph
    settings = Settings(float(temperature), float(top_p), int(top_k), tuple(map(int, stop_ids)), cache_dtype)
    slots = _slots((tokens_BP.shape[1] if each == 1 else 0) + (until or max_new_tokens), steps)
    room = _slots(max_new_tokens, steps)
    allowed_V, seed = np.arange(vocab) < vocab_size, np.uint32(seed % 2**32)
    return Call(
        graph, reader, settings, slots, room, max_new_tokens, params, tokens_BP, segments_BP, rows_B, seed, allowed_V, prefix_WQ
    )  # fmt: skip


def _slots(n: int, steps: int = 8) -> int:
    """The next of so many steps from one power of two to the next, 16 apart at least: calls of about the same length then share
    what is compiled."""
    unit = max(16, (1 << (n - 1).bit_length()) // (2 * steps))
    return -(-n // unit) * unit


@functools.lru_cache(maxsize=16)
def _unrolled(config: ModelConfig) -> nnx.GraphDef:
    """The same model whose layers are unrolled: a scan over layers would copy their weights and caches at every token."""
    return skeleton(dataclasses.replace(config, scan_layers=False))[0]


def _placed(arrays: tuple[np.ndarray, ...]) -> tuple:
    """Rows split over the mesh that is set."""
    if jax.sharding.get_abstract_mesh().empty:
        return arrays
    where = NamedSharding(jax.sharding.get_mesh(), spec("batch"))
    return tuple(jax.make_array_from_callback(x.shape, where, lambda index, x=x: x[index]) for x in arrays)


def _padded(ids: Sequence[Sequence[int]], width: int) -> tuple[np.ndarray, np.ndarray]:
    longest = max(map(len, ids))
    width = width if width >= longest else max(16, 1 << (longest - 1).bit_length())
    tokens, segments = np.zeros((len(ids), width), np.int32), np.zeros((len(ids), width), np.int32)
    for row, prompt in enumerate(ids):
        tokens[row, width - len(prompt) :] = prompt
        segments[row, width - len(prompt) :] = 1
    return tokens, segments


def _start_of(call: Call) -> SamplingState:
    return _start(
        call.graph, call.reader, call.settings, call.slots, call.room, call.params, call.tokens_BP, call.segments_BP,
        call.rows_B, call.seed, call.allowed_V, call.prefix_WQ,
    )  # fmt: skip


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _start(
    graph, reader, settings, slots, room, params, tokens_BP, segments_BP, rows_B, seed, allowed_V, prefix_WQ
) -> SamplingState:  # fmt: skip
    """Reads the prompts into an empty cache and draws the first token; of each prompt as many as there are rows for.

    A program of its own, so that prompts of another width need no other loop.
    """
    model, dtype = nnx.merge(reader, params), settings.cache_dtype
    (prompts, P), B = tokens_BP.shape, rows_B.shape[0]
    each, Q = B // prompts, 0
    positions_BP = jnp.maximum(0, jnp.cumsum(segments_BP, axis=1) - 1)
    free = slots if each == 1 else P
    if prefix_WQ is None:
        before = empty_state(model.config, prompts, free, dtype)
    else:
        W, Q = prefix_WQ.shape
        first = model.hidden(prefix_WQ, state=empty_state(model.config, W, Q, dtype)).state
        before = continued(first, model.config, prompts // W, free, dtype)
    read = model.hidden(tokens_BP, segments_BP, Q + positions_BP, before)
    logits_BV = repeated(model.logits(read.x_BTD[:, -1:])[:, 0], each)
    lengths_B = Q + repeated(segments_BP.sum(axis=1), each)
    decode = read.state if each == 1 else continued(read.state, model.config, each, slots, dtype)
    if model.config.scan_layers and not nnx.merge(graph, params).config.scan_layers:
        decode = _apart(decode, model.config)
    nothing = jnp.zeros((B, room), jnp.int32, out_sharding=spec("batch", None))
    first = SamplingState(
        decode, lengths_B * 0, lengths_B - 1, lengths_B < 0, lengths_B < 0, nothing, nothing.astype(jnp.float32), jnp.int32(0)
    )  # fmt: skip
    return _drawn(first, logits_BV, settings, rows_B, seed, allowed_V)


def _sample_step(
    graph, settings, params, state: SamplingState, tokens_BP, rows_B, seed, allowed_V, layers=None
) -> SamplingState:  # fmt: skip
    """Feeds the last token and draws the next one: shared by the compiled loop and by streaming."""
    model = nnx.merge(graph, params)
    ones = jnp.ones_like(state.last_B)[:, None]
    before = state.decode
    if model.config.rope.scaling == "longrope":
        switches = jnp.max(state.positions_B) == model.config.rope.original_positions
        before = lax.cond(switches, lambda: _read_again(model, state, tokens_BP), lambda: before)
    logits, decode = model(state.last_B[:, None], ones, state.positions_B[:, None], before, layers)
    return _drawn(state._replace(decode=decode), logits[:, 0], settings, rows_B, seed, allowed_V)


def _read_again(model: Transformer, state: SamplingState, tokens_BP) -> DecodeState:
    """The decode state of the same tokens, turned by the angles of a sequence one token longer.

    LongRoPE turns every token otherwise once the sequence outgrows the original context (lm/model/positions.py).
    """
    decode, P = state.decode, tokens_BP.shape[1]
    segments_BS = decode.segments_BS
    tokens_BS = jnp.zeros_like(segments_BS).at[:, :P].set(tokens_BP)
    N = min(state.out_BN.shape[1], segments_BS.shape[1] - P)
    tokens_BS = tokens_BS.at[:, P : P + N].set(state.out_BN[:, :N])
    positions_BS = jnp.maximum(0, jnp.cumsum(segments_BS, axis=1) - 1)
    # A free slot's position counts for nothing but this: it makes the sequence as long as it is about to be.
    positions_BS = positions_BS.at[:, -1].max(model.config.rope.original_positions)
    fresh = jax.tree.map(jnp.zeros_like, decode)
    return model.hidden(tokens_BS, segments_BS, positions_BS, fresh).state._replace(slot=decode.slot)


def _apart(decode: DecodeState, config: ModelConfig) -> DecodeState:
    """The state of a model that scans its layers, as the same model needs it whose layers are unrolled."""
    layers = tuple(
        tuple(tuple(unstacked(cache, repeats)) for cache in caches)
        for caches, (_, repeats) in zip(decode.layers, config.stacks, strict=True)
    )
    return decode._replace(layers=layers)


_next = jax.jit(_sample_step, static_argnums=(0, 1), donate_argnums=3)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _changed(config, more, state: SamplingState, tokens_BP, rows_B, kept_B) -> tuple[SamplingState, jax.Array, jax.Array]:
    """The state with `more` slots, of the rows at the places kept_B if that is not None, and their tokens_BP and rows_B."""
    decode = resized(state.decode, config, kept_B, more)
    rest = state._replace(decode=()), jnp.asarray(tokens_BP), jnp.asarray(rows_B)
    if kept_B is not None:
        rest = jax.tree.map(lambda x: taken(x, kept_B) if x.ndim else x, rest)
    return rest[0]._replace(decode=decode), *rest[1:]


def _loop_of(call: Call, state: SamplingState, until: int) -> SamplingState:
    """The state after `until` tokens."""
    # Only LongRoPE reads the prompts again; the loop of the others is the same whatever the width of these.
    longrope = nnx.merge(call.graph, call.params).config.rope.scaling == "longrope"
    return _loop(
        call.graph, call.settings, call.params, state, call.tokens_BP if longrope else None, call.rows_B, call.seed,
        call.allowed_V, until,
    )  # fmt: skip


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def _loop(graph, settings, params, state: SamplingState, tokens_BP, rows_B, seed, allowed_V, until) -> SamplingState:
    model = nnx.merge(graph, params)
    apart = jax.default_backend() == "cpu" and not model.config.scan_layers and _bytes(params) <= APART
    layers = model.unstacked() if apart else None
    return lax.while_loop(
        lambda s: (s.n < until) & ~s.done_B.all() & ~s.lost_B.any(),
        lambda s: _sample_step(graph, settings, params, s, tokens_BP, rows_B, seed, allowed_V, layers),
        state,
    )


def _bytes(params) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params))


def _drawn(state: SamplingState, logits_BV, settings, rows_B, seed, allowed_V) -> SamplingState:
    """The state after drawing token n from these logits; finished rows go on with the end token that they drew."""
    logits_BV = reshard(logits_BV, "batch", None)
    keys = jax.vmap(lambda row: jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), row), state.n))(rows_B)
    drawn_B = sample(keys, jnp.where(allowed_V, logits_BV, -jnp.inf), settings)
    drawn_B = jnp.where(state.done_B, state.last_B, drawn_B).astype(jnp.int32)
    logits_BV = logits_BV / (settings.temperature or 1.0)
    logp_B = _picked(logits_BV, drawn_B) - jax.nn.logsumexp(logits_BV, axis=-1)
    # NaN or +inf anywhere makes logsumexp so, and where all are -inf, so is the one picked: no reduction of its own is needed.
    lost_B = ~state.done_B & ~jnp.isfinite(logp_B)

    def put(old_BN, new_B):
        return lax.dynamic_update_slice_in_dim(old_BN, new_B[:, None], state.n, axis=1)

    done = state.done_B
    for stop in settings.stop_ids:
        done = done | (drawn_B == stop)
    out_BN, logps_BN = put(state.out_BN, drawn_B), put(state.logps_BN, logp_B)
    return SamplingState(state.decode, drawn_B, state.positions_B + 1, done, lost_B, out_BN, logps_BN, state.n + 1)


def _picked(x_BV, index_B) -> jax.Array:
    """x[b, index[b]]."""
    return jnp.sum(jnp.where(jnp.arange(x_BV.shape[1]) == index_B[:, None], x_BV, 0), axis=-1)


def sample(keys_B, logits_BV, settings: Settings) -> jax.Array:
    """One token a row, int32 [B].

    Temperature first, then top-k, then nucleus sampling: the smallest set of tokens whose probabilities reach top_p
    (Holtzman et al. 2020); the most likely one is always in it. Of equal logits, which bfloat16 makes common, the lower
    ids are kept, so that top_k=1 is greedy.
    """
    if settings.temperature == 0:
        return first_of_most(logits_BV)
    logits_BV = logits_BV / settings.temperature

    def draw(keys_B, logits_BV):
        """The Gumbel-max trick (Gumbel 1954): argmax of log p + g, where g = −log(−log u) and u is uniform."""
        noise_BV = jax.vmap(lambda key: jax.random.gumbel(key, logits_BV.shape[1:]))(keys_B)
        return first_of_most(logits_BV + noise_BV)

    if not settings.top_k and settings.top_p == 1:
        return draw(keys_B, logits_BV)
    V = logits_BV.shape[-1]
    ranked, ids = lax.top_k(logits_BV, min(settings.top_k or V, V))
    if settings.top_p < 1:
        p = jax.nn.softmax(ranked, axis=-1)
        ranked = jnp.where(jnp.cumsum(p, axis=-1) - p < settings.top_p, ranked, -jnp.inf)
    return _picked(ids, draw(keys_B, ranked))


def first_of_most(x) -> jax.Array:
    """argmax of the last axis, int32, as two plain reductions: one that carries values and indices is ten times as slow on a
    CPU."""
    ids = lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
    return jnp.min(jnp.where(x == jnp.max(x, axis=-1, keepdims=True), ids, x.shape[-1] - 1), axis=-1)


def _show(stream, tokenizer, row: list[int], shown: str, stops: Sequence[int], last: bool = False) -> str:
    """Streams what is new; a character whose bytes are not all there yet waits."""
    text = tokenizer.decode(row[:-1] if row[-1] in stops else row)
    if not last:
        text = text.rstrip("\ufffd")
    if len(text) > len(shown) and text.startswith(shown):
        stream(text[len(shown) :])
        return text
    return shown
