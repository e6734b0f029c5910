"""Attach a published encoder to a language model: SigLIP's or CLIP's, with or without their text models, or Whisper's."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

import jax
from flax import nnx
from flax.typing import PathParts

from lm.config import Audio, ModelConfig, Vision
from lm.convert import stream
from lm.convert.files import tensors_of
from lm.convert.multimodal import encoders
from lm.convert.published import Published, mismatch
from lm.convert.rows import Place, by_parameter, encoder_places
from lm.convert.source import Source
from lm.errors import UserError
from lm.files.untrusted import short
from lm.model.encoder import Projector, in_dtype
from lm.model.linear import is_projector
from lm.runs.checkpoint import named, nested, plain, unplain
from lm.runs.workdir import read_config

SEES = {"siglip": encoders.SIGLIP, encoders.SIGLIP: encoders.SIGLIP, "clip": encoders.CLIP, encoders.CLIP: encoders.CLIP}
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
        joint, encoder, rest = nnx.split_state(abstract, nnx.All(in_tower, is_projector), in_tower, ...)
        return nnx.merge_state(source.load(rest), stream.load(tower, encoder), _new_projector(config, name, joint))

    def in_tower(path: PathParts, _: object) -> bool:
        return path[0] == name

    return Source(config, stored, load)


def section_of(hf: Mapping, folder: Path, name: str, token_id: int) -> Vision | Audio:
    """Return the settings of the encoder that config.json describes, with its usual projector."""
    kind = hf.get("model_type")
    known = tuple(SEES) if name == "vision" else (encoders.WHISPER,)
    if kind not in known:
        raise UserError(f"--{name}_tower={folder}: model_type={short(kind)} in config.json is none of {', '.join(known)}")
    try:
        if name == "audio":
            settings = {**encoders.WHISPER_DEFAULTS, **hf}
            stack = max(1, settings["encoder_ffn_dim"] // settings["d_model"])
            return encoders.audio_of(settings, stack=stack, projector="mlp", projector_bias=False, token_id=token_id)
        settings = hf.get("vision_config", hf) if kind in ("siglip", "clip") else hf
        if SEES[kind] == encoders.CLIP:
            return encoders.vision_of(settings, encoders.CLIP, feature_layer=-2, projector="mlp", token_id=token_id)
        vision = encoders.vision_of(settings, encoders.SIGLIP, projector="linear", token_id=token_id)
        return dataclasses.replace(vision, shuffle=1 if vision.patches % 2 else 2)
    except (TypeError, ValueError, ArithmeticError, AttributeError, LookupError) as error:
        raise UserError(f"{folder}: config.json holds a value of the wrong kind: {type(error).__name__}: {error}") from None


def _places(section: Vision | Audio, name: str) -> list[Place]:
    if name == "vision":
        ends, layer = encoders.vision_ends(section, ""), encoders.vision_layer(section, "")
    else:
        ends, layer = encoders.audio_ends(section, ""), encoders.audio_layer(section, "")
    return [*(Place(row.ours, (), row) for row in ends), *encoder_places(name, section.num_layers, layer)]


def _open(folder: Path, config: ModelConfig, name: str) -> Published:
    """Return the encoder's tensors. Raises UserError if some are missing or have another shape; others are left out."""
    tensors = {re.sub(PREFIXES[name], "", key): tensor for key, tensor in tensors_of(folder).items()}
    section = getattr(config, name)
    if section.num_layers > len(tensors):  # before a list of them is made
        raise UserError(f"{folder}: config.json describes {section.num_layers} layers, and there are {len(tensors)} tensors")
    parameters = by_parameter(_places(section, name))
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
