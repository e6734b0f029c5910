"""A published checkpoint, a Hugging Face folder or a GGUF file: its tensors under the names of our parameters.

They are loaded onto the devices of any mesh, one tensor at a time. A stacked parameter starts as zeros on its devices; each
layer is read, sharded and written into it in place. The host holds only one layer's part of one parameter, or all layers of a
small one, which needs no compiled programs.
"""

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from lm.config import ModelConfig
from lm.convert.families import family_of, is_ignored, model_config
from lm.convert.files import Tensor, same_bytes, tensors_of
from lm.convert.gguf.rope import FACTORS
from lm.convert.gguf.settings import config_json_of
from lm.convert.gguf.tensors import Part, layouts, parts_of
from lm.convert.mxfp4 import read_as_bfloat16
from lm.convert.rows import Place, by_parameter, has_tensors_of_experts, ours_of, places
from lm.errors import UserError
from lm.files.gguf import find_gguf, open_gguf
from lm.model.transformer import STACKED
from lm.parallel.memory import check_room
from lm.progress import progress
from lm.runs.workdir import read_config

SHOWN = 3  # names listed in an error
SMALL = 1 << 27  # bytes of a stack that the host puts together: sooner than two programs for it are compiled
AHEAD = "nextn"  # part of the names of tensors in a GGUF file that predict further tokens, which are left out


