"""A published checkpoint, a Hugging Face folder or a GGUF file: its tensors under the names of our parameters."""

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from lm.config import ModelConfig
from lm.convert.rows import Place, ours_of
from lm.files.gguf import find_gguf
from lm.runs.workdir import read_config

SHOWN = 3  # names listed in an error


class PublishedTensor(Protocol):
    """A tensor on disk. Implemented by lm.convert.files.Tensor and lm.convert.gguf.tensors.Part."""

    dtype: np.dtype
    shape: tuple[int, ...]

    def read(self) -> np.ndarray:
        """Read the tensor into memory of its own."""


class Published(NamedTuple):
    """A complete checkpoint.

    folder: its folder or GGUF file. places: of each of our parameters, by path. tensors: by the name in their row.
    twice: whether it holds its family's duplicate parameters (`copies` in lm/convert/families.py).
    """

    folder: Path
    model_type: str
    config: ModelConfig
    places: dict[str, list[Place]]
    tensors: dict[str, PublishedTensor]
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
            return ours_of(row, self.tensors[row.theirs].read()).reshape(shape)
        # Stack in the published layout and transpose once: a device does that in a third of numpy's time.
        experts = np.empty((shape[0], *row.view), self.dtype(path))
        for place in found:
            e = place.index[-1]
            if wanted is None or e in wanted:
                experts[e] = self.tensors[place.row.theirs].read().reshape(row.view)
        take = row.take and (row.take[0] + 1, *row.take[1:])
        order = (0, *(axis + 1 for axis in row.order))
        return ours_of(dataclasses.replace(row, view=experts.shape, take=take, order=order), experts).reshape(shape)


def is_published(path: Path) -> bool:
    """Return whether a path is a Hugging Face checkpoint or a GGUF file, and not a workdir."""
    if find_gguf(path) is not None:
        return True
    return (path / "config.json").is_file() and bool({"model_type", "architectures"} & read_config(path).keys())


def complaint(**faults: list[str]) -> str:
    """Return a text such as "4 missing (a, b, c, …); 1 left over (d)", or "" if no list has names."""
    return "; ".join(_listed(fault.replace("_", " "), names) for fault, names in faults.items() if names)


def _listed(fault: str, names: list[str]) -> str:
    """Return a text such as "4 missing (a, b, c, …)"."""
    more = ", …" if len(names) > SHOWN else ""
    return f"{len(names)} {fault} ({', '.join(names[:SHOWN])}{more})"
