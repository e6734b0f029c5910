"""Rows of an embedding table by token id, on any mesh.

A device holds some columns of the table (fsdp) and some rows (tensor). Gathering the table would cost V·D numbers in every
slice of a batch. Here the ids are gathered instead: each device reads its own columns for all tokens, and sends each device
the columns of its tokens (all-to-all). The gradient goes the same way back, so it is added up once, where the table lies.

Axes: B batch, T time, V vocabulary, D model.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from lm.parallel.context import scattered_rows
from lm.parallel.mesh import embed_axes, reshard, spec, spec_of, ways


def embedding(table_VD: jax.Array, tokens_BT: jax.Array, dtype: DTypeLike, axis: str = "length") -> jax.Array:
    """Compute lm.kernels.ops.embedding."""
    if spec_of(table_VD) is None:
        return table_VD[tokens_BT].astype(dtype)
    if ways("vocab") == ways("embed") == 1:
        return table_VD.at[tokens_BT].get(out_sharding=spec("batch", "length", None)).astype(dtype)
    inner = functools.partial(_on_device, dtype=dtype, columns=embed_axes(), scatter=axis == "sequence")
    where = spec("vocab", "embed")
    return jax.shard_map(inner, in_specs=(where, spec("batch", "length")), out_specs=spec("batch", axis, None))(
        reshard(table_VD, "vocab", "embed"), reshard(tokens_BT, "batch", "length")
    )


def _on_device(
    table_VD: jax.Array, tokens_BT: jax.Array, *, dtype: DTypeLike, columns: str | tuple[str, ...] | None, scatter: bool
) -> jax.Array:
    tokens_BT = lax.all_gather(tokens_BT, columns, tiled=True)
    places_BT = tokens_BT - lax.axis_index("tensor") * table_VD.shape[0]
    mine_BT1 = ((places_BT >= 0) & (places_BT < table_VD.shape[0]))[..., None]
    x_BTD = jnp.where(mine_BT1, table_VD[jnp.clip(places_BT, 0, table_VD.shape[0] - 1)], 0).astype(dtype)
    x_BTD = lax.all_to_all(x_BTD, columns, 0, 2, tiled=True)
    return scattered_rows(x_BTD) if scatter else lax.psum(x_BTD, "tensor")
