"""Short convolutions of training on an x86 processor: one pass over memory for each direction, with bias and silu.

The axes are those of lm/kernels/recurrence.py. lm/kernels/dense/taps.py has the compiled passes.
"""

import functools
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from lm.kernels.dense.attention import like, whole
from lm.kernels.dense.usable import require, usable
from lm.kernels.recurrence import Flow
from lm.kernels.saved import saved

Residuals: TypeAlias = tuple[jax.Array, ...]  # x, taps, bias, fresh
NEEDS = ("taps", jnp.float32)
SMALLEST = 2**16  # inputs; below, the call itself takes as long as XLA


def takes(
    x_BTC: jax.Array, taps_CW: jax.Array, bias_C: jax.Array | None, tail_BCW: jax.Array | None, flow: Flow, silu: bool = False
) -> bool:
    """Return whether `short_convolution` computes this call: large enough, and with no tokens before it."""
    return tail_BCW is None and x_BTC.size >= SMALLEST and x_BTC.dtype in (jnp.float32, jnp.bfloat16) and usable(*NEEDS)


def short_convolution(
    x_BTC: jax.Array, taps_CW: jax.Array, bias_C: jax.Array | None, tail_BCW: jax.Array | None, flow: Flow, silu: bool = False
) -> tuple[jax.Array, None]:
    """Compute lm.kernels.ops.short_convolution without a tail.

    Raises ValueError on other processors, on a mesh of several devices, and with a tail.
    """
    require(*NEEDS)
    if tail_BCW is not None:
        raise ValueError("lm/kernels/dense/convolution.py begins without a tail")
    bias = jnp.zeros((0,), jnp.float32) if bias_C is None else bias_C
    return _convolve(silu, x_BTC, taps_CW.T, bias, flow.fresh_BT.astype(jnp.int32)), None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolve(silu: bool, *given: jax.Array) -> jax.Array:
    return _forward(silu, *given)[0]


def _forward(silu: bool, *given: jax.Array) -> tuple[jax.Array, Residuals]:
    call = jax.ffi.ffi_call("lm_taps", jax.ShapeDtypeStruct(given[0].shape, given[0].dtype), vmap_method="sequential")
    # Named inside, so that a remat policy can keep it and the backward pass need not run this again.
    return saved(like(call(*map(whole, given), silu=np.int32(silu)), given[0])), given


def _backward(silu: bool, given: Residuals, dy: jax.Array) -> tuple[jax.Array | None, ...]:
    x, taps_WC, bias, _ = given
    (B, _, C), W = x.shape, taps_WC.shape[0]
    shapes = [
        jax.ShapeDtypeStruct(x.shape, x.dtype),
        *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((B, W, C), (B, C))),
    ]
    call = jax.ffi.ffi_call("lm_taps_gradients", shapes, vmap_method="sequential")
    dx, dtaps, dbias = call(*map(whole, (*given, dy)), silu=np.int32(silu))
    return like(dx, x), like(dtaps.sum(0), taps_WC), like(dbias.sum(0), bias) if bias.size else jnp.zeros_like(bias), None


_convolve.defvjp(_forward, _backward)
