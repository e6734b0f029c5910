"""The model's blueprint as a frozen dataclass; everything the model code reads is named here."""

import dataclasses

import jax.numpy as jnp

from lm.errors import UserError

REMAT = ("none", "matmuls", "full")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A Llama-compatible decoder (Touvron et al. 2023): sizes, numerics, and how its layers are compiled.

    `head_dim` of 0 means embed_dim / num_heads. `remat` names what the backward pass may keep of a layer:
    `none` keeps everything, `matmuls` the bfloat16 outputs of its matrix products, `full` only its input.
    """

    vocab_size: int
    num_layers: int
    embed_dim: int
    num_heads: int
    num_kv_heads: int
    mlp_dim: int
    head_dim: int = 0
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    tie_embeddings: bool = False
    scan_layers: bool = True
    remat: str = "matmuls"
    dtype: str = "bfloat16"  # of the matrix products; parameters, norms, softmax and losses stay float32

    def __post_init__(self):
        for name in ("vocab_size", "num_layers", "embed_dim", "num_heads", "num_kv_heads", "mlp_dim"):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name}={getattr(self, name)} must be at least 1")
        if self.head_dim < 0:
            raise UserError(f"model.head_dim={self.head_dim} must be at least 2, or 0 for embed_dim / num_heads")
        if self.head_dim == 0:
            if self.embed_dim % self.num_heads:
                raise UserError(
                    f"model.num_heads={self.num_heads} does not divide model.embed_dim={self.embed_dim}: set model.head_dim"
                )
            object.__setattr__(self, "head_dim", self.embed_dim // self.num_heads)
        if self.num_heads % self.num_kv_heads:
            raise UserError(f"model.num_kv_heads={self.num_kv_heads} does not divide model.num_heads={self.num_heads}")
        if self.head_dim % 2:
            raise UserError(f"model.head_dim={self.head_dim} must be even: rotary positions turn pairs")
        if self.remat not in REMAT:
            raise UserError(f"model.remat={self.remat!r} is none of {', '.join(REMAT)}")
        if self.dtype not in ("bfloat16", "float32"):
            raise UserError(f"dtype={self.dtype!r} is neither bfloat16 nor float32")

    @property
    def compute_dtype(self):
        return jnp.dtype(self.dtype)


def flops_per_token(config: ModelConfig, num_params: int, sequence_length: int) -> float:
    """Training FLOPs a token: 6·N for the matrix products, plus attention counted causally (half).

    N counts every parameter but the input embedding, which is a look-up (a tied one is also the head and counts).
    Attention is 2 products of 2·T·H·K FLOPs a token and layer, halved by causality, times 3 for the backward pass:
    6·L·T·H·K.
    """
    matmul_params = num_params - (0 if config.tie_embeddings else config.vocab_size * config.embed_dim)
    attention = 6 * config.num_layers * sequence_length * config.num_heads * config.head_dim
    return 6 * matmul_params + attention
