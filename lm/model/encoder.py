"""The layers that encoders of images and of speech share, and the projector of their states to the decoder's width.

Axes: R rows (images or windows of sound), on every device its own; P patches or frames, D size of their vectors between layers,
H heads, K head size, F feed-forward.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from lm.config import Adapter, ModelConfig, Quantization
from lm.kernels.ops import bidirectional_attention
from lm.kernels.saved import saved
from lm.model import feed_forward
from lm.model.initializers import stacked
from lm.model.linear import Linear
from lm.model.norms import LayerNorm

ACTIVATIONS = feed_forward.ACTIVATIONS


def fan_in_std(inputs: int) -> float:
    """Return 1/√inputs (LeCun et al. 1998). With a fixed 0.02, layers of a narrow encoder would hardly change its states."""
    return inputs**-0.5


class EncoderLayer(nnx.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)), with LayerNorms and biases; every patch sees all patches."""

    def __init__(self, config: ModelConfig, name: str, key_bias: bool, rngs: nnx.Rngs):
        tower = getattr(config, name)
        D, H, F = tower.embed_dim, tower.num_heads, tower.mlp_dim
        self.scale, self.activation = (D // H) ** -0.5, ACTIVATIONS[tower.activation]

        def linear(
            part: str, equation: str, shape: tuple[int, ...], axes: tuple[str, ...], inputs: int, bias: bool = True
        ) -> Linear:
            std = fan_in_std(inputs)
            return Linear(config, rngs, f"{name}.{part}", equation, shape, axes, std=std, bias=bias)

        def project(part: str, bias: bool) -> Linear:
            return linear(f"attention.{part}", "rpd,dhk->rphk", (D, H, D // H), ("embed", "heads", "head"), D, bias)

        writers = 2 * tower.num_layers  # matrices that write into the residual stream start smaller, as the decoder's do
        self.attention_norm = LayerNorm(D, tower.norm_eps)
        self.query, self.key, self.value = project("query", True), project("key", key_bias), project("value", True)
        self.output = linear("attention.output", "rphk,hkd->rpd", (H, D // H, D), ("heads", "head", "embed"), writers * D)
        self.feed_forward_norm = LayerNorm(D, tower.norm_eps)
        self.up = linear("feed_forward.up", "rpd,df->rpf", (D, F), ("embed", "mlp"), D)
        self.down = linear("feed_forward.down", "rpf,fd->rpd", (F, D), ("mlp", "embed"), writers * F)

    def __call__(self, x_RPD: jax.Array) -> jax.Array:
        y_RPD = self.attention_norm(x_RPD)
        q_RPHK, k_RPHK, v_RPHK = (saved(part(y_RPD)) for part in (self.query, self.key, self.value))
        x_RPD = saved(x_RPD + self.output(bidirectional_attention(q_RPHK, k_RPHK, v_RPHK, self.scale)))
        hidden_RPF = saved(self.up(self.feed_forward_norm(x_RPD)), wide=True).astype(jnp.float32)
        return x_RPD + self.down(self.activation(hidden_RPF).astype(x_RPD.dtype))


def encoder_layers(config: ModelConfig, name: str, key_bias: bool, rngs: nnx.Rngs) -> EncoderLayer:
    """Return the layers of `config.vision` or `config.audio` as one module; each parameter has the leading axis "layers"."""

    return stacked(getattr(config, name).num_layers, lambda rngs: EncoderLayer(config, name, key_bias, rngs), rngs)


class Projector(nnx.Module):
    """Linear(x), or linear(activation(linear(x))): the states of an encoder as vectors of the decoder's width.

    It is trained whole, also beside adapters, so it has neither adapters nor integers.
    """

    def __init__(self, config: ModelConfig, name: str, rngs: nnx.Rngs):
        tower, D, config = getattr(config, name), config.embed_dim, plain(config)

        def linear(part: str, inputs: int, bias: bool) -> Linear:
            axes = ("embed", "replicated")
            return Linear(config, rngs, f"{name}.projector.{part}", "rpc,cd->rpd", (inputs, D), axes, bias=bias)

        if tower.projector == "mlp":
            self.activation = ACTIVATIONS[tower.projector_activation]
            self.first = linear("first", tower.projector_inputs, tower.projector_bias)
            self.second = linear("second", D, tower.projector_bias)
        else:
            self.linear = linear("linear", tower.projector_inputs, False)

    def __call__(self, x_RPC: jax.Array) -> jax.Array:
        if hasattr(self, "linear"):
            return self.linear(x_RPC)
        return self.second(self.activation(saved(self.first(x_RPC)).astype(jnp.float32)).astype(x_RPC.dtype))


def in_dtype(config: ModelConfig) -> ModelConfig:
    """Return the config for the layers of encoders: trained in the compute dtype, whatever the decoder's products are."""
    return dataclasses.replace(config, quantized_training="none")


def plain(config: ModelConfig) -> ModelConfig:
    """Return the config for patch embeddings, convolutions and projectors, which are never quantised or adapted."""
    return dataclasses.replace(config, quantized_training="none", adapter=Adapter(), quantization=Quantization())
