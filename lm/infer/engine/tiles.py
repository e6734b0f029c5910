"""Images and sound of a request, as the tiles that encoders take: an image of the encoder's size, or a window of sound.

This file is read where settings are checked, so it does not load JAX.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lm.config import ModelConfig
from lm.config.towers import NAMES, Media, check_text
from lm.errors import UserError


class Tile(NamedTuple):
    """name: of its encoder. array: float32, what the encoder takes. digest: of both."""

    name: str
    array: np.ndarray
    digest: bytes


def tiles_of(media: Media | None) -> tuple[Tile, ...]:
    """Return the tiles of one prompt, for Request. media: `lm.model.media.Media` of one row, as for `lm.infer.sampler.draw`."""
    found = []
    for name, some in zip(NAMES, media or (), strict=False):
        for array in () if some is None else np.asarray(some, np.float32)[0]:
            digest = hashlib.blake2b(array.tobytes(), digest_size=16, person=name.encode()).digest()
            found.append(Tile(name, array, digest))
    return tuple(found)


def check_tiles(prompt: Sequence[int], tiles: Sequence[Tile], config: ModelConfig) -> None:
    """Raise UserError if the model lacks an encoder for a tile, or if the prompt has more or fewer tokens than vectors."""
    for name in NAMES:
        section, some = getattr(config, name), [tile for tile in tiles if tile.name == name]
        if not section.num_layers:
            if some:
                raise UserError(f"a request with media for model.{name}, which this model does not have: leave them out")
            continue
        if not some:
            check_text(prompt, name, config)
            continue
        if wrong := next((tile.array.shape for tile in some if tile.array.shape != section.shape), None):
            raise UserError(f"media of shape {wrong}: model.{name} takes {section.shape}")
        places, vectors = prompt.count(section.token_id), len(some) * section.tokens
        if places != vectors:
            raise UserError(
                f"a prompt with {places} tokens {section.token_id} for the {vectors} vectors of model.{name}: give as many"
            )
