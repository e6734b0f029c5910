"""The gated feed-forward sublayer."""

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from lm.config import ModelConfig
from lm.kernels.matmul import matmul
from lm.model.initializers import normal


class SwiGLU(nnx.Module):
    """down(silu(gate(x)) · up(x)) (Shazeer 2020)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        D, F = config.embed_dim, config.mlp_dim
        self.dtype = config.compute_dtype
        self.gate = nnx.Param(normal(rngs, (D, F)), out_sharding=("embed", "mlp"))
        self.up = nnx.Param(normal(rngs, (D, F)), out_sharding=("embed", "mlp"))
        self.down = nnx.Param(normal(rngs, (F, D), layers=config.num_layers), out_sharding=("mlp", "embed"))

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        hidden = ("batch", "length", "mlp")
        gate_BTF = checkpoint_name(matmul("btd,df->btf", x_BTD, self.gate[...], dtype=self.dtype, out=hidden), "matmul")
        up_BTF = checkpoint_name(matmul("btd,df->btf", x_BTD, self.up[...], dtype=self.dtype, out=hidden), "matmul")
        return matmul(
            "btf,fd->btd", jax.nn.silu(gate_BTF) * up_BTF, self.down[...], dtype=self.dtype, out=("batch", "length", None)
        )
