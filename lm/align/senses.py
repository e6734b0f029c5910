"""What the model of a run sees and hears, and whether its rows have room for it."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from data.chat.media import rows
from data.chat.media.encoding import Towers
from data.text.tokenizer import Tokenizer
from lm.config import ModelConfig
from lm.config.towers import NAMES
from lm.convert.multimodal import processor
from lm.errors import UserError
from lm.train.values import model_of

SECTIONS = dict(zip(rows.NAMES, NAMES))  # media of examples: the section of the model's config with their encoder


def towers_of(config, tokenizer: Tokenizer, workdir: Path) -> Towers | None:
    """Return what the model of a run sees and hears; None for a model of text.

    The settings of the processor are those in the workdir, or else in init_from (lm/convert/multimodal/processor.py).
    Raises: UserError if encoders, processor, tokenizer and sequence_length do not go together.
    """
    model = model_of(config)
    places = [Path(place) for place in (workdir, config.init_from) if place]
    folder = next((place for place in places if processor.has_processor(place)), places[0])
    towers = processor.towers_of(folder, model, tokenizer)
    for what, section in (("image", "vision"), ("window of sound", "audio")):
        tower = getattr(model, section)
        if tower.num_layers and tower.tokens >= config.sequence_length:
            raise UserError(
                f"sequence_length={config.sequence_length} is too short for one {what} of model.{section}, which has "
                f"{tower.tokens} tokens: raise it"
            )
    return towers


def check_text(model: ModelConfig, tokens: Iterable[Sequence[int]]) -> None:
    """Raise UserError if data without media have tokens that stand for the vectors of an encoder."""
    for ids in tokens:
        for name in NAMES:
            tower = getattr(model, name)
            if tower.num_layers and (np.asarray(ids) == tower.token_id).any():
                raise UserError(
                    f"data.input: text with the token {tower.token_id}, which is the place of a vector of model.{name}, and "
                    "without media: a chat template or the tokenizer writes it. Use another one, or method=sft with the media"
                )
