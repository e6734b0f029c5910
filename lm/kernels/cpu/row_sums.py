"""Sums of rows whose bits depend on the row alone.

XLA adds up in an order that depends on the number of rows. A served request must not depend on the requests beside it, and
with rounded activations the last bit of a sum soon becomes another token.
"""

import math

import jax
import jax.numpy as jnp

from lm.kernels.native.registered import compiled


def takes(*arguments: object) -> bool:
    """Return whether the sums are compiled here."""
    return compiled("cpu.sums")


def row_sums(x: jax.Array, axes: int = 1) -> jax.Array:
    """Compute lm.kernels.ops.row_sums. Not differentiable."""
    kept = x.shape[: x.ndim - axes]
    rows = x.astype(jnp.float32).reshape(math.prod(kept), math.prod(x.shape[x.ndim - axes :]))
    sums = jax.ffi.ffi_call("lm_row_sums", jax.ShapeDtypeStruct(rows.shape[:1], jnp.float32))(rows)
    return sums.reshape(*kept, *[1] * axes)
