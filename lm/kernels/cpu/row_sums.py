"""Sums and norms of rows whose bits depend on the row alone.

XLA adds up in an order that depends on the number of rows. A served request must not depend on the requests beside it, and
with rounded activations the last bit of a sum soon becomes another token.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

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


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """Compute lm.kernels.ops.rms_norm. Not differentiable."""
    rows = x.astype(jnp.float32).reshape(-1, scale.size)
    call = jax.ffi.ffi_call("lm_rms_norm", jax.ShapeDtypeStruct(rows.shape, jnp.float32))
    return call(rows, scale.astype(jnp.float32).reshape(-1), eps=np.float32(eps)).reshape(x.shape)
