"""Normalisation."""

import jax
import jax.numpy as jnp
from flax import nnx

from lm.config import ModelConfig
from lm.kernels.ops import rms_norm, row_sums, rows_are_alone
from lm.model.initializers import parameter


def mean(x: jax.Array) -> jax.Array:
    """Return the mean of float32 x over its last axis, which stays with length 1."""
    return row_sums(x) / x.shape[-1] if rows_are_alone() else jnp.mean(x, axis=-1, keepdims=True)


class RMSNorm(nnx.Module):
    """y = x / √(mean(x²) + ε) · scale (Zhang and Sennrich 2019), computed in float32, returned in x's dtype.

    With `plus_one` the scale is 1 + w (Gemma). The mean runs over as many last axes as `shape` has.
    """

    def __init__(self, shape: int | tuple[int, ...], eps: float, *, plus_one: bool = False, axes: tuple[str, ...] = ("norm",)):
        shape = (shape,) if isinstance(shape, int) else shape
        self.eps, self.plus_one = eps, plus_one
        start = jnp.zeros if plus_one else jnp.ones
        self.scale = parameter(start(shape, jnp.float32), axes, "vector")

    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.scale[...].astype(jnp.float32)
        scale = 1 + scale if self.plus_one else scale
        return rms_norm(x, scale, self.eps, rows_are_alone())


class UnitNorm(nnx.Module):
    """y = x / √(mean(x²) + ε) over the last axis, computed in float32, returned in x's dtype (Llama 4's "L2 norm")."""

    def __init__(self, eps: float):
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        return rms_norm(x, jnp.ones(x.shape[-1:], jnp.float32), self.eps, rows_are_alone())


class LayerNorm(nnx.Module):
    """y = (x − mean) / √(var + ε) · scale + bias (Ba et al. 2016), computed in float32, returned in x's dtype.

    With `plus_one` the scale is 1 + w (Nemotron). Without `bias` nothing is added (Cohere).
    """

    def __init__(self, dim: int, eps: float, *, bias: bool = True, plus_one: bool = False):
        self.eps, self.plus_one = eps, plus_one
        start = jnp.zeros if plus_one else jnp.ones
        self.scale = parameter(start((dim,), jnp.float32), ("norm",), "vector")
        if bias:
            self.bias = parameter(jnp.zeros((dim,), jnp.float32), ("norm",), "vector")

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        centred = x32 - mean(x32)
        inverse = jax.lax.rsqrt(mean(centred * centred) + self.eps)
        scale = 1 + self.scale[...] if self.plus_one else self.scale[...]
        y = centred * inverse * scale
        return (y + self.bias[...] if hasattr(self, "bias") else y).astype(x.dtype)


def layer_norm(config: ModelConfig) -> RMSNorm | LayerNorm:
    """Return a new norm of the residual stream, of the config's kind."""
    if config.norm == "layer":
        return LayerNorm(config.embed_dim, config.norm_eps, bias=config.norm_bias, plus_one=config.norm_plus_one)
    return RMSNorm(config.embed_dim, config.norm_eps, plus_one=config.norm_plus_one)
