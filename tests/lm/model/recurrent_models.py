"""Small models with layers that have a state, one for each kind."""

from flax import nnx

from lm.config import ModelConfig
from lm.model.transformer import Transformer, skeleton
from tests.lm.weights import drawn

BASE = dict(vocab_size=96, num_layers=3, embed_dim=32, num_heads=4, num_kv_heads=2, mlp_dim=48, max_positions=256)
KINDS = {
    "conv": dict(recurrent=dict(kernel=3, bias=True)),
    "delta": dict(recurrent=dict(kernel=3, num_heads=4, num_key_heads=2, key_dim=8, value_dim=6, chunk=16), output_gate=True),
    "mamba": dict(recurrent=dict(kernel=4, bias=True, num_heads=8, num_key_heads=2, key_dim=8, value_dim=6, chunk=16)),
}


def config_of(kind: str, **more) -> ModelConfig:
    """Return a config of two layers of the kind and one of attention."""
    return ModelConfig(**BASE | dict(attention_pattern=(kind, kind, "global")) | KINDS[kind] | dict(dtype="float32") | more)


def model_of(kind: str, **more) -> Transformer:
    config = config_of(kind, **more)
    return nnx.merge(skeleton(config)[0], drawn(config, scale=4.0))
