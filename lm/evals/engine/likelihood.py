"""Log-probabilities of continuations, token by token.

Contexts' common prefixes are read once (see prefix_plan.py). Logits are computed only at the tokens that are scored.

Axes: B rows, T slots of a row, P slots of a prefix, S = P + T, N scored slots of a row, K targets of a slot, W prefixes of a
wave, D model, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from lm.config import ModelConfig
from lm.evals.engine.prefix_plan import Batch, Costs, plan
from lm.infer import not_finite
from lm.infer.engine.draw import first_of_most
from lm.kernels.attention import Branches
from lm.kernels.head import even, head_logits, joined, split
from lm.kernels.matmul import gathered
from lm.model.cache import DecodeState, cache_dtype, cache_shapes, cache_spec, empty_state
from lm.model.inputs import Inputs
from lm.model.transformer import Transformer, skeleton
from lm.parallel.mesh import place_rows, reshard, row_ways

LOGITS = 1 << 25  # maximum number of logits at a time on a device
CACHE = 1 << 30  # approximate bytes of keys and values on a device
BATCH = {"cpu": 512, "accelerator": 32768}  # slots of a batch: a CPU has small caches
COMPILING = {"cpu": 10**11, "accelerator": 10**15}  # cost of compiling a shape: FLOPs of the device in that time


class Request(NamedTuple):
    """context and continuation: token ids, at least one each."""

    context: Sequence[int]
    continuation: Sequence[int]


class Scored(NamedTuple):
    """logps: float32 [n], nats, one for each token of the continuation. greedy: whether each token was the most likely one."""

    logps: np.ndarray
    greedy: np.ndarray


class Work(NamedTuple):
    """A batch of requests to score, or of prompts to continue (generate.py).

    numbers: of the requests that it answers. shape: the compiled shape. tokens: read, without padding.
    run(wanted, keep): answer at least the wanted requests; call keep({number: answer}) as answers come. Raises: UserError if a
    log-probability is not finite.
    """

    numbers: list[int]
    shape: tuple
    run: Callable[[set[int], Callable[[dict[int, Any]], None]], None]
    tokens: int = 0


def cut(request: Request, max_length: int) -> Request | None:
    """Return the request with its context cut at the start to fit `max_length` positions; None if it cannot fit.

    The last token is only a target, so there is room for one more token than the model reads (as in lm-evaluation-harness).
    """
    context, continuation = request
    room = max_length + 1 - len(continuation)
    if room < 1 or not len(context) or not len(continuation):
        return None
    return Request(context[-room:], continuation)


def work(
    model: Transformer, requests: Sequence[Request], *, max_length: int, batch_tokens: int | None = None
) -> Iterator[Work]:
    """Yield the batches that answer the requests. Run them in this order; each may be skipped.

    Requests that `cut` refuses are in no batch. The batches depend only on the arguments and the set of requests, so an
    evaluation that skips batches with known answers gets bit-identical numbers for the rest.

    Args:
      max_length: positions of the model that may be used.
      batch_tokens: slots of a batch; None: the value in BATCH.
    """
    reader, costs, rope = _Reader(model), _costs(model, batch_tokens), model.config.rope
    # Rotary angles of longer rows depend on the length, so such a request must not share a row or be padded.
    varying = model.config.positions == "rotary" and rope.depends_on_length
    together, alone = [], []
    for n, request in enumerate(requests):
        if (fitting := cut(request, max_length)) is not None:
            read = len(fitting.context) + len(fitting.continuation) - 1
            (alone if varying and read > rope.original_positions else together).append((read, n, fitting))
    yield from reader.works([(n, fitting) for _, n, fitting in together], costs)
    for read, n, fitting in sorted(alone, key=lambda entry: entry[:2]):
        yield from reader.works([(n, fitting)], costs._replace(batch=read * costs.ways), exact=read)


def slot_bytes(config: ModelConfig) -> int:
    """Return the bytes of key/value cache that one slot of a row takes in all layers."""
    sizes = [x[0] * x[1] for x in cache_shapes(config).values()]
    return sum(sizes) * config.attention_layers * cache_dtype(config).itemsize


def dropless(model: Transformer) -> Transformer:
    """Return the model without expert capacity: with dropped tokens, an answer would depend on the rest of the batch."""
    config = model.config
    if not config.moe.capacity_factor:
        return model
    config = dataclasses.replace(config, moe=dataclasses.replace(config.moe, capacity_factor=0.0))
    return nnx.merge(skeleton(config)[0], nnx.split(model)[1])


def _costs(model: Transformer, batch_tokens: int | None) -> Costs:
    kind = "cpu" if jax.default_backend() == "cpu" else "accelerator"
    ways = row_ways()
    parameters = sum(x.size for x in jax.tree.leaves(nnx.split(model)[1]))
    return Costs(
        model.config.embed_dim,
        shape=COMPILING[kind] // (2 * parameters),
        batch=batch_tokens or BATCH[kind],
        cache=ways * CACHE // max(1, slot_bytes(model.config)),
        ways=ways,
        shares=not model.config.recurrent_kinds,
    )


class _Reader:
    """A model that reads batches, and the cached states of the current prefixes."""

    def __init__(self, model: Transformer):
        self.graph, self.params = nnx.split(dropless(model))
        self.prefixes, self.states = None, None

    def works(self, requests: list[tuple[int, Request]], costs: Costs, exact: int = 0) -> Iterator[Work]:
        """Yield the batches of requests. exact: row length that must not be padded; 0: any."""
        for batch in plan([r.context for _, r in requests], [r.continuation for _, r in requests], costs):
            batch = batch._replace(T=exact) if exact else batch
            numbers = sorted({number for row in batch.rows for trie in row.tries for number in trie.answers})
            tokens = sum(len(trie.tokens) for row in batch.rows for trie in row.tries)
            owners = {number: requests[number][0] for number in numbers}
            shape = (batch.B, batch.T, batch.P, batch.N, batch.K, batch.W)
            yield Work(list(owners.values()), shape, functools.partial(self.run, batch, owners), tokens)

    def run(self, batch: Batch, owners: dict[int, int], wanted: set[int], keep: Callable) -> None:
        states = self._states(batch) if batch.P else None
        rows, where = _laid_out(batch)
        logps_BNK, best_BN = _scored(self.graph, self.params, states, _Rows(*place_rows(*rows)))
        logps_BNK, best_BN = np.asarray(logps_BNK), np.asarray(best_BN)
        scored = {}
        for number, owner in owners.items():
            b, n, k = where[number]
            logps = logps_BNK[b, n, k]
            if not np.isfinite(logps).all():
                raise not_finite.error(nnx.merge(self.graph, self.params), "likelihoods: log-probabilities of the model")
            scored[owner] = Scored(logps, best_BN[b, n] == rows.targets_BNK[b, n, k])
        keep(scored)

    def _states(self, batch: Batch):
        """Return the states of the batch's prefixes, replicated on every device."""
        if self.prefixes is not batch.prefixes:
            self.states = None
            tokens, segments = np.zeros((2, batch.W, batch.P), np.int32)
            for w, prefix in enumerate(batch.prefixes):
                tokens[w, : len(prefix)], segments[w, : len(prefix)] = prefix, 1
            self.prefixes, self.states = batch.prefixes, _prefixes(self.graph, self.params, *place_rows(tokens, segments))
        return self.states


