"""Images and sound in the decoder's sequence: their vectors take the places of tokens that are kept free for them.

Axes: B batch, T time, D model, N images or windows of sound of a row, V vectors of a row.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from lm.config import Audio, ModelConfig, Vision
from lm.config.towers import Media
from lm.errors import UserError
from lm.parallel.arrays import AnyArray
from lm.parallel.context import context_ways, slots
from lm.parallel.mesh import reshard, spec

Tower: TypeAlias = Callable[[jax.Array], jax.Array]  # an encoder: of images or windows of sound [R, …] to vectors [R, V, D]


class Vectors(NamedTuple):
    """Vectors that take the places of embeddings, such as those that a serving engine has encoded earlier.

    vectors_BTD: float, already of the decoder's width. there_BT: bool: which tokens get theirs.
    """

    vectors_BTD: AnyArray
    there_BT: AnyArray


MEDIA = ("images", "audio")  # names in a batch of training, in the order of Media


def with_media(
    config: ModelConfig, x_BTD: jax.Array, tokens_BT: jax.Array, towers: tuple[Tower | None, ...], media: Media
) -> jax.Array:
    """Return the embeddings with the vectors of the media in their places. towers: those of vision and audio, or None."""
    sections: tuple[Vision | Audio, ...] = (config.vision, config.audio)
    for name, section, tower, inputs in zip(MEDIA, sections, towers, media):
        if inputs is None:
            continue
        if tower is None:
            raise UserError(f"{name} for a model without an encoder of {name}: set model.vision or model.audio")
        if inputs.shape[2:] != section.shape:
            raise UserError(f"{name} of shape {inputs.shape[2:]}: the model's encoder takes {section.shape}")
        vectors_BVD = of_rows(tower, inputs)
        x_BTD = placed(x_BTD, vectors_BVD, ordinals(tokens_BT == section.token_id))
    return x_BTD


def encoded(model: nnx.Module, name: str, inputs_BN: jax.Array) -> jax.Array:
    """Return the vectors of each row's images ("vision") or windows of sound ("audio"), [B, V, D]."""
    return of_rows(getattr(model, name), inputs_BN)


def with_vectors(x_BTD: jax.Array, vectors: Vectors) -> jax.Array:
    """Return the embeddings with the vectors in their places."""
    return jnp.where(vectors.there_BT[..., None], vectors.vectors_BTD.astype(x_BTD.dtype), x_BTD)


def of_rows(tower: Tower, inputs_BN: jax.Array) -> jax.Array:
    """Return the vectors of each row's images or windows, one after the other, [B, V, D].

    Each device encodes whole images of its own rows; a context axis, which splits sequences, splits the images of a row.
    """
    B, N = inputs_BN.shape[:2]
    more, rest = -N % context_ways(), inputs_BN.ndim - 2
    inputs_BN = jnp.pad(inputs_BN, ((0, 0), (0, more), *((0, 0),) * rest))
    vectors_RVD = tower(_same_parts(inputs_BN, ("batch", "length"), ("rows",), lambda x: x.reshape(-1, *x.shape[2:])))
    n, (_, V, D) = (N + more) // context_ways(), vectors_RVD.shape
    x_BNVD = _same_parts(vectors_RVD, ("rows",), ("batch", "length"), lambda x: x.reshape(-1, n, V, D))
    x_BNVD = reshard(x_BNVD, "batch", None, None, None)
    return lax.reshape(x_BNVD[:, :N], (B, N * V, D), out_sharding=spec("batch", None, None))


def ordinals(chosen_BT: jax.Array) -> jax.Array:
    """Return the number of each chosen token among those of its row, 0, 1, …, and −1 for the other tokens: int32 [B, T]."""
    ways = context_ways()
    chosen_BT = reshard(chosen_BT, "batch", None)
    if ways > 1:  # tokens of devices that split a row are not in the order of the row
        order_T = slots(chosen_BT.shape[1])
        chosen_BT = chosen_BT[:, np.argsort(order_T)]
    numbers_BT = jnp.where(chosen_BT, jnp.cumsum(chosen_BT.astype(jnp.int32), axis=1) - 1, -1)
    return numbers_BT if ways == 1 else numbers_BT[:, order_T]


def placed(x_BTD: jax.Array, vectors_BVD: jax.Array, numbers_BT: jax.Array) -> jax.Array:
    """Return x with vector n of the row in the place of each token whose number n is in 0…V − 1. Nothing leaves its device."""

    def on_device(x_BTD: jax.Array, vectors_BVD: jax.Array, numbers_BT: jax.Array) -> jax.Array:
        V = vectors_BVD.shape[1]
        there_BT1 = ((numbers_BT >= 0) & (numbers_BT < V))[..., None]
        taken_BTD = jnp.take_along_axis(vectors_BVD, jnp.clip(numbers_BT, 0, V - 1)[..., None], axis=1)
        return jnp.where(there_BT1, taken_BTD.astype(x_BTD.dtype), x_BTD)

    where = None if jax.sharding.get_abstract_mesh().empty else jax.typeof(x_BTD).sharding.spec
    if where is None:
        return on_device(x_BTD, vectors_BVD, numbers_BT)
    numbers_BT = jax.sharding.reshard(numbers_BT, jax.sharding.PartitionSpec(*where[:2]))
    specs = (where, spec("batch", None, None), jax.sharding.PartitionSpec(*where[:2]))
    return jax.shard_map(on_device, in_specs=specs, out_specs=where)(x_BTD, vectors_BVD, numbers_BT)


def _same_parts(
    x: jax.Array, before: tuple[str, ...], after: tuple[str, ...], reshape: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """Return `reshape` of what each device holds of x with the partition `before`, as an array with the partition `after`."""
    if jax.sharding.get_abstract_mesh().empty:
        return reshape(x)
    x = reshard(x, *before, *[None] * (x.ndim - len(before)))
    return jax.shard_map(reshape, in_specs=spec(*before), out_specs=spec(*after))(x)
