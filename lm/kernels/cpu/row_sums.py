"""Sums of rows whose bits depend on the row alone.

XLA adds up in an order that depends on the number of rows. A served request must not depend on the requests beside it, and
with rounded activations the last bit of a sum soon becomes another token.
"""

import jax
import jax.numpy as jnp

from lm.kernels.dense.attention import like, whole
from lm.kernels.native.registered import compiled


def takes(*arguments: object) -> bool:
    """Return whether the sums are compiled here."""
    return compiled("cpu.sums")


@jax.custom_jvp
def row_sums(x: jax.Array) -> jax.Array:
    """Compute lm.kernels.ops.row_sums."""
    rows = whole(x).astype(jnp.float32).reshape(-1, x.shape[-1])
    sums = jax.ffi.ffi_call("lm_row_sums", jax.ShapeDtypeStruct(rows.shape[:1], jnp.float32))(rows)
    return like(sums.reshape(*x.shape[:-1], 1), x)


@row_sums.defjvp
def _derivative(x: tuple[jax.Array], dx: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    return row_sums(*x), jnp.sum(dx[0].astype(jnp.float32), axis=-1, keepdims=True)


def row_logprobs(logits_SV: jax.Array, token_S: jax.Array, divisor_S: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Compute lm.kernels.ops.row_logprobs. Not differentiable."""
    of_rows = jax.ShapeDtypeStruct(logits_SV.shape[:1], jnp.float32)
    logp_S, logz_S = jax.ffi.ffi_call("lm_row_logprobs", (of_rows, of_rows))(logits_SV, token_S.astype(jnp.int32), divisor_S)
    return logp_S, logz_S
