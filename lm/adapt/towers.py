"""Fresh encoders of images and speech for a model that has none (lm/convert/towers.py attaches published ones)."""

import dataclasses

from flax import nnx

from lm.adapt.rebuild import arrays_of, rebuilt
from lm.config import ModelConfig
from lm.config.towers import Audio, Vision
from lm.model.transformer import build


def with_towers(
    config: ModelConfig, params: nnx.State, towers: dict[str, Vision | Audio], seed: int = 0
) -> tuple[ModelConfig, nnx.State]:
    """Return the model with new encoders and projectors of random weights; its logits for text stay bitwise the same.

    towers: sections of the config by name, "vision" and "audio".
    """
    new = dataclasses.replace(config, **towers)
    begin = tuple(f"{name}." for name in towers)

    def made(_):
        return {name: x for name, x in arrays_of(build(new, seed)).items() if name.startswith(begin)}

    return new, rebuilt(new, params, made)
