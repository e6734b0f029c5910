"""The compiled step: tokens of many sequences through the model, and the next token of each that needs one.

Shapes are fixed: a step of any number of tokens runs in the smallest of a few sizes, so nothing compiles while requests are
served.

Axes: B tokens of a step, S logits, R sequences, N pages of a sequence, V vocabulary.
"""

import contextlib
import functools
import operator
from collections.abc import Hashable
from collections.abc import Sequence as List
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lm.config import ModelConfig
from lm.infer.engine.draw import GREEDY, PLAIN, TRUNCATED, Adjust, Drawn, Settings, draw
from lm.infer.engine.media import empty_vectors
from lm.infer.engine.request import TOP
from lm.infer.engine.sequence import Part
from lm.infer.engine.weights import Program
from lm.kernels.native.registered import compiled
from lm.model.inputs import Inputs
from lm.model.linear import adapters_of_rows
from lm.model.media import Vectors
from lm.model.norms import rows_alone
from lm.model.pages import PagedState, PageTable
from lm.parallel.arrays import PyTree
from lm.parallel.mesh import spec

GROUPS = 4, 1  # rows that are drawn at once on a CPU; each size takes programs of 30 MB


programs: dict[tuple[Hashable, ...], jax.stages.Compiled] = {}


def forward(program: Program, arrays: List[jax.Array], pages: PyTree, *step: PyTree) -> tuple[PyTree, jax.Array, jax.Array]:
    """Compute `_forward` by a program that is compiled when the first step of its shapes comes.

    To call a jitted function would keep what was traced and lowered as well, twice the memory of the program.
    """
    leaves, tree = jax.tree.flatten(step)
    leaves.append(jax.tree.leaves(pages)[0])
    key = program, tree, *[(x.shape, x.dtype) for x in leaves]
    if key not in programs:
        programs[key] = _forward.lower(program, arrays, pages, *step).compile()
    return programs[key](arrays, pages, *step)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _forward(
    program: Program,
    arrays: List[jax.Array],
    pages: PyTree,
    tokens_B: jax.Array,
    table: PageTable,
    at_S: jax.Array,
    mask_BR: jax.Array | None = None,
    vectors: Vectors | None = None,
) -> tuple[PyTree, jax.Array, jax.Array]:
    """Return (the pages with the new keys and values, float32 logits [S, V] of the tokens at_S, their hidden states [S, D]).

    arrays: the leaves of the program's tree, as a tuple: to find them in nnx's states takes milliseconds at each call.
    mask_BR: of adapters (lm/infer/engine/adapters.py), or None if there is no room for any. vectors: of media that take the
    places of tokens, or None.
    """
    params, layers = jax.tree.unflatten(program.tree, arrays)
    model = nnx.merge(program.graph, params)
    valid_B1, place_B1 = (jnp.asarray(table.slot_B) >= 0).astype(jnp.int32)[:, None], jnp.asarray(table.place_B)[:, None]
    with rows_alone(), contextlib.nullcontext() if mask_BR is None else adapters_of_rows(mask_BR):
        inputs = Inputs(tokens_B[:, None], valid_B1, place_B1, vectors=vectors)
        out = model.hidden(inputs, PagedState(pages, table), layers=layers)
    x_S1D = out.x_BTD.at[at_S].get(out_sharding=spec("batch", "length", None))
    return out.memory.layers, model.logits(x_S1D)[:, 0], x_S1D[:, 0]


class Shapes(NamedTuple):
    """The shapes of steps. sizes: their tokens, ascending. page: tokens of a page. all_pages: whether they get the page table
    whole: compiled attention reads only the pages that are there, and its plain twin all columns.
    """

    sizes: tuple[int, ...]
    page: int
    all_pages: bool

    def logits(self, B: int) -> tuple[int, ...]:
        """Return how many logits a step of B tokens can have: as many, and for the largest also as the next smaller one."""
        return self.sizes[-2:] if B == self.sizes[-1] else (B,)


