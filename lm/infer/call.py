"""One call of the compiled programs of sampling (lm/infer/decode.py): the request checked, its prompts padded and placed.

Axes: B rows, P padded prompt slots, Q slots of the prefix, W its rows, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from lm.config import ModelConfig
from lm.errors import UserError
from lm.infer.decode import Draws, Prompts, Sampling, SamplingState, decoding_weights, loop, start
from lm.model.media import Media
from lm.model.transformer import Transformer, skeleton
from lm.parallel.arrays import PyTree
from lm.parallel.mesh import place_rows, row_ways

UNROLLED = 48  # most layers of a kind that are unrolled; more would take long to compile


class Call(NamedTuple):
    """The arguments of the compiled programs.

    graph: of the model that decodes, whose config is `config`; reader: of the same model when it reads prompts. weights: what
    `decoding_weights` returns, or None before the first call of `loop`. slots: cache slots of each continuation,
    including its prompt unless several share it. room: size of the array of sampled tokens. limit: maximum of new tokens.
    """

    config: ModelConfig
    graph: nnx.GraphDef
    reader: nnx.GraphDef
    sampling: Sampling
    slots: int
    room: int
    limit: int
    params: nnx.State
    prompts: Prompts
    draws: Draws
    weights: tuple[nnx.State, list[PyTree] | None] | None = None

    def start(self) -> SamplingState:
        """Read the prompts and return the state after the first token of each row."""
        return start(self.graph, self.reader, self.sampling, self.slots, self.room, self.params, self.prompts, self.draws)

    def with_weights(self) -> "Call":
        """Return the call with the weights as the loop reads them fastest."""
        return self if self.weights else self._replace(weights=decoding_weights(self.graph, self.params))

    def loop(self, state: SamplingState, until: int) -> SamplingState:
        """Return the state after `until` tokens. The call is one of `with_weights`."""
        # Only LongRoPE reads the prompts again. Without them the loop does not depend on their width.
        tokens_BP = self.prompts.tokens_BP if self.config.rope.scaling == "longrope" else None
        assert self.weights is not None
        return loop(self.graph, self.sampling, *self.weights, state, tokens_BP, self.draws, until)


class Layout(NamedTuple):
    """How prompts become the rows of a batch.

    copies: continuations of each prompt, in adjacent rows; the prompt is read once for all of them.
    width: number of slots that prompts are padded to, or a power of two if one is longer, so that few lengths compile.
    rows: a number below 2³¹ for each continuation, which seeds its sample; None: its index.
    names: the number of each prompt in error messages; None: its index.
    """

    copies: int = 1
    width: int = 0
    rows: Sequence[int] | None = None
    names: Sequence[int] | None = None


def prepared(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    layout: Layout = Layout(),  # noqa: B008 (it is immutable)
    prefix: Sequence[int] = (),
    media: Media | None = None,
    until: int = 0,
    steps: int = 8,
) -> Call:
    """Check a request and return its Call, with slots for `until` tokens (0: for all). steps: see `rounded_slots`."""
    _check(model, prompts, sampling, layout.copies, prefix, media is not None)
    limit, copies = sampling.max_new_tokens, layout.copies
    ways, order = row_ways(), list(range(len(prompts)))
    # Here a prompt that is read once would leave devices idle, or its shared keys could not be rotated again.
    if len(prompts) % ways or model.config.rope.depends_on_length:
        order, copies = [n for n in order for _ in range(copies)], 1
    order += [0] * (-len(order) % ways)
    filled = [prompts[n] for n in order]
    media = jax.tree.map(lambda x: place_rows(np.asarray(x)[np.array(order)])[0], media)
    seeds_B = np.arange(len(filled) * copies, dtype=np.int32)
    if layout.rows is not None:
        seeds_B[: len(layout.rows)] = layout.rows
    tokens_BP, segments_BP, rows_B = place_rows(*_padded(filled, layout.width), seeds_B)
    # Each device reads the prefix: one row for each part of the batch.
    prefix_WQ = place_rows(np.tile(np.asarray(prefix, np.int32), (ways, 1)))[0] if prefix else None
    graph, params = nnx.split(model)
    config, reader = model.config, graph
    if config.scan_layers and max(repeats for _, repeats in config.stacks) <= UNROLLED:
        config = dataclasses.replace(config, scan_layers=False)
        graph = _graph(config)
        # Scanned layers compile faster, but for a moment their caches exist twice, stacked and unstacked.
        reader = reader if jax.default_backend() == "cpu" else graph
    slots = rounded_slots((tokens_BP.shape[1] if copies == 1 else 0) + (until or limit), steps)
    room = rounded_slots(limit, steps)
    vocab = config.vocab_size
    allowed_V, seed = np.arange(vocab) < (sampling.vocab_size or vocab), np.uint32(sampling.seed % 2**32)
    read, draws = Prompts(tokens_BP, segments_BP, prefix_WQ, media), Draws(rows_B, seed, allowed_V)
    return Call(config, graph, reader, sampling.compiled(), slots, room, limit, params, read, draws)


def _check(
    model: Transformer, prompts: Sequence[Sequence[int]], sampling: Sampling, copies: int, prefix: Sequence[int], media: bool
) -> None:
    """Raise UserError for a request that the model cannot meet."""
    o, limit = sampling, sampling.max_new_tokens
    if limit < 1 or not 0 <= o.temperature < np.inf or not 0 < o.top_p <= 1 or o.top_k < 0 or copies < 1:
        raise UserError("generate needs max_new_tokens ≥ 1, temperature ≥ 0, 0 < top_p ≤ 1, top_k ≥ 0 and copies ≥ 1")
    if o.cache_dtype not in ("", "int8"):
        raise UserError(f"cache_dtype={o.cache_dtype!r} is neither int8 nor empty")
    config, vocab = model.config, model.config.vocab_size
    if prefix and (config.rope.depends_on_length or any(kind.local for kind in config.layer_kinds)):
        raise ValueError("a model with windows, or whose angles depend on the length, reads each prompt whole")
    if any(not row or min(row) < 0 or max(row) >= vocab for row in (*prompts, *([prefix] if prefix else []))):
        raise UserError(f"a prompt of token ids must not be empty, and its ids must be in 0…{vocab - 1}")
    longest = len(prefix) + max(map(len, prompts)) + limit
    if config.positions == "learned" and longest > (most := config.max_positions):
        raise UserError(f"prompt and max_new_tokens come to {longest} tokens, the model has {most} positions: ask for fewer")
    if media and config.rope.scaling == "longrope":
        raise UserError("a model with rope.scaling=longrope reads its prompt twice, which images and sound do not allow")


def rounded_slots(n: int, steps: int = 8) -> int:
    """Return n rounded up, so that similar lengths share compiled programs: `steps` sizes per octave, at least 16 apart."""
    unit = max(16, (1 << (n - 1).bit_length()) // (2 * steps))
    return -(-n // unit) * unit


@functools.lru_cache(maxsize=16)
def _graph(config: ModelConfig) -> nnx.GraphDef:
    """Return the model's graph. A scan over layers would copy their weights and caches at every token."""
    return skeleton(config)[0]


def _padded(ids: Sequence[Sequence[int]], width: int) -> tuple[np.ndarray, np.ndarray]:
    longest = max(map(len, ids))
    width = width if width >= longest else max(16, 1 << (longest - 1).bit_length())
    tokens, segments = np.zeros((len(ids), width), np.int32), np.zeros((len(ids), width), np.int32)
    for row, prompt in enumerate(ids):
        tokens[row, width - len(prompt) :] = prompt
        segments[row, width - len(prompt) :] = 1
    return tokens, segments
