"""Weights of an untrained model that NumPy draws: to compile their initialisation takes longer than most tests."""

import functools

import jax.numpy as jnp
import numpy as np

from lm.adapt.rebuild import arrays_of, combined
from lm.config import ModelConfig
from lm.model.initializers import STD
from lm.model.linear import hidden_std, residual_std
from lm.model.transformer import skeleton

ZEROS = ("bias", "sinks", "balance_bias")


@functools.cache
def drawn(config: ModelConfig, seed: int = 0, scale: float = 1.0):
    """As tests.lm.examples.parameters, with other random numbers; for text, without adapters and integers."""
    assert not (config.vision.num_layers or config.audio.num_layers or config.adapter.rank or config.quantization.bits)
    rng, width = np.random.default_rng(seed), config.mup_base_dim or config.embed_dim

    def start(name: str, shape: tuple[int, ...]) -> np.ndarray:
        last = name.rsplit(".", 1)[-1]
        if last in ZEROS or (name == "score" and config.score_head == "value"):
            return np.zeros(shape, np.float32)
        if last == "scale":
            return np.full(shape, not config.norm_plus_one, np.float32)
        std = hidden_std(config, STD)
        if name.endswith(("attention.output.weight", "feed_forward.down", ".feed_forward.down.weight", ".shared.down.weight")):
            std = hidden_std(config, residual_std(config))
        elif name == "head" or (name == "embedding" and config.tie_embeddings):
            std = min(STD, (0.4 if name == "embedding" else 0.2) * width**-0.5)
        elif name in ("embedding", "position_embedding", "score") or last == "router":
            std = STD
        return (std * rng.standard_normal(shape)).astype(np.float32)

    arrays = {name: start(name, x.shape) for name, x in arrays_of(skeleton(config)[1]).items()}
    return combined(config, {name: jnp.asarray(x * scale if x.ndim > 1 else x) for name, x in arrays.items()})
