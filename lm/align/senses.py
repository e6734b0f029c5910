"""What a model sees and hears: how its data are prepared for its encoders, and how its prompts write media."""

from pathlib import Path

from data.chat.media.encoding import Towers
from data.media import spectrograms, tiles
from data.media.prompts import IDEFICS3, LLAVA, OWN, VOXTRAL, Style
from data.text.tokenizer import Tokenizer
from lm.errors import UserError
from lm.strangers import check_inside, read_json
from lm.towers import Audio, Vision

PROCESSOR = "preprocessor_config.json"
NAMES = {"vision": "image", "audio": "audio"}  # sections of the model's config: kinds of media


def towers_of(config, tokenizer: Tokenizer, workdir: Path) -> Towers | None:
    """Return what the model of a run sees and hears; None for a model of text.

    The processor is read from a preprocessor_config.json of the workdir, or else of init_from. Without one, an image is
    stretched to the encoder's size, and sound is cut into windows of the encoder's length.
    Raises: UserError if encoders, processor, tokenizer and sequence_length do not go together.
    """
    vision, audio = Vision(**config.model.vision), Audio(**config.model.audio)
    if not vision.num_layers and not audio.num_layers:
        return None
    found = processor(workdir, config.init_from)
    image = sound = None
    if vision.num_layers:
        image = tiles.tower_of(*found) if found and "image_processor_type" in found[0] else tiles.Tower(vision.image_size)
        if image.size != vision.image_size:
            raise UserError(
                f"{found[1]}: tiles of {image.size} pixels, and model.vision.image_size={vision.image_size}: make them equal"
            )
        _check_room("vision", "image", vision.tokens, config.sequence_length)
    if audio.num_layers:
        hears = found and "feature_extractor_type" in found[0]
        sound = spectrograms.tower_of(*found) if hears else _windows_of(audio)
        frames = sound.seconds * spectrograms.FRAMES
        if (frames, sound.mels) != audio.shape:
            raise UserError(
                f"{found[1]}: windows of {frames} frames with {sound.mels} mels, and the model's encoder takes "
                f"model.audio.num_frames={audio.num_frames} with num_mels={audio.num_mels}: make them equal"
            )
        _check_room("audio", "window of sound", audio.tokens, config.sequence_length)
    style = style_of(config, tokenizer)
    if style == VOXTRAL and sound:
        sound = sound._replace(whole=True)
    return Towers(image, vision.tokens if image else 0, sound, audio.tokens if sound else 0, style)


def processor(*places: str | Path | None) -> tuple[dict, str] | None:
    """Return the settings of the first preprocessor_config.json in these folders, and its path; None if there is none."""
    for place in places:
        if place and (path := Path(place) / PROCESSOR).is_file():
            check_inside(Path(place), path)
            return read_json(path), str(path)
    return None


def style_of(config, tokenizer: Tokenizer) -> Style:
    """Return how prompts write media: the style whose symbols are the tokens model.vision.token_id and model.audio.token_id.

    Raises: UserError if there is no such style.
    """
    asked = {kind: config.model[name].token_id for name, kind in NAMES.items() if config.model[name].num_layers}
    for style in (OWN, IDEFICS3, LLAVA, VOXTRAL):
        ids = tokenizer.chat_symbols(style.around + "".join(style.symbols.values()))
        around = style is not IDEFICS3 or "<fake_token_around_image>" in ids
        if around and all(kind in style.symbols and ids.get(style.symbols[kind]) == id for kind, id in asked.items()):
            return style
    keys = " and ".join(f"model.{name}.token_id={config.model[name].token_id}" for name, kind in NAMES.items() if kind in asked)
    raise UserError(
        f"{keys}: no way to write media in a prompt has these tokens in the tokenizer of {config.tokenizer}; name the id of "
        "<|reserved_0|> or <image> for images, of <|reserved_1|> or [AUDIO] for sound, or leave the key out"
    )


def _windows_of(audio: Audio) -> spectrograms.Tower:
    if audio.num_frames % spectrograms.FRAMES:
        raise UserError(
            f"model.audio.num_frames={audio.num_frames} must be a multiple of {spectrograms.FRAMES}, whole seconds of sound"
        )
    seconds = audio.num_frames // spectrograms.FRAMES
    if seconds > spectrograms.MOST_SECONDS:
        raise UserError(f"model.audio.num_frames={audio.num_frames}: a window has at most {spectrograms.MOST_SECONDS} seconds")
    return spectrograms.Tower(audio.num_mels, seconds)


def _check_room(name: str, what: str, tokens: int, length: int) -> None:
    if tokens >= length:
        raise UserError(
            f"sequence_length={length} is too short for one {what} of model.{name}, which has {tokens} tokens: raise it"
        )
