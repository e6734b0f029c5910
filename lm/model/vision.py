"""A vision transformer whose states become tokens of the decoder.

Axes: R images, each on one device; P patches, D size of their vectors, C channels, V tokens of an image.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from lm.config import ModelConfig
from lm.model.encoder import Projector, encoder_layers, fan_in_std, in_dtype, plain
from lm.model.execution import through_encoder
from lm.model.initializers import normal, parameter
from lm.model.linear import Linear
from lm.model.norms import LayerNorm
from lm.parallel.mesh import reshard, spec

CHANNELS = 3


class VisionTower(nnx.Module):
    """projector(shuffle(ViT(images))), by `config.vision` (lm/config/towers.py)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        vision, D, p = config.vision, config.vision.embed_dim, config.vision.patch_size
        self.config = config
        shape, axes = (p, p, CHANNELS, D), ("replicated", "replicated", "replicated", "embed")
        self.patches = Linear(
            plain(config),
            rngs,
            "vision.patches",
            "rpxyc,xycd->rpd",
            shape,
            axes,
            std=fan_in_std(p * p * CHANNELS),
            bias=vision.patch_bias,
        )
        if vision.class_token:
            self.class_token = parameter(normal(rngs, (D,)), ("replicated",), "vector")
        positions = vision.patches**2 + vision.class_token
        self.positions = parameter(normal(rngs, (positions, D), fan_in_std(D)), ("replicated", "embed"), "embedding")
        if vision.pre_norm:
            self.pre_norm = LayerNorm(D, vision.norm_eps)
        self.layers = encoder_layers(in_dtype(config), "vision", True, rngs)
        self.norm = LayerNorm(D, vision.norm_eps)
        self.projector = Projector(in_dtype(config), "vision", rngs)

    def __call__(self, images_RHWC: jax.Array) -> jax.Array:
        """Return vectors of the decoder's width, [R, V, D] in the compute dtype, row by row of each image.

        images_RHWC: float, normalised as the encoder expects it, of `image_size` pixels on each side.
        """
        vision = self.config.vision
        x_RPD = self.states(images_RHWC)
        return self.projector(shuffled(x_RPD[:, vision.class_token :], vision.patches, vision.shuffle))

    def states(self, images_RHWC: jax.Array) -> jax.Array:
        """Return the encoder's states that are projected, [R, P, D], with that of the class token first if there is one."""
        config, vision = self.config, self.config.vision
        x_RPD = self.patches(patches_of(images_RHWC, vision.patch_size).astype(config.compute_dtype))
        if vision.class_token:
            first_1D = self.class_token[...].astype(x_RPD.dtype)[None, None]
            first_R1D = jnp.broadcast_to(first_1D, (len(x_RPD), 1, vision.embed_dim), out_sharding=spec("rows", None, None))
            x_RPD = jnp.concatenate((first_R1D, x_RPD), axis=1)
        x_RPD = x_RPD + reshard(self.positions[...].astype(x_RPD.dtype), None, None)
        if vision.pre_norm:
            x_RPD = self.pre_norm(x_RPD)
        x_RPD = through_encoder(config, self.layers, x_RPD, vision.used_layers)
        return self.norm(x_RPD) if vision.feature_layer == 0 else x_RPD


def patches_of(images_RHWC: jax.Array, size: int) -> jax.Array:
    """Return the patches of each image, [R, P, size, size, C], row by row. What is left at the right and below is cut off."""
    R, H, W, C = images_RHWC.shape
    rows, columns = H // size, W // size
    x = images_RHWC[:, : rows * size, : columns * size]
    where = spec("rows", *[None] * 5)
    x = lax.reshape(x, (R, rows, size, columns, size, C), out_sharding=where)
    return lax.reshape(jnp.swapaxes(x, 2, 3), (R, rows * columns, size, size, C), out_sharding=spec("rows", *[None] * 4))


def shuffled(x_RPD: jax.Array, side: int, factor: int) -> jax.Array:
    """Return squares of factor × factor neighbouring patches as one vector each, [R, P / factor², D · factor²].

    Pixel shuffle (Shi et al. 2016) from space to depth, as in Idefics3 (Laurençon et al. 2024, §2.2). side: √P.
    """
    if factor == 1:
        return x_RPD
    R, _, D = x_RPD.shape
    small = side // factor
    x = lax.reshape(x_RPD, (R, small, factor, small, factor, D), out_sharding=spec("rows", *[None] * 5))
    return lax.reshape(jnp.swapaxes(x, 2, 3), (R, small**2, D * factor**2), out_sharding=spec("rows", None, None))
