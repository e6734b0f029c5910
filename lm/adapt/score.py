"""A scalar head on any model: that of a reward model or a critic."""

import dataclasses

from flax import nnx

from lm.adapt.rebuild import arrays_of, combined, rebuilt
from lm.config import ModelConfig
from lm.model.transformer import build


def with_score_head(config: ModelConfig, params: nnx.State, kind: str, seed: int = 0) -> tuple[ModelConfig, nnx.State]:
    """Return the model with a fresh head of this kind (model.score_head), replacing its own; "none" removes the head."""
    new = dataclasses.replace(config, score_head=kind)
    if kind == "none":
        return new, combined(new, arrays_of(params))
    return new, rebuilt(new, params, lambda _: {"score": arrays_of(build(new, seed))["score"]})
