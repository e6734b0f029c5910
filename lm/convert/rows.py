"""The map between published tensors and our parameters, exact in both directions.

A row names one parameter (or one expert's part of it) and its place in a tensor of a Hugging Face checkpoint. The two differ
only in how axes are grouped, ordered and fused. So a row is a view, a range and a transposition: no arithmetic, any dtype, and
bit-exact in both directions.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lm.config import LayerKind, ModelConfig


@dataclasses.dataclass(frozen=True)
class Row:
    """Our parameter is their tensor, reshaped to `view`, sliced by `take`, split by `split` and transposed by `order`."""

    ours: str  # "norm.scale"; in a layer's table relative to the layer: "attention.query.weight"
    theirs: str  # in a layer's table with {layer}; if each expert has its own tensor, with {expert}
    theirs_shape: tuple[int, ...]
    view: tuple[int, ...]
    order: tuple[int, ...]  # axes after the split; one that `take` leaves a single place of may be missing
    take: tuple[int, int, int] | None = None  # (axis, begin, end) of the view; None: all. Fused tensors have several rows
    float32: bool = False  # stays float32 in a checkpoint of another dtype
    split: tuple[int, ...] = ()  # the sliced axis becomes these axes, if given

    @property
    def taken_shape(self) -> tuple[int, ...]:
        """Return the shape of the sliced and split view, before the transposition."""
        if self.take is None:
            return self.view
        axis, begin, end = self.take
        return (*self.view[:axis], *(self.split or (end - begin,)), *self.view[axis + 1 :])

    @property
    def ours_shape(self) -> tuple[int, ...]:
        """Return the shape of our parameter, without the stacked axes of layers and experts."""
        return tuple(self.taken_shape[axis] for axis in self.order)


def ours_of(row: Row, theirs: np.ndarray) -> np.ndarray:
    """Return our parameter, as a view of their tensor if numpy can make one."""
    x = theirs.reshape(row.view)
    if row.take is not None:
        axis, begin, end = row.take
        x = x[(slice(None),) * axis + (slice(begin, end),)].reshape(row.taken_shape)
    gone = _gone(row)
    return x.transpose(*row.order, *gone)[(..., *[0] * len(gone))]


def _gone(row: Row) -> list[int]:
    return [axis for axis in range(len(row.taken_shape)) if axis not in row.order]


def theirs_of(rows: Sequence[Row], ours: Sequence[np.ndarray]) -> np.ndarray:
    """Return their tensor from its rows and the parameter of each, zero where it has none; the inverse of `ours_of`."""
    whole = np.zeros(rows[0].view, ours[0].dtype)
    for row, x in zip(rows, ours, strict=True):
        axis, begin, end = row.take or (0, 0, row.view[0])
        gone = _gone(row)
        x = x.reshape((*row.ours_shape, *[1] * len(gone))).transpose(np.argsort((*row.order, *gone)))
        at = (slice(None),) * axis + (slice(begin, end),)
        whole[at] = x.reshape(whole[at].shape)
    return whole.reshape(rows[0].theirs_shape)


def same(ours: str, theirs: str, *shape: int, float32: bool = False) -> Row:
    """Return the row of a parameter with the same layout on both sides; if ours has several axes, theirs is flat."""
    return Row(ours, theirs, (math.prod(shape),), shape, tuple(range(len(shape))), float32=float32)


def table(ours: str, theirs: str, rows: int, columns: int) -> Row:
    """Return the row of a matrix with the same layout on both sides: an embedding, or a matrix of GPT-2."""
    return Row(ours, theirs, (rows, columns), (rows, columns), (0, 1))


def linear(ours: str, theirs: str, inputs: tuple[int, ...], outputs: tuple[int, ...], take=None) -> Row:
    """Return the row of a torch.nn.Linear: theirs is [outputs, inputs], ours [inputs, outputs]; both may have several axes.

    take: our slice of a fused tensor, as (begin, end) of the first output axis or (axis, begin, end). `outputs` then is the
    shape of the whole tensor.
    """
    view = (*outputs, *inputs)
    order = (*range(len(outputs), len(view)), *range(len(outputs)))
    if take is not None and len(take) == 2:
        take = (0, *take)
    return Row(ours, theirs, (math.prod(outputs), math.prod(inputs)), view, order, take)


def dense(ours: str, theirs: str, inputs: tuple[int, ...], outputs: tuple[int, ...], bias: bool = False) -> list[Row]:
    """Return the rows of the weight of a torch.nn.Linear, and of its bias, if any."""
    weight = linear(f"{ours}.weight", f"{theirs}.weight", inputs, outputs)
    return [weight, same(f"{ours}.bias", f"{theirs}.bias", *outputs)] if bias else [weight]


def layer_norm(ours: str, theirs: str, D: int) -> list[Row]:
    """Return the rows of a norm with a bias."""
    return [same(f"{ours}.scale", f"{theirs}.weight", D), same(f"{ours}.bias", f"{theirs}.bias", D)]


class Family(NamedTuple):
    """A model family that can be imported and exported: its config.json and its tensors in terms of ours."""

    model_types: tuple[str, ...]  # of the configs that it reads; errors and GGUF call it by the last one
    from_hf: Callable[[Mapping], ModelConfig]  # of config.json's content; missing keys get the defaults of transformers' class
    to_hf: Callable[[ModelConfig], dict]  # the inverse
    rows: Callable[[ModelConfig, LayerKind], list[Row]]  # of one layer of a kind
    ends: Callable[[ModelConfig], list[Row]]  # of the rest of the model
    ignored: tuple[str, ...]  # regular expressions of tensors that are not imported
    canonical: Callable[[str], str] = lambda name: name  # the row's name of a tensor that is published under several names
    copies: Callable[[ModelConfig], list[Row]] = lambda config: []  # of parameters held twice: written, but not read
    encoder_layers: Callable[[ModelConfig], dict[str, list[Row]]] = lambda config: {}  # of a layer, by section of the config
    classifier: str = ""  # the class of its sequence classifiers, if it is not named like its language models
    gguf: str = ""  # the architecture in GGUF, a program of llama.cpp that may compute several families; "": none

    @property
    def name(self) -> str:
        return self.model_types[-1]


class Place(NamedTuple):
    """One row of a concrete model: `row.theirs` is the tensor's full name, ours is the parameter `path` at `index`."""

    path: str  # "stacks.0.1.attention.query.weight"
    index: tuple[int, ...]  # of that parameter's leading axes: layer in its stack, expert
    row: Row


