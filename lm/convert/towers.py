"""Attach a published encoder to a language model: SigLIP's or CLIP's, with or without their text models, or Whisper's."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

import jax
from flax import nnx

from lm.adapt.rebuild import arrays_of, combined, with_towers
from lm.config import Audio, ModelConfig, Vision
from lm.convert.files import tensors_of
from lm.convert.multimodal import encoders
from lm.convert.published import Published, mismatch
from lm.convert.rows import Place, by_parameter, encoder_places
from lm.errors import UserError
from lm.files.untrusted import short
from lm.runs.workdir import read_config

VISION_KINDS = {"siglip": encoders.SIGLIP, "clip": encoders.CLIP}  # of models that hold such an encoder
VISION_KINDS |= {kind: kind for kind in VISION_KINDS.values()}
PREFIXES = {"vision": r"^(model\.)?vision_model\.", "audio": r"^(model\.)?encoder\."}  # with or without


def open_tower(config: ModelConfig, folder: Path, name: str, token_id: int) -> Published:
    """Open a published encoder. Its `config` is that of the language model with the encoder and a projector.

    Args: name: "vision" or "audio". token_id: of the token that holds the place of one vector.
    Raises: UserError if the folder holds no such encoder, or the model has one.
    """
    if getattr(config, name).num_layers:
        raise UserError(f"the model has an encoder in model.{name}: --{name}_tower is for models without one")
    hf = read_config(folder)
    section = section_of(hf, folder, name, token_id)
    config = dataclasses.replace(config, **{name: section})
    tensors = {re.sub(PREFIXES[name], "", key): tensor for key, tensor in tensors_of(folder).items()}
    if section.num_layers > len(tensors):  # before a list of them is made
        raise UserError(f"{folder}: config.json describes {section.num_layers} layers, and there are {len(tensors)} tensors")
    ends, layer = (rows(section, "") for rows in encoders.ROWS[name])
    places = [*(Place(row.ours, (), row) for row in ends), *encoder_places(name, section.num_layers, layer)]
    if text := mismatch({place.row.theirs: place.row.theirs_shape for place in places}, tensors):
        raise UserError(f"{folder}: its tensors are not those of the encoder that its config.json describes: {text}")
    return Published(folder, hf["model_type"], config, by_parameter(places), tensors, False)


def section_of(hf: Mapping, folder: Path, name: str, token_id: int) -> Vision | Audio:
    """Return the settings of the encoder that config.json describes, with its usual projector.

    SigLIP gets the projector of Idefics3, CLIP that of LLaVA, Whisper that of Voxtral; so these are the families to export to.
    """
    kind = hf.get("model_type")
    known = tuple(VISION_KINDS) if name == "vision" else (encoders.WHISPER,)
    if kind not in known:
        raise UserError(f"--{name}_tower={folder}: model_type={short(kind)} in config.json is none of {', '.join(known)}")
    try:
        if name == "audio":
            settings = {**encoders.WHISPER_DEFAULTS, **hf}
            stack = max(1, settings["encoder_ffn_dim"] // settings["d_model"])
            return encoders.audio_of(settings, stack=stack, projector="mlp", projector_bias=False, token_id=token_id)
        settings = hf.get("vision_config", hf) if kind in ("siglip", "clip") else hf
        if VISION_KINDS[kind] == encoders.CLIP:
            return encoders.vision_of(settings, encoders.CLIP, feature_layer=-2, projector="mlp", token_id=token_id)
        vision = encoders.vision_of(settings, encoders.SIGLIP, projector="linear", token_id=token_id)
        return dataclasses.replace(vision, shuffle=1 if vision.patches % 2 else 2)
    except (TypeError, ValueError, ArithmeticError, AttributeError, LookupError) as error:
        raise UserError(f"{folder}: config.json holds a value of the wrong kind: {type(error).__name__}: {error}") from None


def attached(config: ModelConfig, params: nnx.State, towers: Mapping[str, Published]) -> tuple[ModelConfig, nnx.State]:
    """Return the model with these encoders, by section of the config, in their stored dtypes, and with new projectors."""
    config, params = with_towers(config, params, {name: getattr(tower.config, name) for name, tower in towers.items()})
    arrays = arrays_of(params)
    for tower in towers.values():
        stored = {path: (arrays[path], tower.dtype(path)) for path in tower.places}
        arrays |= tower.load({p: jax.ShapeDtypeStruct(x.shape, dtype, sharding=x.sharding) for p, (x, dtype) in stored.items()})
    return config, combined(config, arrays)
