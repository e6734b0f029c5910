"""Weights of an untrained model that NumPy draws: to compile their initialisation takes longer than most tests."""

import functools

import jax
import numpy as np

from lm.adapt.rebuild import arrays_of, combined
from lm.config import ModelConfig
from lm.model.initializers import STD
from lm.model.linear import hidden_std, residual_std
from lm.model.transformer import skeleton

ZEROS = ("bias", "sinks", "balance_bias")
INTO_RESIDUAL = ("attention.output.weight", "feed_forward.down", "feed_forward.down.weight", "shared.down.weight")


@functools.cache
def drawn(config: ModelConfig, seed: int = 0, scale: float = 1.0):
    """As tests.lm.examples.parameters, with other random numbers; without adapters and integers."""
    assert not (config.adapter.rank or config.quantization.bits)
    rng, width = np.random.default_rng(seed), config.mup_base_dim or config.embed_dim

    def start(name: str, shape: tuple[int, ...]) -> np.ndarray:
        last = name.rsplit(".", 1)[-1]
        if last in ZEROS or (name == "score" and config.score_head == "value"):
            return np.zeros(shape, np.float32)
        tower = name.startswith(("vision.", "audio."))
        if last == "scale":
            return np.full(shape, tower or not config.norm_plus_one, np.float32)
        std = hidden_std(config, STD, config.embed_dim)
        if not tower and name.endswith(INTO_RESIDUAL):
            std = hidden_std(config, residual_std(config), config.embed_dim)
        elif name == "head" or (name == "embedding" and config.tie_embeddings):
            std = min(STD, (0.4 if name == "embedding" else 0.2) * width**-0.5)
        elif tower and ".projector." not in name:  # of about the size of theirs
            std = (shape[-1] / np.prod(shape)) ** 0.5
        elif name in ("embedding", "position_embedding", "score") or last == "router":
            std = STD
        return (std * rng.standard_normal(shape)).astype(np.float32)

    arrays = {name: start(name, x.shape) for name, x in arrays_of(skeleton(config)[1]).items()}
    return combined(config, {name: jax.device_put(x * scale if x.ndim > 1 else x) for name, x in arrays.items()})