class _Rows(NamedTuple):
    """Arrays of a batch, int32. which_B: index of each row's prefix. read_B: its filled slots. valid_BT: 1 where a row has a
    token. ends_BT: see prefix_plan.py. slots_BN: the scored slots. targets_BNK: the ids to score there."""

    which_B: np.ndarray
    read_B: np.ndarray
    tokens_BT: np.ndarray
    positions_BT: np.ndarray
    valid_BT: np.ndarray
    ends_BT: np.ndarray
    slots_BN: np.ndarray
    targets_BNK: np.ndarray


def _laid_out(batch: Batch) -> tuple[_Rows, dict[int, Any]]:
    """Return the arrays of a batch, and {request number: (row, its scored slots, its targets in them)}."""
    B, T, P, N, K = batch.B, batch.T, batch.P, batch.N, batch.K
    tokens_BT, positions_BT, valid_BT = np.zeros((3, B, T), np.int32)
    ends_BT = np.zeros((B, T), np.int32) + np.arange(1, T + 1, dtype=np.int32)  # padding sees itself
    slots_BN, targets_BNK = np.zeros((B, N), np.int32), np.zeros((B, N, K), np.int32)
    which_B, read_B, where = np.zeros(B, np.int32), np.zeros(B, np.int32), {}
    for b, row in enumerate(batch.rows):
        if P:
            which_B[b], read_B[b] = row.prefix, len(batch.prefixes[row.prefix])
        begin, n = 0, 0
        for trie in row.tries:
            here = slice(begin, begin + len(trie.tokens))
            tokens_BT[b, here], positions_BT[b, here], valid_BT[b, here] = trie.tokens, trie.positions, 1
            ends_BT[b, here] = trie.ends + begin
            at = {}
            for slot, ids in trie.targets.items():
                at[slot] = n
                slots_BN[b, n], targets_BNK[b, n, : len(ids)] = begin + slot, ids
                n += 1
            for number, answer in trie.answers.items():
                where[number] = b, np.asarray([at[slot] for slot, _ in answer]), np.asarray([k for _, k in answer])
            begin = here.stop
    return _Rows(which_B, read_B, tokens_BT, positions_BT, valid_BT, ends_BT, slots_BN, targets_BNK), where