def shapes_of(rows: int, budget: int, page: int) -> Shapes:
    """Return the shapes of steps of at most `rows` tokens that are decoded, and of at most `budget` tokens in all.

    Sizes are 1, 4, 8, 16 and the quarters of `rows`, as far as they are below it; `rows`; the budget. From 8 tokens on, the
    time of a step on a CPU is about proportional to its tokens.
    """
    unit = max(8, -(-rows // 4))
    some = sorted(n for n in {1, 4, 8, 16, *range(unit, rows, unit)} if n < rows)
    return Shapes(tuple(dict.fromkeys((*some, rows, max(rows, budget)))), page, compiled("cpu.attention"))


def fitting(n: int, sizes: List[int]) -> int:
    """Return the first size that is at least n; sizes are ascending."""
    return next(size for size in sizes if size >= n)


class Laid(NamedTuple):
    """A step's arguments.

    slots_B: of the tokens' adapters. draws: for each of the S logits its part and the index of its token in the part.
    """

    tokens_B: np.ndarray
    table: PageTable
    at_S: np.ndarray
    slots_B: np.ndarray
    draws: list[tuple[Part, int]]


def lay_out(parts: List[Part], shapes: Shapes, tables_RN: np.ndarray) -> Laid:
    """Return the arrays of a step. The rows of the parts' sequences in tables_RN are written."""
    B, size = fitting(sum([len(part.tokens) for part in parts]), shapes.sizes), shapes.page
    tokens_B, row_B, place_B = np.zeros(B, np.int32), np.full(B, -1, np.int32), np.zeros(B, np.int32)
    slot_B, length_B = np.full(B, -1, np.int32), np.ones(B, np.int32)
    slots_B = np.full(B, -1, np.int32)
    at, draws, n = list[int](), list[tuple[Part, int]](), 0
    for part in parts:
        sequence, count = part.sequence, len(part.tokens)
        some, places = slice(n, n + count), np.arange(part.begin, part.begin + count)
        blocks = np.asarray(sequence.blocks, np.int32)
        tables_RN[sequence.row, : len(blocks)] = blocks
        tokens_B[some], row_B[some], place_B[some] = part.tokens, sequence.row, places
        slots_B[some] = sequence.slot
        slot_B[some] = blocks[places // size] * size + places % size
        if sequence.rope is not None:
            length_B[some] = [sequence.length_at(int(place)) for place in places]
        at += range(n + part.first_drawn, n + count)
        draws += [(part, index) for index in range(part.first_drawn, count)]
        n += count
    columns = tables_RN.shape[1]
    if not shapes.all_pages:
        columns = 1 << (max((len(part.sequence.blocks) for part in parts), default=1) - 1).bit_length()
    at_S = np.zeros(fitting(len(at), shapes.logits(B)), np.int32)
    at_S[: len(at)] = at
    return Laid(tokens_B, PageTable(tables_RN[:, :columns].copy(), row_B, place_B, slot_B, length_B), at_S, slots_B, draws)


def placed_vectors(parts: List[Part], B: int, config: ModelConfig) -> Vectors | None:
    """Return the vectors of media in the places of their tokens; None if the step has text only. B: tokens of the step."""
    shown = [part.sequence.shown for part in parts]
    if not any(shown):
        return None
    vectors_BTD, there_BT = empty_vectors(B, config)
    n = 0
    for part, media in zip(parts, shown, strict=True):
        if media is not None:
            assert media.vectors_VD is not None  # a sequence starts when its media are encoded
            numbers = media.numbers_T[part.begin : part.begin + len(part.tokens)]
            places = np.flatnonzero(numbers >= 0)
            vectors_BTD[n + places, 0], there_BT[n + places] = media.vectors_VD[numbers[places]], True
        n += len(part.tokens)
    return Vectors(vectors_BTD, there_BT) if there_BT.any() else None


def drawn(laid: Laid, logits_SV: jax.Array, vocab_size: int) -> Drawn:
    """Return what is drawn from the logits, as numpy arrays. vocab_size: only ids below it are drawn."""
    S, V = logits_SV.shape
    settings = _greedy(S)
    forced_S, top, how, adjust = np.full(S, -1, np.int32), -1, GREEDY, None
    for s, (part, index) in enumerate(laid.draws):
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
        if sequence.adjusts:
            if adjust is None:
                adjust = _no_change(S, V)
            adjust.bias_SV[s], adjust.seen_SV[s] = sequence.bias(), sequence.seen_V
            adjust.repeat_S[s] = r.repetition_penalty
    return _draw(how, top, logits_SV, vocab_size, settings, adjust, forced_S)


def _draw(
    how: int, top: int, logits_SV: jax.Array, vocab_size: int, settings: Settings, adjust: Adjust | None, forced_S: np.ndarray
) -> Drawn:
    """Return `draw` as numpy arrays. On a CPU rows go in groups, so that few programs, each of megabytes, serve all steps.

    What numpy draws as well needs none: to start a program takes as long as a tenth of a small model's step.
    """
    is_cpu, begin, found = jax.default_backend() == "cpu", 0, list[Drawn]()
    if is_cpu and how == GREEDY and top < 0 and adjust is None:
        x_SV = np.asarray(logits_SV)
        token_S = np.where(forced_S >= 0, forced_S, x_SV[:, :vocab_size].argmax(axis=1)).astype(np.int32)
        return Drawn(token_S, np.zeros(len(x_SV), np.float32), ~np.isfinite(x_SV.max(axis=1)), None)
    rows = np.asarray(logits_SV) if is_cpu else logits_SV, settings, adjust, forced_S
    while begin < len(forced_S):
        size = next(n for n in (GROUPS if is_cpu else (len(forced_S),)) if n <= len(forced_S) - begin)
        logits, *settled, forced = jax.tree.map(operator.itemgetter(slice(begin, begin + size)), rows)
        found.append(draw(np.int32(how), top, logits, np.int32(vocab_size), *settled, forced))
        begin += size
    return jax.tree.map(lambda *parts: np.concatenate(parts), *found)


def _alternatives(wanted: int, tempered: bool) -> int:
    """Return how many alternatives are computed: none or TOP, so that few programs compile; 0 only for rollouts."""
    return wanted if wanted < 0 or (tempered and not wanted) else TOP


def warm_draws(logits_SV: jax.Array, vocab_size: int, adjusts: bool) -> None:
    """Compile what draws from logits of this shape: plainly, with alternatives, and if `adjusts` with changes of these."""
    settings, forced_S = _greedy(len(logits_SV)), np.full(len(logits_SV), -1, np.int32)
    kinds = [(-1, None), (TOP, None), *([(-1, _no_change(*logits_SV.shape))] if adjusts else [])]
    for top, adjust in kinds:
        _draw(PLAIN, top, logits_SV, vocab_size, settings, adjust, forced_S)


def _no_change(S: int, V: int) -> Adjust:
    return Adjust(np.zeros((S, V), np.float32), np.zeros((S, V), bool), np.ones(S, np.float32))


def _greedy(S: int) -> Settings:
    """Return settings of rows that are drawn greedily."""
    zeros, ones, integers = np.zeros(S, np.float32), np.ones(S, np.float32), np.zeros(S, np.int32)
    return Settings(zeros, ones, integers, zeros.copy(), zeros.astype(np.uint32), integers.copy(), ones.copy())
