"""Attention of training on an x86 processor: scores stay in the cache, in both passes (FlashAttention, Dao et al. 2022).

The axes are those of lm/kernels/attention.py. lm/kernels/dense/flash.py has the compiled passes.
"""

import functools
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from lm.kernels.attention import Scoring, Visible
from lm.kernels.dense.large import SMALLEST
from lm.kernels.dense.usable import require, usable
from lm.kernels.saved import saved
from lm.parallel.mesh import reshard

Residuals: TypeAlias = tuple[jax.Array, ...]  # q, k, v, segments, out, log Z


def takes(
    q_BTHK: jax.Array,
    k_BSGK: jax.Array,
    v_BSGV: jax.Array,
    visible: Visible,
    scoring: Scoring,
    sinks_H: jax.Array | None = None,
) -> bool:
    """Return whether `attention` computes this call: of one dtype, large enough, with nothing but segments and a window."""
    if visible.branches is not None or visible.chosen_BTS is not None:
        return False
    if sinks_H is not None or scoring.softcap or scoring.scale <= 0:
        return False
    if not q_BTHK.dtype == k_BSGK.dtype == v_BSGV.dtype or q_BTHK.size * k_BSGK.shape[1] < SMALLEST:
        return False
    return usable("flash", q_BTHK.dtype)


def attention(
    q_BTHK: jax.Array,
    k_BSGK: jax.Array,
    v_BSGV: jax.Array,
    visible: Visible,
    scoring: Scoring,
    sinks_H: jax.Array | None = None,
) -> jax.Array:
    """Compute lm.kernels.ops.attention, [B, T, H, V] in q's dtype. The backward pass takes out and log Z of the forward pass.

    Raises ValueError on other processors, and on a mesh of several devices.
    """
    require("flash", q_BTHK.dtype)
    return _attend(float(scoring.scale), int(scoring.window), q_BTHK, k_BSGK, v_BSGV, visible.segments_BT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(
    scale: float, window: int, q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGV: jax.Array, segments_BT: jax.Array
) -> jax.Array:
    return _forward(scale, window, q_BTHK, k_BSGK, v_BSGV, segments_BT)[0]


def _forward(
    scale: float, window: int, q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGV: jax.Array, segments_BT: jax.Array
) -> tuple[jax.Array, Residuals]:
    B, T, H, _ = q_BTHK.shape
    shapes = jax.ShapeDtypeStruct((B, T, H, v_BSGV.shape[-1]), q_BTHK.dtype), jax.ShapeDtypeStruct((B, H, T), jnp.float32)
    call = jax.ffi.ffi_call("lm_flash", shapes, vmap_method="sequential")
    out_BTHV, logz_BHT = call(
        *map(whole, (q_BTHK, k_BSGK, v_BSGV, segments_BT)), scale=np.float32(scale), window=np.int32(window)
    )
    # Named inside, so that a remat policy can keep both and the backward pass need not run this again.
    out_BTHV, logz_BHT = saved(like(out_BTHV, q_BTHK)), saved(logz_BHT)
    return out_BTHV, (q_BTHK, k_BSGK, v_BSGV, segments_BT, out_BTHV, logz_BHT)


def _backward(scale: float, window: int, kept: Residuals, dout_BTHV: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    q_BTHK, k_BSGK, v_BSGV = kept[:3]
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in kept[:3]]
    call = jax.ffi.ffi_call("lm_flash_gradients", shapes, vmap_method="sequential")
    given = map(whole, (*kept, dout_BTHV.astype(kept[0].dtype)))
    dq, dk, dv = call(*given, scale=np.float32(scale), window=np.int32(window))
    return like(dq, q_BTHK), like(dk, k_BSGK), like(dv, v_BSGV), None


_attend.defvjp(_forward, _backward)


def whole(x: jax.Array) -> jax.Array:
    """Return x with a partition that names no axis: that of the compiled functions' arguments."""
    return reshard(x, *[None] * x.ndim)


def like(x: jax.Array, other: jax.Array) -> jax.Array:
    """Return x with the partition of another array."""
    mesh = jax.sharding.get_abstract_mesh()
    return x if mesh.empty else jax.sharding.reshard(x, jax.typeof(other).sharding.spec)