@functools.partial(jax.jit, static_argnums=0)
def _prefixes(graph, params, tokens_WP, segments_WP):
    """Return the layers' caches of the prefixes, replicated on every device except over heads."""
    model = nnx.merge(graph, params)
    positions_WP = jnp.zeros_like(tokens_WP) + jnp.arange(tokens_WP.shape[1], dtype=tokens_WP.dtype)
    state = empty_state(model.config, *tokens_WP.shape)
    layers = model.hidden(Inputs(tokens_WP, segments_WP, positions_WP * segments_WP), state, prefill=True).memory.layers
    where = cache_spec(model.config, None, int(model.config.scan_layers))
    return layers if where is None else jax.tree.map(lambda x: jax.sharding.reshard(x, where), layers)


@functools.partial(jax.jit, static_argnums=0)
def _scored(graph, params, prefixes, rows: _Rows):
    """Return log p of the targets, float32 [B, N, K], and the most likely tokens, int32 [B, N].

    prefixes: layers' caches of W rows and P slots, or None.
    """
    model = nnx.merge(graph, params)
    state = None if prefixes is None else _after(model, prefixes, rows.which_B, rows.read_B, rows.tokens_BT.shape[1])
    x_BTD = _read(model, rows, state)
    return _of_targets(model, jnp.take_along_axis(x_BTD, rows.slots_BN[..., None], axis=1), rows.targets_BNK)


def _after(model: Transformer, prefixes, which_B, read_B, T: int) -> DecodeState:
    """Return the state of rows that have read their prefixes, with room for T more tokens."""
    stacked = int(model.config.scan_layers)
    where, slots = cache_spec(model.config, "batch", stacked), 2 + stacked
    P = jax.tree.leaves(prefixes)[0].shape[slots]

    def rows(x):
        taken = (x.at[:, which_B] if stacked else x.at[which_B]).get(out_sharding=where)
        return jnp.pad(taken, [(0, T if n == slots else 0) for n in range(x.ndim)])

    segments_BS = (jnp.arange(P + T) < read_B[:, None]).astype(jnp.int32)
    positions_BS = segments_BS * jnp.arange(P + T, dtype=jnp.int32)
    return DecodeState(jax.tree.map(rows, prefixes), segments_BS, positions_BS, jnp.int32(P))


def _read(model: Transformer, rows: _Rows, state: DecodeState | None) -> jax.Array:
    """Return hidden states after the last norm. A token attends to its prefix, and to slots k ≤ its own that end after it."""
    T = rows.tokens_BT.shape[1]
    P = 0 if state is None else state.segments_BS.shape[1] - T
    prefix_P = jnp.arange(P, dtype=jnp.int32)
    ends_BS = jnp.concatenate((jnp.where(prefix_P < rows.read_B[:, None], P + T, 0), rows.ends_BT + P), axis=1)
    keys_BS = jnp.concatenate((jnp.zeros_like(rows.read_B)[:, None] + prefix_P, rows.positions_BT), axis=1)
    branches = Branches(ends_BS, rows.positions_BT, keys_BS)
    return model.hidden(Inputs(rows.tokens_BT, rows.valid_BT, rows.positions_BT, branches), state).x_BTD


def _of_targets(model: Transformer, x_BND, targets_BNK) -> tuple[jax.Array, jax.Array]:
    """Return log p of each target, and the most likely token. Logits are computed for a chunk of slots at a time."""
    config, x_BND, (B, N, _) = model.config, model.to_head(x_BND), targets_BNK.shape
    head_VD = gathered(model.head_VD.astype(config.compute_dtype))
    chunk = even(N, LOGITS // (config.vocab_size * max(1, B // row_ways())))

    def some(inputs):
        x_BnD, targets_BnK = inputs
        logits = reshard(head_logits(x_BnD, head_VD, config.logit_softcap), "batch", None, None)
        labels = jnp.take_along_axis(logits, targets_BnK, axis=-1)
        return labels - jax.nn.logsumexp(logits, axis=-1, keepdims=True), first_of_most(logits)

    if chunk == N:
        logps, best = some((x_BND, targets_BNK))
    else:
        logps, best = (joined(y, N) for y in lax.map(some, split(chunk, x_BND, targets_BNK)))
    return reshard(logps, None, None, None), reshard(best, None, None)
