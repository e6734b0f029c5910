"""The compiled step: tokens of many sequences through the model, and the next token of each that needs one.

Shapes are fixed: a step of any number of tokens runs in the smallest of a few sizes, so nothing compiles while requests are
served. On a mesh the axes of a batch split sequences into shards: the tokens, logits, sequences and pages of a shard are
neighbours in their arrays and stay on its devices. All rows, slots and pages are counted within the shard.

Axes: B tokens of a step, S logits, R sequences, N pages of a sequence, V vocabulary, D model.
"""

import contextlib
import functools
import operator
from collections.abc import Hashable
from collections.abc import Sequence as List
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lm.config import ModelConfig
from lm.infer.engine.draw import GREEDY, PLAIN, TRUNCATED, Adjust, Drawn, Settings, by_rows, draw
from lm.infer.engine.media import empty_vectors
from lm.infer.engine.request import TOP
from lm.infer.engine.sequence import Part
from lm.infer.engine.weights import Program
from lm.kernels.ops import rows_alone
from lm.model.inputs import Inputs
from lm.model.linear import adapters_of_rows
from lm.model.media import Vectors
from lm.model.pages import PagedState, PageTable, empty_layers
from lm.model.transformer import of_module
from lm.parallel.arrays import PyTree
from lm.parallel.mesh import reshard, row_ways, spec

GROUPS = 4, 1  # rows that are drawn at once on a CPU; each size takes programs of 30 MB


programs: dict[tuple[Hashable, ...], jax.stages.Compiled] = {}


def forward(
    program: Program, arrays: List[jax.Array], pages: PyTree, *step: PyTree, by: Any = None
) -> tuple[PyTree, jax.Array, jax.Array]:
    """Compute `_forward`, or `by`, by a program that is compiled when the first step of its shapes comes.

    To call a jitted function would keep what was traced and lowered as well, twice the memory of the program. On a mesh it is
    called, because there a program depends on how arrays are split, too.
    """
    by = by or _forward
    if not jax.sharding.get_abstract_mesh().empty:
        return by(program, arrays, pages, *step)
    leaves, tree = jax.tree.flatten((pages, step))
    key = by, program, tree, *[(x.shape, x.dtype) for x in leaves]
    if key not in programs:
        programs[key] = by.lower(program, arrays, pages, *step).compile()
    return programs[key](arrays, pages, *step)