class Published(NamedTuple):
    """A complete checkpoint.

    folder: its folder or GGUF file. places: of each of our parameters, by path. tensors: by the name in their row.
    twice: whether it holds its family's duplicate parameters (`Family.copies`).
    """

    folder: Path
    model_type: str
    config: ModelConfig
    places: dict[str, list[Place]]
    tensors: dict[str, Tensor] | dict[str, Part]
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

    def load(self, targets: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        """Return parameters by path, with the shardings and dtypes of `targets`, whose shapes are those of the checkpoint.

        On several hosts every process calls this and reads its devices' part.
        """
        check_room(targets, self.folder)
        total = sum(math.prod(x.shape) * self.dtype(path).itemsize for path, x in targets.items())
        with progress("read", total, unit="B", soon=False) as bar:
            return {path: self._parameter(path, x, bar.update) for path, x in targets.items()}

    def _parameter(self, path: str, target: jax.ShapeDtypeStruct, on_read: Callable[[int], None]) -> jax.Array:
        if not path.startswith(STACKED):
            return self._placed(path, (), target.shape, target.sharding, on_read).astype(target.dtype)
        sharding, shape = _of_a_layer(target.sharding), target.shape[1:]
        if math.prod(target.shape) * target.dtype.itemsize <= SMALL:
            layers = np.empty(target.shape, target.dtype)
            for r in range(target.shape[0]):
                layers[r] = block = self.block(path, (r,), shape, _first_axis(sharding, shape))
                on_read(block.nbytes)
            return jax.make_array_from_callback(target.shape, target.sharding, lambda at: layers[at])
        stack = jnp.zeros(target.shape, target.dtype, device=target.sharding)
        for r in range(target.shape[0]):
            layer = self._placed(path, (r,), shape, sharding, on_read)
            stack = jax.block_until_ready(_written(stack, layer, r))  # otherwise many layers would be in flight at once
        return stack

    def _placed(self, path: str, index: tuple[int, ...], shape: tuple[int, ...], sharding: Sharding, on_read) -> jax.Array:
        """Return a parameter, or one layer of it, in its stored dtype on its devices."""
        block = self.block(path, index, shape, _first_axis(sharding, shape))
        x = jax.make_array_from_callback(shape, sharding, lambda at: block[at])
        on_read(block.nbytes)
        return jax.block_until_ready(x)


@functools.partial(jax.jit, donate_argnums=0)
def _written(stack: jax.Array, layer: jax.Array, r: int) -> jax.Array:
    return lax.dynamic_update_index_in_dim(stack, layer.astype(stack.dtype), r, 0)


def _first_axis(sharding: Sharding, shape: tuple[int, ...]) -> set[int] | None:
    """Return the indices of the first axis that this host's devices need."""
    here = sharding.addressable_devices_indices_map(shape).values()
    return {i for at in here for i in range(*at[0].indices(shape[0]))} if shape else None


def _of_a_layer(sharding: Sharding) -> Sharding:
    """Return the sharding of a stacked parameter without its first axis."""
    if isinstance(sharding, NamedSharding):
        return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    return sharding


def is_published(path: Path) -> bool:
    """Return whether a path is a Hugging Face checkpoint or a GGUF file, and not a workdir."""
    if find_gguf(path) is not None:
        return True
    return (path / "config.json").is_file() and bool({"model_type", "architectures"} & read_config(path).keys())


def model_type_of(path: Path) -> str | None:
    """Return the model_type of a published checkpoint; reads no tensors."""
    file = find_gguf(path)
    return (config_json_of(open_gguf(file)) if file else read_config(path)).get("model_type")


def open_published(path: Path) -> Published:
    """Open a Hugging Face folder or a GGUF file; reads only the config, the files' headers, and rotary factors of GGUF.

    Quantised weights of GGUF become float32 when they are read.
    Raises: UserError if there is no whole checkpoint, no family reads it, or a weight is missing, unknown or of another shape.
    """
    file = find_gguf(path)
    return _open_gguf(file) if file else _open_folder(path)


def _open_folder(folder: Path) -> Published:
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is no Hugging Face checkpoint: it has no config.json")
    hf = read_config(folder)
    try:
        family, stored = family_of(hf), read_as_bfloat16(tensors_of(folder))
        config = model_config(hf, stored)
        experts = config.moe.num_experts * sum(has_tensors_of_experts(family, config, kind) for kind in config.layer_kinds)
        stored = separated(stored, config.moe.num_experts) if experts else stored
        layers = config.num_layers + config.vision.num_layers + config.audio.num_layers
        if layers + experts > len(stored) + 1:  # before a list of them is made
            raise UserError(f"config.json describes {layers} layers and {experts} experts, and there are {len(stored)} tensors")
        found = places(family, config)
    except UserError as error:
        raise UserError(f"{folder}: {error}" if str(folder) not in str(error) else str(error)) from None
    tensors = {family.canonical(name): tensor for name, tensor in stored.items()}
    shapes = {place.row.theirs: place.row.theirs_shape for place in found}
    extra = tensors.keys() - shapes.keys()
    text = mismatch(shapes, tensors, left_over=(name for name in extra if not is_ignored(family, config, name)))
    if text:
        raise UserError(f"{folder}: its tensors are not those of the {hf['model_type']} that its config.json describes: {text}")
    parameters = by_parameter(found)
    copies = {row.theirs: parameters[row.ours][0].row.theirs for row in family.copies(config) if row.theirs in extra}
    heads = [name for name in extra if name.endswith("lm_head.weight")] if config.score_head == "none" else []
    tied = dict.fromkeys(heads, parameters["embedding"][0].row.theirs)  # a classifier's head is not used
    for name, first in (copies | tied).items():
        if not same_bytes(tensors[name], tensors[first]):
            why = "config.json ties them: set tie_word_embeddings to false there" if name in tied else "must be a copy of it"
            raise UserError(f"{folder}: {name} differs from {first}, but {why}")
    return Published(folder, hf["model_type"], config, parameters, tensors, bool(copies))


def _open_gguf(path: Path) -> Published:
    file = open_gguf(path)
    hf = config_json_of(file)
    try:
        family, config = family_of(hf), model_config(hf, ())
        found = places(family, config)
        shapes = {place.row.theirs: place.row.theirs_shape for place in found}
        whole_kv = "blk.0.attn_kv_b.weight" in file.tensors
        wanted = layouts(config, family.gguf, shapes, whole_kv)
    except UserError as error:
        raise UserError(f"{path}: {str(error).replace('config.json', 'its settings')}") from None
    expected = {name: shape for layout in wanted for name, shape in zip(layout.gguf, layout.shapes, strict=True)}
    extra = file.tensors.keys() - expected.keys() - set(FACTORS)
    text = mismatch(expected, file.tensors, left_over=(name for name in extra if AHEAD not in name))
    if text:
        raise UserError(f"{path}: its tensors are not those of the {hf['model_type']} that its settings describe: {text}")
    tensors = {}
    for layout in wanted:
        tensors |= parts_of(layout, file.tensors, shapes)
    return Published(path, hf["model_type"], config, by_parameter(found), tensors, False)


def separated(tensors: Mapping[str, Tensor | Part], E: int) -> dict[str, Tensor | Part]:
    """Return the tensors with one for each of E experts in place of those that hold all of a layer.

    These are gate_up_proj [E, 2·F, D], gates first, and down_proj [E, D, F], as Qwen 3.5 is published.
    """
    found: dict[str, Tensor | Part] = {}
    for name, tensor in tensors.items():
        whole = re.fullmatch(r"(.*\.experts)\.(gate_up_proj|down_proj)", name)
        names = ("gate_proj", "up_proj") if whole and whole[2] == "gate_up_proj" else ("down_proj",)
        rows = tensor.shape[1] // len(names) if len(tensor.shape) == 3 else 0
        if not whole or not isinstance(tensor, Tensor) or tensor.shape[0] != E or rows * len(names) != tensor.shape[1]:
            found[name] = tensor
            continue
        shape, size = (rows, tensor.shape[2]), tensor.nbytes // (E * len(names))
        for i, (e, part) in enumerate(itertools.product(range(E), names)):
            found[f"{whole[1]}.{e}.{part}.weight"] = tensor._replace(begin=tensor.begin + i * size, shape=shape)
    return found


def mismatch(expected: Mapping[str, tuple[int, ...]], tensors: Mapping, left_over: Iterable[str] = ()) -> str:
    """Return in what tensors differ from the expected shapes, such as "4 missing (a, b, c, …); 1 left over (d)", or ""."""
    there = {name: tensors[name] for name in expected if name in tensors}
    faults = {
        "missing": [name for name in expected if name not in there],
        "left over": sorted(left_over),
        "of another shape": [
            f"{name} {list(x.shape)} instead of {list(expected[name])}"
            for name, x in there.items()
            if x.shape != expected[name]
        ],
        "of no float type": [
            f"{name} {getattr(x, 'type', x.dtype)}" for name, x in there.items() if not _is_float(np.dtype(x.dtype))
        ],
    }
    return "; ".join(
        f"{len(names)} {fault} ({', '.join(names[:SHOWN])}{', …' * (len(names) > SHOWN)})"
        for fault, names in faults.items()
        if names
    )


def _is_float(dtype: np.dtype) -> bool:
    """Return whether devices support it as a dtype of weights."""
    return jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize <= 4
