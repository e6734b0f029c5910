"""Sums of rows whose bits depend on the row alone.

XLA adds up in an order that depends on the number of rows. A served request must not depend on the requests beside it, and
with rounded activations the last bit of a sum soon becomes another token.
"""

import math

import jax
import jax.numpy as jnp

from lm.kernels.native.registered import compiled


def row_sums(x: jax.Array, axes: int = 1) -> jax.Array:
    """Return the float32 sums of x over its last axes, which stay with length 1. Not differentiable on a CPU."""
    if not compiled("cpu.sums"):
        return row_sums_reference(x, axes)
    kept = x.shape[: x.ndim - axes]
    rows = x.astype(jnp.float32).reshape(math.prod(kept), math.prod(x.shape[x.ndim - axes :]))
    sums = jax.ffi.ffi_call("lm_row_sums", jax.ShapeDtypeStruct(rows.shape[:1], jnp.float32))(rows)
    return sums.reshape(*kept, *[1] * axes)


def row_sums_reference(x: jax.Array, axes: int = 1) -> jax.Array:
    """Plain twin of `row_sums`. Its bits may depend on the number of rows."""
    return jnp.sum(x.astype(jnp.float32), axis=tuple(range(-axes, 0)), keepdims=True)