def lowered(program: Program, arrays: List[jax.Array], pages: PyTree, *step: PyTree) -> jax.stages.Lowered:
    """Return the program of a step, to be compiled. Shapes are enough for its arrays."""
    return _forward.lower(program, arrays, pages, *step)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _forward(
    program: Program,
    arrays: List[jax.Array],
    pages: List[jax.Array],
    tokens_B: jax.Array,
    table: PageTable,
    at_S: jax.Array,
    mask_BR: jax.Array | None = None,
    vectors: Vectors | None = None,
) -> tuple[List[jax.Array], jax.Array, jax.Array]:
    """Return (the pages with the new keys and values, float32 logits [S, V] of the tokens at_S, their hidden states [S, D]).

    With modules that look ahead hidden states are those of all tokens, [B, D].

    arrays: the leaves of the program's tree, as a tuple: to find them in nnx's states takes milliseconds at each call.
    pages: the leaves of `empty_layers`, as a tuple for the same reason.
    mask_BR: of adapters (lm/infer/engine/adapters.py), or None if there is no room for any. vectors: of media that take the
    places of tokens, or None.
    """
    params, layers = jax.tree.unflatten(program.tree, arrays)
    model = nnx.merge(program.graph, params)
    tokens_B, table, at_S, mask_BR, vectors = by_rows((tokens_B, table, at_S, mask_BR, vectors))
    kinds, ways = {x.dtype.name for x in pages}, row_ways()
    dtype = next((name for name in ("int8", "bfloat16") if name in kinds), "float32")  # of pages; states are float32
    empty = functools.partial(empty_layers, model.config, ways, 1, dtype, ways)  # for the tree alone
    paged = PagedState(jax.tree.unflatten(jax.tree.structure(jax.eval_shape(empty)), pages), table)
    valid_B1, place_B1 = (jnp.asarray(table.slot_B) >= 0).astype(jnp.int32)[:, None], jnp.asarray(table.place_B)[:, None]
    with rows_alone(), contextlib.nullcontext() if mask_BR is None else adapters_of_rows(mask_BR):
        inputs = Inputs(tokens_B[:, None], valid_B1, place_B1, vectors=vectors)
        out = model.hidden(inputs, paged, layers=layers)
    x_S1D = _taken(out.x_BTD, at_S)
    hidden = (out.x_BTD if model.config.mtp_depth else x_S1D)[:, 0]
    return tuple(jax.tree.leaves(out.memory.layers)), model.logits(x_S1D)[:, 0], reshard(hidden, None, None)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def ahead(
    program: Program,
    arrays: List[jax.Array],
    pages: List[jax.Array],
    tokens_B: jax.Array,
    table: PageTable,
    at_S: jax.Array,
    hidden_ND: jax.Array,
    from_B: jax.Array,
) -> tuple[List[jax.Array], jax.Array, jax.Array]:
    """Return what `_forward` returns, of the module that looks ahead, [S, D] of hidden states.

    pages: of `of_module`. tokens_B: the token after each. from_B: which of the N hidden states is a token's.
    """
    model = nnx.merge(program.graph, jax.tree.unflatten(program.tree, arrays)[0])
    tokens_B, table, at_S, from_B = by_rows((tokens_B, table, at_S, from_B))
    count, size = pages[0].shape[-4:-2]
    tree = jax.tree.structure(jax.eval_shape(functools.partial(empty_layers, of_module(model.config), count, size)))
    valid_B1, place_B1 = (jnp.asarray(table.slot_B) >= 0).astype(jnp.int32)[:, None], jnp.asarray(table.place_B)[:, None]
    with rows_alone():
        inputs = Inputs(tokens_B[:, None], valid_B1, place_B1)
        out = model.next_ahead(hidden_ND[from_B][:, None], inputs, PagedState(jax.tree.unflatten(tree, pages), table))
    x_S1D = _taken(out.x_BTD, at_S)
    return tuple(jax.tree.leaves(out.memory.layers)), model.logits(x_S1D)[:, 0], x_S1D[:, 0]


def _taken(x_BTD: jax.Array, at_S: jax.Array) -> jax.Array:
    """Return the rows at_S of each shard."""
    rows = spec("batch", "length", None)
    take = operator.getitem if rows is None else jax.shard_map(operator.getitem, in_specs=(rows, spec("batch")), out_specs=rows)
    return take(x_BTD, at_S)


class Shapes(NamedTuple):
    """The shapes of steps. sizes: a shard's tokens, ascending. page: tokens of a page. all_pages: whether they get the page
    table whole: kernels read only the pages that are there, and their plain twin all columns.
    """

    sizes: tuple[int, ...]
    page: int
    all_pages: bool
    shards: int = 1

    def logits(self, B: int) -> tuple[int, ...]:
        """Return how many logits a shard's step of B tokens can have: B, and for the largest also the next smaller size."""
        return self.sizes[-2:] if B == self.sizes[-1] else (B,)