def places(family: Family, config: ModelConfig) -> list[Place]:
    """Return every row of a model in the order of the layers; they cover all published tensors and all our parameters.

    A reward model is published as a sequence classifier, with a score and no head.
    """
    ends = family.ends(config)
    if config.score_head == "reward":
        D = config.embed_dim  # transformers' score is a torch.nn.Linear with one output
        ends = [*(row for row in ends if row.ours != "head"), Row("score", "score.weight", (1, D), (D,), (0,))]
    found = [place for row in ends for place in _experts(config, row.ours, (), row)]
    tables = {kind: family.rows(config, kind) for kind in set(config.layer_kinds)}
    first = 0
    for s, (block, repeats) in enumerate(config.stacks):
        for i in range(repeats * len(block)):
            r, p = divmod(i, len(block))
            for row in tables[block[p]]:
                found += _experts(config, f"stacks.{s}.{p}.{row.ours}", (r,), _of_layer(row, first + i))
        first += repeats * len(block)
    for section, rows in family.encoder_layers(config).items():
        layers = range(getattr(config, section).num_layers)
        found += [Place(f"{section}.layers.{row.ours}", (i,), _of_layer(row, i)) for i in layers for row in rows]
    return found


@functools.cache
def has_tensors_of_experts(family: Family, config: ModelConfig, kind: LayerKind) -> bool:
    """Return whether each expert of a layer of this kind has tensors of its own."""
    return any("{expert}" in row.theirs for row in family.rows(config, kind))


def _of_layer(row: Row, layer: int) -> Row:
    return dataclasses.replace(row, theirs=row.theirs.replace("{layer}", str(layer)))


def by_parameter(found: Iterable[Place]) -> dict[str, list[Place]]:
    """Return the places of each of our parameters, by path."""
    grouped: dict[str, list[Place]] = {}
    for place in found:
        grouped.setdefault(place.path, []).append(place)
    return grouped


def by_tensor(found: Iterable[Place]) -> dict[str, list[Place]]:
    """Return the places in each of their tensors, by its name; a fused tensor has several."""
    grouped: dict[str, list[Place]] = {}
    for place in found:
        grouped.setdefault(place.row.theirs, []).append(place)
    return grouped


def _experts(config: ModelConfig, path: str, index: tuple[int, ...], row: Row) -> list[Place]:
    if "{expert}" not in row.theirs:
        return [Place(path, index, row)]
    names = (row.theirs.replace("{expert}", str(e)) for e in range(config.moe.num_experts))
    return [Place(path, (*index, e), dataclasses.replace(row, theirs=name)) for e, name in enumerate(names)]
