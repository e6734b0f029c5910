"""The settings of a published model's processor: how its images and its sound are prepared, and how its prompts write them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.chat.media.encoding import Towers
from data.media import spectrograms, tiles
from data.media.prompts import IDEFICS3, LLAVA, OWN, VOXTRAL, Style
from data.text.tokenizer import Tokenizer
from lm.config import Audio, ModelConfig
from lm.convert.files import read_json
from lm.errors import UserError
from lm.files import saving
from lm.files import untrusted as strangers
from lm.files.untrusted import check_inside, content

FILES = ("preprocessor_config.json", "processor_config.json", "chat_template.json")
SECTIONS = ("image_processor", "feature_extractor", "audio_processor")  # of a processor_config.json
STYLES = (IDEFICS3, LLAVA, VOXTRAL, OWN)  # in this order: a tokenizer of IDEFICS3 has the symbol of LLAVA too
SIGLIP = {"image_processor_type": "SiglipImageProcessor"}
CONFIG = "the encoder's config"
WHISPER = {"feature_extractor_type": "WhisperFeatureExtractor"}


def copy_processor(source: Path, to: Path) -> None:
    """Copy the files that are in the folder `source` into the folder `to`."""
    for name in FILES:
        if (source / name).is_file():
            check_inside(source, source / name)
            saving.write(to / name, content(source / name, strangers.SETTINGS))


def has_processor(folder: Path) -> bool:
    return any((folder / name).is_file() for name in FILES[:2])


def towers_of(folder: Path, config: ModelConfig, tokenizer: Tokenizer | None) -> Towers | None:
    """Return what a model sees and hears, for data.chat.media.encoding; None for a model of text.

    Without a file of settings, images are stretched to the encoder's size, as for SigLIP, and sound is prepared as for Whisper.
    Args: folder: of the model, a workdir or a Hugging Face folder; a GGUF file has no settings.
    Raises: UserError if the settings do not fit the encoders, or the tokenizer has no symbol for their tokens.
    """
    vision, audio = config.vision, config.audio
    if not vision.num_layers and not audio.num_layers:
        return None
    style = _style(config, tokenizer)
    found = list(_settings(folder))
    image = sound = None
    if vision.num_layers:
        where, settings = _first(found, "image_processor_type", SIGLIP | {"size": vision.image_size})
        image = tiles.tower_of(settings, where)
        if image.size != vision.image_size:
            raise UserError(
                f"{where}: tiles of {image.size} pixels, and model.vision.image_size={vision.image_size}: make them equal"
            )
    if audio.num_layers:
        where, settings = _first(found, "feature_extractor_type", WHISPER | {"feature_size": audio.num_mels})
        if settings.get("chunk_length") is None and where == CONFIG:
            settings |= {"chunk_length": _seconds(audio)}
        sound = spectrograms.tower_of(settings, where)._replace(whole=style is VOXTRAL)
        if (sound.seconds * spectrograms.FRAMES, sound.mels) != audio.shape:
            raise UserError(
                f"{where}: windows of {sound.seconds} s with {sound.mels} mels, and model.audio has num_frames="
                f"{audio.num_frames}, num_mels={audio.num_mels}: make them equal"
            )
    return Towers(image, vision.tokens if image else 0, sound, audio.tokens if sound else 0, style)


def _style(config: ModelConfig, tokenizer: Tokenizer | None) -> Style:
    """Return how prompts write media: the style whose symbols are the tokens of the encoders."""
    wanted = {"image": config.vision.token_id} if config.vision.num_layers else {}
    wanted |= {"audio": config.audio.token_id} if config.audio.num_layers else {}
    for style in STYLES if tokenizer is not None else ():
        if not wanted.keys() <= style.symbols.keys():
            continue
        ids = tokenizer.chat_symbols("".join(style.symbols.values()) + style.around)
        first = style.around.partition(">")[0] + ">" if style is IDEFICS3 else ""
        if (not first or first in ids) and all(ids.get(style.symbols[kind]) == id for kind, id in wanted.items()):
            return style
    names = {"image": "vision", "audio": "audio"}
    keys = " and ".join(f"model.{names[kind]}.token_id={id}" for kind, id in wanted.items())
    raise UserError(
        f"{keys}: no way to write media in a prompt has these tokens in the tokenizer; name the id of <|reserved_0|> or "
        "<image> for images, of <|reserved_1|> or [AUDIO] for sound"
    )


def _seconds(audio: Audio) -> int:
    """Return the seconds of a window. Raises: UserError if they are not whole, or too many."""
    if audio.num_frames % spectrograms.FRAMES:
        raise UserError(
            f"model.audio.num_frames={audio.num_frames} must be a multiple of {spectrograms.FRAMES}, whole seconds of sound"
        )
    seconds = audio.num_frames // spectrograms.FRAMES
    if seconds > spectrograms.MAX_SECONDS:
        raise UserError(f"model.audio.num_frames={audio.num_frames}: a window has at most {spectrograms.MAX_SECONDS} seconds")
    return seconds


def _settings(folder: Path):
    """Yield (file, settings) of each object that may describe a processor."""
    for name in FILES[:2]:
        if not (folder / name).is_file():
            continue
        settings = read_json(folder / name)
        yield str(folder / name), settings
        for section in SECTIONS:
            if isinstance(settings.get(section), Mapping):
                yield f"{folder / name}, {section}", settings[section]


def _first(found: list[tuple[str, Mapping[str, Any]]], key: str, plain: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Return the first (file, settings) with this key, else the plain settings."""
    return next(((where, settings) for where, settings in found if settings.get(key)), (CONFIG, plain))
