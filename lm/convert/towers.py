"""Attach a published encoder to a language model, and write an encoder as a checkpoint of its own.

Read: SigLIP's and CLIP's models (of images alone, or with their text models), Whisper's, and VoxtralEncoder. Written:
SiglipVisionModel, CLIPVisionModel, and VoxtralEncoder, which is Whisper's encoder by the names of its tensors.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from lm.config import Audio, ModelConfig, Vision
from lm.convert import stream
from lm.convert.files import tensors_of
from lm.convert.folders import check_target, written_whole
from lm.convert.multimodal import encoders
from lm.convert.published import Published, mismatch
from lm.convert.rows import Place, by_parameter, encoder_places
from lm.convert.source import Source
from lm.convert.to_published import opened, write_tensors
from lm.errors import UserError
from lm.files.saving import write_json
from lm.files.untrusted import short
from lm.model.encoder import Projector, in_dtype
from lm.runs.checkpoint import named, nested, plain, unplain
from lm.runs.workdir import read_config

SEES = {"siglip": encoders.SIGLIP, encoders.SIGLIP: encoders.SIGLIP, "clip": encoders.CLIP, encoders.CLIP: encoders.CLIP}
HEARS = (encoders.WHISPER, "voxtral_encoder")
PREFIXES = {"vision": r"^(model\.)?vision_model\.", "audio": r"^(model\.)?encoder\."}  # with or without


def with_tower(source: Source, folder: Path, name: str, token_id: int) -> Source:
    """Return the source of a model with a published encoder and a new projector.

    Args:
      name: "vision" or "audio". token_id: of the token that holds the place of one vector.
    SigLIP gets the projector of Idefics3, CLIP that of LLaVA, Whisper that of Voxtral; so these are the families to export to.
    Raises: UserError if the folder holds no such encoder, or the model has one.
    """
    if getattr(source.config, name).num_layers:
        raise UserError(f"the model has an encoder in model.{name}: --{name}_tower is for models without one")
    section = section_of(read_config(folder), folder, name, token_id)
    config = dataclasses.replace(source.config, **{name: section})
    tower = _open(folder, config, name)
    stored = source.stored | {path: tower.stored(path) for path in tower.places}

    def load(abstract: nnx.State) -> nnx.State:
        flat = list(nnx.to_flat_state(abstract))
        ours = [(path, x) for path, x in flat if path[0] == name]
        joint = nnx.from_flat_state([(path, x) for path, x in ours if path[1] == "projector"])
        rest = nnx.from_flat_state([(path, x) for path, x in flat if path[0] != name])
        encoder = nnx.from_flat_state([(path, x) for path, x in ours if path[1] != "projector"])
        return nnx.merge_state(source.load(rest), stream.load(tower, encoder), _new_projector(config, name, joint))

    return Source(config, stored, load)


def section_of(hf: Mapping, folder: Path, name: str, token_id: int) -> Vision | Audio:
    """Return the settings of the encoder that config.json describes, with its usual projector."""
    kind = hf.get("model_type")
    known = tuple(SEES) if name == "vision" else HEARS
    if kind not in known:
        raise UserError(f"--{name}_tower={folder}: model_type={short(kind)} in config.json is none of {', '.join(known)}")
    try:
        if name == "audio":
            settings = {**encoders.WHISPER_DEFAULTS, **hf} if kind == encoders.WHISPER else encoders.with_whispers_names(hf)
            stack = max(1, settings["encoder_ffn_dim"] // settings["d_model"])
            return encoders.audio_of(settings, stack=stack, projector="mlp", projector_bias=False, token_id=token_id)
        settings = hf.get("vision_config", hf) if kind in ("siglip", "clip") else hf
        if SEES[kind] == encoders.CLIP:
            return encoders.vision_of(settings, encoders.CLIP, feature_layer=-2, projector="mlp", token_id=token_id)
        vision = encoders.vision_of(settings, encoders.SIGLIP, projector="linear", token_id=token_id)
        return dataclasses.replace(vision, shuffle=1 if vision.patches % 2 else 2)
    except (TypeError, ValueError, ArithmeticError, AttributeError, LookupError) as error:
        raise UserError(f"{folder}: config.json holds a value of the wrong kind: {type(error).__name__}: {error}") from None


def to_tower(workdir: Path, to: Path, name: str) -> None:
    """Write the encoder of the newest checkpoint: config.json and safetensors, without its projector.

    Raises: UserError if `to` holds anything but this export, or there is no checkpoint or no such encoder.
    """
    check_target(to)
    with opened(workdir) as (_, arrays):
        section = getattr(arrays.config, name)
        if not section.num_layers:
            raise UserError(f"{workdir} has no encoder in model.{name}")
        prefix = "vision_model." if name == "vision" else ""
        tensors = {place.row.theirs: [place] for place in _places(section, name, prefix)}
        dtypes = {theirs: np.dtype(arrays.dtypes[rows[0].path]) for theirs, rows in tensors.items()}
        with written_whole(to) as staging:
            write_tensors(staging, arrays, tensors, dtypes, 5_000_000_000)
            first = next(iter(dtypes.values()))
            write_json(staging / "config.json", {**_described(section), "dtype": str(first)})


def _described(section: Vision | Audio) -> dict:
    if isinstance(section, Audio):
        return {"architectures": ["VoxtralEncoder"], **encoders.voxtral_described(section)}
    name = {encoders.SIGLIP: "SiglipVisionModel", encoders.CLIP: "CLIPVisionModel"}[encoders.kind_of(section)]
    return {"architectures": [name], **encoders.vision_described(section)}


def _places(section: Vision | Audio, name: str, at: str) -> list[Place]:
    if name == "vision":
        ends, layer = encoders.vision_ends(section, at), encoders.vision_layer(section, at)
    else:
        ends, layer = encoders.audio_ends(section, at), encoders.audio_layer(section, at)
    return [*(Place(row.ours, (), row) for row in ends), *encoder_places(name, section.num_layers, layer)]


def _open(folder: Path, config: ModelConfig, name: str) -> Published:
    """Return the encoder's tensors. Raises UserError if some are missing or have another shape; others are left out."""
    tensors = {re.sub(PREFIXES[name], "", key): tensor for key, tensor in tensors_of(folder).items()}
    section = getattr(config, name)
    if section.num_layers > len(tensors):  # before a list of them is made
        raise UserError(f"{folder}: config.json describes {section.num_layers} layers, and there are {len(tensors)} tensors")
    parameters = by_parameter(_places(section, name, ""))
    shapes = {place.row.theirs: place.row.theirs_shape for found in parameters.values() for place in found}
    text = mismatch(shapes, tensors)
    if text:
        raise UserError(f"{folder}: its tensors are not those of the encoder that its config.json describes: {text}")
    return Published(folder, read_config(folder)["model_type"], config, parameters, tensors, False)


def _new_projector(config: ModelConfig, name: str, abstract: nnx.State) -> nnx.State:
    """Return a new projector with the dtypes and shardings of `abstract`."""

    def build():
        with nnx.use_eager_sharding(False):
            return nnx.split(Projector(in_dtype(config), name, nnx.Rngs(params=0)))[1]

    made = {f"{name}.projector.{key}": x for key, x in named(plain(jax.jit(build)())).items()}
    placed = {key: jax.device_put(made[key].astype(x.dtype), x.sharding) for key, x in named(plain(abstract)).items()}
    return unplain(abstract, nested(placed))