def shapes_of(rows: int, budget: int, page: int, all_pages: bool) -> Shapes:
    """Return the shapes of steps on the current mesh. A shard decodes at most `rows` tokens, and has at most `budget` in all.

    Sizes are 1, 4, 8, 16 and the quarters of `rows`, as far as they are below it; `rows`; the budget. From 8 tokens on, the
    time of a step on a CPU is about proportional to its tokens.
    """
    unit = max(8, -(-rows // 4))
    some = sorted(n for n in {1, 4, 8, 16, *range(unit, rows, unit)} if n < rows)
    return Shapes(tuple(dict.fromkeys((*some, rows, max(rows, budget)))), page, all_pages, row_ways())


def fitting(n: int, sizes: List[int]) -> int:
    """Return the first size that is at least n; sizes are ascending."""
    return next(size for size in sizes if size >= n)


class Laid(NamedTuple):
    """A step's arguments.

    slots_B: of the tokens' adapters. places: index of the first token of each part in tokens_B. draws: for each logit that is
    needed its index among the S, its part, and the index of its token in the part; those of a part are neighbours.
    """

    tokens_B: np.ndarray
    table: PageTable
    at_S: np.ndarray
    slots_B: np.ndarray
    places: list[int]
    draws: list[tuple[int, Part, int]]


def lay_out(parts: List[Part], shapes: Shapes, tables_RN: np.ndarray) -> Laid:
    """Return the arrays of a step. The rows of the parts' sequences in tables_RN are written."""
    W, size = shapes.shards, shapes.page
    tokens_W, logits_W = [0] * W, [0] * W
    places, firsts = list[int](), list[int]()  # of the parts, within their shards
    for part in parts:
        w = part.sequence.shard
        places.append(tokens_W[w])
        firsts.append(logits_W[w])
        tokens_W[w] += len(part.tokens)
        logits_W[w] += len(part.tokens) - part.first_drawn
    b = fitting(max(tokens_W), shapes.sizes)
    s = fitting(max(logits_W), shapes.logits(b))
    B, R = W * b, len(tables_RN) // W
    tokens_B, row_B, place_B = np.zeros(B, np.int32), np.full(B, -1, np.int32), np.zeros(B, np.int32)
    slot_B, length_B = np.full(B, -1, np.int32), np.ones(B, np.int32)
    slots_B, at_S, states_B2 = np.full(B, -1, np.int32), np.zeros(W * s, np.int32), np.zeros((B, 2), np.int32)
    draws = list[tuple[int, Part, int]]()
    for n, part in enumerate(parts):
        sequence, count, w, first = part.sequence, len(part.tokens), part.sequence.shard, part.first_drawn
        here = slice(w * b + places[n], w * b + places[n] + count)
        in_sequence = np.arange(part.begin, part.begin + count)
        blocks = np.asarray(sequence.blocks, np.int32)
        tables_RN[w * R + sequence.row, : len(blocks)] = blocks
        tokens_B[here], row_B[here], place_B[here] = part.tokens, sequence.row, in_sequence
        slots_B[here] = sequence.slot
        slot_B[here] = blocks[in_sequence // size] * size + in_sequence % size
        if sequence.rope is not None:
            length_B[here] = [sequence.length_at(int(place)) for place in in_sequence]
        if sequence.has_state:
            states_B2[here] = sequence.states(count)
        at = w * s + firsts[n]
        at_S[at : at + count - first] = np.arange(places[n] + first, places[n] + count)
        draws += [(at + index - first, part, index) for index in range(first, count)]
        places[n] = here.start
    columns = tables_RN.shape[1]
    if not shapes.all_pages:
        columns = 1 << (max((len(part.sequence.blocks) for part in parts), default=1) - 1).bit_length()
    table = PageTable(tables_RN[:, :columns].copy(), row_B, place_B, slot_B, length_B, states_B2)
    return Laid(tokens_B, table, at_S, slots_B, places, draws)


def placed_vectors(parts: List[Part], laid: Laid, config: ModelConfig) -> Vectors | None:
    """Return the vectors of media in the places of their tokens; None if the step has text only."""
    shown = [part.sequence.shown for part in parts]
    if not any(shown):
        return None
    vectors_BTD, there_BT = empty_vectors(len(laid.tokens_B), config)
    for n, part, media in zip(laid.places, parts, shown, strict=True):
        if media is not None:
            assert media.vectors_VD is not None  # a sequence starts when its media are encoded
            numbers = media.numbers_T[part.begin : part.begin + len(part.tokens)]
            places = np.flatnonzero(numbers >= 0)
            vectors_BTD[n + places, 0], there_BT[n + places] = media.vectors_VD[numbers[places]], True
    return Vectors(vectors_BTD, there_BT) if there_BT.any() else None


class Drawing(NamedTuple):
    """What is drawn from the logits of a step. how: GREEDY, PLAIN or TRUNCATED, whatever a row needs. top: as in `draw`."""

    how: int
    top: int
    settings: Settings
    adjust: Adjust | None
    forced_S: np.ndarray


def drawing_of(laid: Laid, V: int) -> Drawing:
    """Return what is drawn from the logits of a step, of which each row has V."""
    S = len(laid.at_S)
    settings = _greedy(S)
    forced_S, top, how, adjust = np.full(S, -1, np.int32), -1, GREEDY, None
    for s, part, index in laid.draws:
        r, sequence = part.sequence.request, part.sequence
        place = part.begin + index + 1  # of the token that is drawn
        settings.divisor_S[s] = (r.temperature or 1.0) if r.tempered else 1.0
        if place < len(sequence.tokens):
            forced_S[s] = sequence.tokens[place]
            top = max(top, _alternatives(r.prompt_logprobs, r.tempered))
            continue
        top = max(top, _alternatives(r.logprobs, r.tempered))
        if r.temperature > 0:
            how = max(how, PLAIN if r.top_p >= 1 and not r.top_k and not r.min_p else TRUNCATED)
        settings.temperature_S[s], settings.top_p_S[s], settings.top_k_S[s] = r.temperature, r.top_p, r.top_k
        settings.min_p_S[s], settings.seed_S[s], settings.n_S[s] = r.min_p, r.seed % 2**32, place - sequence.prompt
        if sequence.thought is not None and sequence.thought.forced and place == len(sequence.tokens):
            forced_S[s] = sequence.thought.forced[0]
        if sequence.adjusts:
            if adjust is None:
                adjust = _no_change(S, V)
            adjust.bias_SV[s], adjust.seen_SV[s] = sequence.bias(), sequence.seen_V
            adjust.repeat_S[s] = r.repetition_penalty
    return Drawing(how, top, settings, adjust, forced_S)


def drawn(logits_SV: jax.Array, vocab_size: int, drawing: Drawing) -> Drawn:
    """Return what is drawn from the logits, as numpy arrays. vocab_size: only ids below it are drawn.

    On a CPU rows go in groups, so that few programs, each of megabytes, serve all steps. What numpy draws as well needs none:
    to start a program takes as long as a tenth of a small model's step.
    """
    begin, found = 0, list[Drawn]()
    how, top, settings, adjust, forced_S = drawing
    if jax.default_backend() != "cpu" or not jax.sharding.get_abstract_mesh().empty:
        return jax.tree.map(np.asarray, draw(np.int32(how), top, logits_SV, np.int32(vocab_size), settings, adjust, forced_S))
    if how == GREEDY and top < 0 and adjust is None:
        x_SV = np.asarray(logits_SV)
        token_S = np.where(forced_S >= 0, forced_S, x_SV[:, :vocab_size].argmax(axis=1)).astype(np.int32)
        return Drawn(token_S, np.zeros(len(x_SV), np.float32), ~np.isfinite(x_SV.max(axis=1)), None)
    rows = np.asarray(logits_SV), settings, adjust, forced_S
    while begin < len(forced_S):
        size = next(n for n in GROUPS if n <= len(forced_S) - begin)
        logits, *settled, forced = jax.tree.map(operator.itemgetter(slice(begin, begin + size)), rows)
        found.append(draw(np.int32(how), top, logits, np.int32(vocab_size), *settled, forced))
        begin += size
    return jax.tree.map(lambda *parts: np.concatenate(parts), *found)


def _alternatives(wanted: int, tempered: bool) -> int:
    """Return how many alternatives are computed: none or TOP, so that few programs compile; 0 only for rollouts."""
    return wanted if wanted < 0 or (tempered and not wanted) else TOP


def warm_drawings(S: int, V: int, adjusts: bool) -> list[Drawing]:
    """Return drawings that compile all programs: plain, with alternatives, and if `adjusts` with changes of the logits."""
    settings, forced_S = _greedy(S), np.full(S, -1, np.int32)
    kinds = [(-1, None), (TOP, None), *([(-1, _no_change(S, V))] if adjusts else [])]
    return [Drawing(PLAIN, top, settings, adjust, forced_S) for top, adjust in kinds]


def _no_change(S: int, V: int) -> Adjust:
    return Adjust(np.zeros((S, V), np.float32), np.zeros((S, V), bool), np.ones(S, np.float32))


def _greedy(S: int) -> Settings:
    """Return settings of rows that are drawn greedily."""
    zeros, ones, integers = np.zeros(S, np.float32), np.ones(S, np.float32), np.zeros(S, np.int32)
    return Settings(zeros, ones, integers, zeros.copy(), zeros.astype(np.uint32), integers.copy(), ones.copy())
