"""The weights of a model, laid out for the compiled step."""

import dataclasses
from typing import NamedTuple

from flax import nnx

from lm.config import ModelConfig
from lm.infer.decode import decoding_weights
from lm.infer.sampler import UNROLLED
from lm.model.transformer import Transformer, skeleton


class Weights(NamedTuple):
    """What the compiled step needs of a model. config: without scanned layers, if they are few. layers: of
    `decoding_weights`."""

    config: ModelConfig
    graph: nnx.GraphDef
    params: nnx.State
    layers: list | None


def weights_of(model: Transformer) -> Weights:
    """Return the weights for steps."""
    graph, params = nnx.split(model)
    config = model.config
    if config.scan_layers and max(repeats for _, repeats in config.stacks) <= UNROLLED:
        config = dataclasses.replace(config, scan_layers=False)
        graph = skeleton(config)[0]
    return Weights(config, graph, *decoding_weights(graph, params))
