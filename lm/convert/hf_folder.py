"""Open a Hugging Face folder: map its tensors to our parameters, and report those that do not fit."""

from pathlib import Path

import jax.numpy as jnp

from lm.convert.families import canonical, copies, family_of, is_ignored, model_config
from lm.convert.files import Tensor, same_bytes, tensors_of
from lm.convert.published import Published, complaint
from lm.convert.rows import Place, places
from lm.errors import UserError
from lm.runs.workdir import read_config


def open_folder(folder: Path) -> Published:
    """Open a checkpoint; reads only the config and the files' headers.

    Raises: UserError if there is no checkpoint, no family reads it, or a weight is missing, unknown or of another shape.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is no Hugging Face checkpoint: it has no config.json")
    hf = read_config(folder)
    try:
        family, stored = family_of(hf), tensors_of(folder)
        config = model_config(hf, stored)
        experts = config.moe.num_experts * sum(kind.moe for kind in config.layer_kinds)
        layers = config.num_layers + config.vision.num_layers + config.audio.num_layers
        if layers + experts > len(stored) + 1:  # before a list of them is made
            raise UserError(f"config.json describes {layers} layers and {experts} experts, and there are {len(stored)} tensors")
        found = places(family, config)
    except UserError as error:
        raise UserError(f"{folder}: {error}" if str(folder) not in str(error) else str(error)) from None
    tensors = {canonical(family, name): tensor for name, tensor in stored.items()}
    shapes = {place.row.theirs: place.row.theirs_shape for place in found}
    extra = tensors.keys() - shapes.keys()
    there = {name: tensors[name] for name in shapes if name in tensors}
    wrong = [name for name, tensor in there.items() if tensor.shape != shapes[name]]
    text = complaint(
        missing=[name for name in shapes if name not in there],
        left_over=sorted(name for name in extra if not is_ignored(family, config, name)),
        of_another_shape=[f"{name} {list(there[name].shape)} instead of {list(shapes[name])}" for name in wrong],
        of_no_float_type=[f"{name} {tensor.dtype}" for name, tensor in there.items() if not _is_float(tensor)],
    )
    if text:
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
