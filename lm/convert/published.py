"""Open a published checkpoint: map its tensors to our parameters, and report those that do not fit."""

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm.config import ModelConfig
from lm.convert.families import canonical, copies, family_of, is_ignored, model_config
from lm.convert.files import Tensor, read, same_bytes, tensors_of
from lm.convert.rows import Place, ours_of, places
from lm.errors import UserError
from lm.workdir import read_config

SHOWN = 3  # names listed in an error


class Published(NamedTuple):
    """A complete checkpoint. places: of each of our parameters, by path. tensors: by the name in their row. twice: whether it
    holds its family's duplicate parameters (`copies` in lm/convert/families.py)."""

    folder: Path
    model_type: str
    config: ModelConfig
    places: dict[str, list[Place]]
    tensors: dict[str, Tensor]
    twice: bool

    def dtype(self, path: str) -> np.dtype:
        """Return a parameter's stored dtype. If layers or experts differ, the dtype that holds all of them exactly."""
        return np.dtype(jnp.result_type(*{self.tensors[place.row.theirs].dtype for place in self.places[path]}))

    def stored(self, path: str) -> jax.ShapeDtypeStruct:
        """Return the shape and stored dtype of a parameter."""
        lead = tuple(max(sizes) + 1 for sizes in zip(*(place.index for place in self.places[path])))
        return jax.ShapeDtypeStruct((*lead, *self.places[path][0].row.ours_shape), self.dtype(path))

    def block(
        self, path: str, index: tuple[int, ...], shape: tuple[int, ...], wanted: Collection[int] | None = None
    ) -> np.ndarray:
        """Read a parameter, or its part at `index` of the leading axes; the result has this shape.

        wanted: indices to read of the next leading axis, if its rows are separate tensors (experts). Others stay uninitialised.
        """
        found = [place for place in self.places[path] if place.index[: len(index)] == index]
        row = found[0].row
        if found[0].index == index:
            return ours_of(row, read(self.tensors[row.theirs])).reshape(shape)
        # Stack in the published layout and transpose once: a device does that in a third of numpy's time.
        experts = np.empty((shape[0], *row.view), self.dtype(path))
        for place in found:
            e = place.index[-1]
            if wanted is None or e in wanted:
                experts[e] = read(self.tensors[place.row.theirs]).reshape(row.view)
        take = row.take and (row.take[0] + 1, *row.take[1:])
        order = (0, *(axis + 1 for axis in row.order))
        return ours_of(dataclasses.replace(row, view=experts.shape, take=take, order=order), experts).reshape(shape)


def is_published(path: Path) -> bool:
    """Return whether a folder is a Hugging Face checkpoint and not a workdir."""
    return (path / "config.json").is_file() and bool({"model_type", "architectures"} & read_config(path).keys())


def open_published(folder: Path) -> Published:
    """Open a checkpoint; reads only the config and the files' headers.

    Raises: UserError if there is no checkpoint, no family reads it, or a weight is missing, unknown or of another shape.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is no Hugging Face checkpoint: it has no config.json")
    hf = read_config(folder)
    try:
        family, stored = family_of(hf), tensors_of(folder)
        config = model_config(hf, stored)
        found = places(family, config)
    except UserError as error:
        raise UserError(f"{folder}: {error}" if str(folder) not in str(error) else str(error)) from None
    tensors = {canonical(family, name): tensor for name, tensor in stored.items()}
    shapes = {place.row.theirs: place.row.theirs_shape for place in found}
    extra = tensors.keys() - shapes.keys()
    there = {name: tensors[name] for name in shapes if name in tensors}
    wrong = [name for name, tensor in there.items() if tensor.shape != shapes[name]]
    faults = (
        ("missing", [name for name in shapes if name not in there]),
        ("left over", sorted(name for name in extra if not is_ignored(family, config, name))),
        ("of another shape", [f"{name} {list(there[name].shape)} instead of {list(shapes[name])}" for name in wrong]),
        ("of no float type", [f"{name} {tensor.dtype}" for name, tensor in there.items() if not _is_float(tensor)]),
    )
    if any(names for _, names in faults):
        text = "; ".join(_listed(fault, names) for fault, names in faults if names)
        raise UserError(f"{folder}: its tensors are not those of the {hf['model_type']} that its config.json describes: {text}")
    by_path: dict[str, list[Place]] = {}
    for place in found:
        by_path.setdefault(place.path, []).append(place)
    embedding = by_path["embedding"][0].row.theirs
    for name in extra:
        tied = config.tie_embeddings and config.score_head == "none"  # a classifier's head is not used
        if name.endswith("lm_head.weight") and tied and not same_bytes(tensors[name], tensors[embedding]):
            raise UserError(
                f"{folder}: {name} differs from {embedding}, but config.json ties them: set tie_word_embeddings to false there"
            )
    second = {row.theirs: by_path[row.ours][0].row.theirs for row in copies(family, config) if row.theirs in extra}
    for name, first in second.items():
        if not same_bytes(tensors[name], tensors[first]):
            raise UserError(f"{folder}: {name} differs from {first}, but must be a copy: the model holds it only once")
    return Published(folder, hf["model_type"], config, by_path, tensors, bool(second))


def _is_float(tensor: Tensor) -> bool:
    """Return whether the tensor has a dtype that devices support."""
    return jnp.issubdtype(tensor.dtype, jnp.floating) and tensor.dtype.itemsize <= 4


def _listed(fault: str, names: list[str]) -> str:
    """Return a text such as "4 missing (a, b, c, …)"."""
    more = ", …" if len(names) > SHOWN else ""
    return f"{len(names)} {fault} ({', '.join(names[:SHOWN])}{more})"
