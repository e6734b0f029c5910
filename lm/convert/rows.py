"""Which published tensor is which parameter of ours, and the two exact maps between them.

A row names one parameter (or one expert's share of it) and where it lies in a tensor of a Hugging Face checkpoint. All
that ever differs is how axes are grouped, ordered and fused, so a row is a view, a range and a transposition: no
arithmetic, any dtype, and the way back is bit-exact.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lm.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Row:
    """ours = their tensor, reshaped to `view`, of which the range `take`, transposed by `order`."""

    ours: str  # "norm.scale"; in the table of a layer below that layer: "attention.query.weight"
    theirs: str  # in the table of a layer with {layer}; one tensor for each expert: with {expert}
    theirs_shape: tuple[int, ...]
    view: tuple[int, ...]
    order: tuple[int, ...]
    take: tuple[int, int, int] | None = None  # (axis, begin, end) of the view; None: all. Fused tensors have several rows
    float32: bool = False  # stays float32 in a checkpoint of another dtype

    @property
    def taken_shape(self) -> tuple[int, ...]:
        """Of the view's range, before it is transposed."""
        if self.take is None:
            return self.view
        axis, begin, end = self.take
        return (*self.view[:axis], end - begin, *self.view[axis + 1 :])

    @property
    def ours_shape(self) -> tuple[int, ...]:
        """Of our parameter, without the axes of layers and experts that it is stacked by."""
        return tuple(self.taken_shape[axis] for axis in self.order)


def ours_of(row: Row, theirs: np.ndarray) -> np.ndarray:
    """Our parameter, as a view of their tensor where numpy can make one."""
    x = theirs.reshape(row.view)
    if row.take is not None:
        axis, begin, end = row.take
        x = x[(slice(None),) * axis + (slice(begin, end),)]
    return x.transpose(row.order)


def theirs_of(rows: Sequence[Row], ours: Sequence[np.ndarray]) -> np.ndarray:
    """Their tensor, from all of its rows and the parameter of each; the inverse of `ours_of`."""
    whole = np.empty(rows[0].view, ours[0].dtype)
    for row, x in zip(rows, ours, strict=True):
        axis, begin, end = row.take or (0, 0, row.view[0])
        whole[(slice(None),) * axis + (slice(begin, end),)] = x.reshape(row.ours_shape).transpose(np.argsort(row.order))
    return whole.reshape(rows[0].theirs_shape)


def same(ours: str, theirs: str, *shape: int, float32: bool = False) -> Row:
    """A parameter that both sides hold alike, but for how its axes are grouped: theirs is flat if ours has several."""
    return Row(ours, theirs, (math.prod(shape),), shape, tuple(range(len(shape))), float32=float32)


def table(ours: str, theirs: str, rows: int, columns: int) -> Row:
    """An embedding, or a matrix of GPT-2: alike on both sides."""
    return Row(ours, theirs, (rows, columns), (rows, columns), (0, 1))


def score(config: ModelConfig) -> Row:
    """A reward model's head, a torch.nn.Linear of one output, as every sequence classifier of transformers names it."""
    return Row("score", "score.weight", (1, config.embed_dim), (config.embed_dim,), (0,))


def linear(ours: str, theirs: str, inputs: tuple[int, ...], outputs: tuple[int, ...], take=None) -> Row:
    """A torch.nn.Linear, [outputs, inputs], is our [inputs, outputs]; both may be split into several axes.

    take: (begin, end) of the first output axis of a fused tensor, whose `outputs` are all of them; or (axis, begin, end).
    """
    view = (*outputs, *inputs)
    order = (*range(len(outputs), len(view)), *range(len(outputs)))
    if take is not None and len(take) == 2:
        take = (0, *take)
    return Row(ours, theirs, (math.prod(outputs), math.prod(inputs)), view, order, take)


class Place(NamedTuple):
    """One row where it belongs: `row.theirs` is the tensor's full name, and ours is parameter `path` at `index`."""

    path: str  # "stacks.0.1.attention.query.weight"
    index: tuple[int, ...]  # on the leading axes of that parameter: layer in its stack, expert
    row: Row


def places(family, config: ModelConfig) -> list[Place]:
    """Every row of a model: each published tensor's, and each of our parameters', in the order of the layers.

    A reward model is published as a sequence classifier, which has a score and no head.
    """
    ends = family.ends(config)
    if config.score_head == "reward":
        ends = [*(row for row in ends if row.ours != "head"), score(config)]
    found = [place for row in ends for place in _experts(config, row.ours, (), row)]
    tables = {kind: family.rows(config, kind) for kind in set(config.layer_kinds)}
    first = 0
    for s, (block, repeats) in enumerate(config.stacks):
        for i in range(repeats * len(block)):
            r, p = divmod(i, len(block))
            for row in tables[block[p]]:
                named = dataclasses.replace(row, theirs=row.theirs.replace("{layer}", str(first + i)))
                found += _experts(config, f"stacks.{s}.{p}.{row.ours}", (r,), named)
        first += repeats * len(block)
    return found


def _experts(config: ModelConfig, path: str, index: tuple[int, ...], row: Row) -> list[Place]:
    if "{expert}" not in row.theirs:
        return [Place(path, index, row)]
    names = (row.theirs.replace("{expert}", str(e)) for e in range(config.moe.num_experts))
    return [Place(path, (*index, e), dataclasses.replace(row, theirs=name)) for e, name in enumerate(names)]
