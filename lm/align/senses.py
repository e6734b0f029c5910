"""What the model of a run sees and hears, and whether its rows have room for it."""

from pathlib import Path

from data.chat.media import rows
from data.chat.media.encoding import Towers
from data.text.tokenizer import Tokenizer
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
