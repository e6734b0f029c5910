"""The language model inside of a published model that sees or hears: a `text_config`, and tensors with a prefix."""

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path

from lm.config import Audio, LayerKind, ModelConfig, Vision
from lm.convert.essence import lacks
from lm.convert.llama import LLAMA
from lm.convert.relatives import MISTRAL, QWEN2, QWEN3
from lm.convert.rows import Family, Row
from lm.errors import UserError
from lm.files.untrusted import short

BY_TYPE = {family.name: family for family in (LLAMA, MISTRAL, QWEN2, QWEN3)}  # whose tensors have the same names
OUTER = ("dtype", "torch_dtype", "quantization_config")  # keys that stand at the top level, for all parts


def text_of(hf: Mapping, **more) -> ModelConfig:
    """Return the config of the language model. more: keys of text_config, over those that are there."""
    text = hf.get("text_config") or {}
    if not isinstance(text, Mapping):
        raise UserError(f"text_config={short(text)} in config.json must be an object with the settings of the language model")
    name = text.get("model_type", "llama")
    if name not in BY_TYPE:
        raise UserError(f"text_config.model_type={short(name)} in config.json is none of {', '.join(BY_TYPE)}")
    return BY_TYPE[name].from_hf({**{key: hf[key] for key in OUTER if key in hf}, **text, **more})


def alone(config: ModelConfig) -> ModelConfig:
    """Return the config of the language model without its encoders."""
    return dataclasses.replace(config, vision=Vision(), audio=Audio())


def family_of_text(config: ModelConfig) -> Family:
    """Return the first of these families that can hold the language model of a config."""
    for family in BY_TYPE.values():
        with contextlib.suppress(UserError):
            if not lacks(family, alone(config)):
                return family
    raise UserError(f"the language model is none of those that models with encoders are exported with: {', '.join(BY_TYPE)}")


def text_described(config: ModelConfig) -> dict:
    """Return `text_config`; the inverse of `text_of`."""
    keys = family_of_text(config).to_hf(alone(config))
    return {key: value for key, value in keys.items() if key not in ("architectures", "dtype")}


def outer_described(config: ModelConfig, model_type: str, architecture: str) -> dict:
    """Return the keys at the top level of config.json."""
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "tie_word_embeddings": config.tie_embeddings,
        "dtype": config.dtype,
        "text_config": text_described(config),
    }


def text_rows(config: ModelConfig, kind: LayerKind, prefix: str) -> list[Row]:
    """Return the rows of a layer of the language model. prefix: what stands in place of "model."."""
    return [_renamed(row, prefix) for row in family_of_text(config).rows(alone(config), kind)]


def text_ends(config: ModelConfig, prefix: str, head: str) -> list[Row]:
    """Return the other rows of the language model. head: the name of its head."""
    rows = family_of_text(config).ends(alone(config))
    return [dataclasses.replace(row, theirs=head) if row.ours == "head" else _renamed(row, prefix) for row in rows]


def _renamed(row: Row, prefix: str) -> Row:
    return dataclasses.replace(row, theirs=prefix + row.theirs.removeprefix("model."))


def check_text_only(config: ModelConfig, path: Path, form: str) -> None:
    """Raise UserError if the model has an encoder. form: the format that cannot hold it."""
    if config.vision.num_layers or config.audio.num_layers:
        raise UserError(f"{path} sees or hears (model.vision, model.audio), and {form} holds text models only: export a folder")


def check_section(config: ModelConfig, name: str, model_type: str, **expected) -> None:
    """Raise UserError unless the config has this encoder, no other one, and these settings of it."""
    other = "audio" if name == "vision" else "vision"
    if not getattr(config, name).num_layers or getattr(config, other).num_layers:
        raise UserError(f"{model_type} has an encoder in model.{name} and none in model.{other}")
    for key, value in expected.items():
        if getattr(getattr(config, name), key) != value:
            raise UserError(f"model.{name}.{key}={getattr(getattr(config, name), key)!r} does not exist in {model_type}")
