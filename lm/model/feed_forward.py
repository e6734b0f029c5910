"""The feed-forward sublayer, gated or not."""

import functools
import statistics
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from lm.config import LayerKind, ModelConfig
from lm.files.user_files import is_own, layer_part
from lm.kernels.experts import limited
from lm.kernels.ops import silu_gated
from lm.kernels.saved import saved
from lm.model.linear import Linear, residual_std, together
from lm.model.norms import mean
from lm.parallel.context import length_axis

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),  # x·Φ(x) (Hendrycks and Gimpel 2016)
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # its approximation (CLIP, gpt-oss)
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),  # So et al. 2021
}


def activation_of(config: ModelConfig) -> Callable[[jax.Array], jax.Array]:
    """Return the config's activation, float32 to float32 of the same shape. It clamps what it gets to model.gate_limit."""
    if is_own(config.activation):
        return layer_part("model.activation", config.activation, "FILE.py:FUNCTION")
    return _clamped(config.activation, config.gate_limit) if config.gate_limit else ACTIVATIONS[config.activation]


@functools.cache  # so that equal models have equal graphs
def _clamped(name: str, limit: float) -> Callable[[jax.Array], jax.Array]:
    return lambda x: ACTIVATIONS[name](jnp.minimum(x, limit))


def feed_forward_sublayer(config: ModelConfig, rngs: nnx.Rngs, kind: LayerKind) -> nnx.Module:
    """Return a new dense feed-forward of a layer of this kind, or the user's own in its place."""
    if config.feed_forward:
        return layer_part("model.feed_forward", config.feed_forward, "FILE.py:CLASS")(config, rngs, config.mlp_dim)
    return FeedForward(config, rngs, kind.mlp_dim or config.mlp_dim, sparsity=kind.sparsity)


def largest(x_BTF: jax.Array, sparsity: float) -> jax.Array:
    """Return float32 max(0, x − mean − std·Φ⁻¹(sparsity)): of normally distributed units that fraction is 0.

    Statistical top-k (You et al. 2025, "Spark Transformer", §3.1).
    """
    centred = x_BTF - mean(x_BTF)
    std = jnp.sqrt(jnp.maximum(mean(jnp.square(centred)), 1e-30))  # above 0, so that there is a gradient
    return jax.nn.relu(centred - std * statistics.NormalDist().inv_cdf(sparsity))


class FeedForward(nnx.Module):
    """down(f(gate(x)) · up(x)): SwiGLU with f = silu, GeGLU with gelu (Shazeer 2020). Not gated: down(f(up(x)))."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, dim: int, name: str = "feed_forward", *, sparsity: float = 0.0):
        D, bias = config.embed_dim, config.mlp_bias
        self.activation, self.limit, self.sparsity = activation_of(config), config.gate_limit, sparsity
        if config.gated:
            self.gate = Linear(config, rngs, f"{name}.gate", "btd,df->btf", (D, dim), ("embed", "mlp"), bias=bias)
        self.up = Linear(config, rngs, f"{name}.up", "btd,df->btf", (D, dim), ("embed", "mlp"), bias=bias)
        self.down = Linear(
            config, rngs, f"{name}.down", "btf,fd->btd", (dim, D), ("mlp", "embed"), std=residual_std(config), bias=bias
        )

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        # Float32 inside: a CPU would round every operation of the activation to bfloat16.
        if not hasattr(self, "gate"):
            hidden_BTF = self.activation(saved(self.up(x_BTD), wide=True).astype(jnp.float32))
        else:
            up_BTF, gate_BTF = together(x_BTD, self.up, self.gate) or (self.up(x_BTD), self.gate(x_BTD))
            up_BTF, gate_BTF = saved(up_BTF, wide=True), saved(gate_BTF, wide=True)
            if self.sparsity:
                gate_BTF = largest(gate_BTF.astype(jnp.float32), self.sparsity)
            if self.activation is jax.nn.silu and not self.sparsity:
                hidden_BTF = silu_gated(gate_BTF, up_BTF)
            else:
                up_BTF = up_BTF.astype(jnp.float32)
                up_BTF = limited(up_BTF, self.limit) if self.limit else up_BTF
                hidden_BTF = up_BTF * self.activation(gate_BTF.astype(jnp.float32))
        return self.down(hidden_BTF.astype(x_BTD.dtype), length_axis(x_BTD))
