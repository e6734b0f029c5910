"""Recurrences of training on an x86 processor: a chunk's matrices stay in the cache, in both passes.

The axes are those of lm/kernels/recurrence.py. lm/kernels/dense/chunks.py has the compiled passes.
"""

import functools
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from lm.kernels.dense.attention import like, whole
from lm.kernels.dense.large import PAIR, SMALLEST
from lm.kernels.dense.usable import require, usable
from lm.kernels.recurrence import Flow, without_padding
from lm.kernels.saved import saved

Residuals: TypeAlias = tuple[jax.Array, ...]  # q, k, v, decay, fresh, beta
UNITS = 8  # least number of pieces of a call, if there are so many heads: one thread computes each


def takes(
    q_BTGK: jax.Array,
    k_BTGK: jax.Array,
    v_BTGRV: jax.Array,
    decay_BTGR: jax.Array,
    beta_BTGR: jax.Array | None,
    state_BGRKV: jax.Array | None,
    flow: Flow,
    chunk: int = 64,
) -> bool:
    """Return whether `recurrence` computes this call: of one dtype, large enough, and with no state before or after."""
    if state_BGRKV is not None or not q_BTGK.dtype == k_BTGK.dtype == v_BTGRV.dtype:
        return False
    return v_BTGRV.size * k_BTGK.shape[-1] >= SMALLEST and usable("chunks", jnp.float32)


def recurrence(
    q_BTGK: jax.Array,
    k_BTGK: jax.Array,
    v_BTGRV: jax.Array,
    decay_BTGR: jax.Array,
    beta_BTGR: jax.Array | None,
    state_BGRKV: jax.Array | None,
    flow: Flow,
    chunk: int = 64,
) -> tuple[jax.Array, None]:
    """Compute lm.kernels.ops.recurrence without a state. The backward pass goes forward again, and keeps states meanwhile.

    Raises ValueError on other processors, on a mesh of several devices, and with a state.
    """
    require("chunks", jnp.float32)
    if state_BGRKV is not None:
        raise ValueError("lm/kernels/dense/recurrence.py begins without a state")
    k_BTGK, decay_BTGR = without_padding(k_BTGK, decay_BTGR, flow)
    beta = jnp.zeros((0,), jnp.float32) if beta_BTGR is None else beta_BTGR
    size = max(PAIR, 1 << (min(chunk, q_BTGK.shape[1]) - 1).bit_length())
    return _recur(size, q_BTGK, k_BTGK, v_BTGRV, decay_BTGR, flow.fresh_BT.astype(jnp.int32), beta), None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _recur(chunk: int, *given: jax.Array) -> jax.Array:
    return _forward(chunk, *given)[0]


def _attributes(chunk: int, v_BTGRV: jax.Array) -> dict[str, np.int32]:
    B, _, G, R, _ = v_BTGRV.shape
    parts = next(n for n in range(1, R + 1) if R % n == 0 and (B * G * n >= UNITS or n == R))
    return {"chunk": np.int32(chunk), "parts": np.int32(parts)}


def _forward(chunk: int, *given: jax.Array) -> tuple[jax.Array, Residuals]:
    call = jax.ffi.ffi_call("lm_chunks", jax.ShapeDtypeStruct(given[2].shape, given[2].dtype), vmap_method="sequential")
    # Named inside, so that a remat policy can keep it and the backward pass need not run this again.
    return saved(like(call(*map(whole, given), **_attributes(chunk, given[2])), given[2])), given


def _backward(chunk: int, given: Residuals, dy: jax.Array) -> tuple[jax.Array | None, ...]:
    attributes = _attributes(chunk, given[2])
    B, *one = given[0].shape  # q and k get a gradient from each part
    of_key = jax.ShapeDtypeStruct((B, int(attributes["parts"]), *one), given[0].dtype)
    shapes = [of_key, of_key, *(jax.ShapeDtypeStruct(given[n].shape, given[n].dtype) for n in (2, 3, 5))]
    call = jax.ffi.ffi_call("lm_chunks_gradients", shapes, vmap_method="sequential")
    dq, dk, dv, ddecay, dbeta = call(*map(whole, (*given, dy)), **attributes)
    return *map(like, (dq.sum(1), dk.sum(1), dv, ddecay), given), None, like(dbeta, given[5])


_recur.defvjp(_forward, _backward)
