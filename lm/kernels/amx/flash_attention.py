"""Attention of training on a processor with AMX: scores stay in the cache, in both passes (FlashAttention, Dao et al. 2022).

The axes are those of lm/kernels/attention.py. lm/kernels/amx/flash.py has the compiled passes.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from lm.kernels.amx.large import SMALLEST
from lm.kernels.amx.usable import require, tiled
from lm.kernels.saved import saved
from lm.parallel.mesh import platform, reshard


def computes(q_BTHK, k_BSGK, v_BSGV, *, scale: float) -> bool:
    """Return whether `flash_attention` computes attention of these arrays."""
    if platform() != "cpu" or scale <= 0 or any(x.dtype != jnp.bfloat16 for x in (q_BTHK, k_BSGK, v_BSGV)):
        return False
    return q_BTHK.size * k_BSGK.shape[1] >= SMALLEST and tiled("flash")


def flash_attention(q_BTHK, k_BSGK, v_BSGV, segments_BT, *, scale: float, window: int = 0) -> jax.Array:
    """Return causal attention inside segments, [B, T, H, V] bfloat16; T = S. Its plain twin is `attention_reference`.

    segments_BT: int32. scale, window: as in `attention`. The backward pass takes out and log Z of the forward pass.
    Raises ValueError without AMX, and on a mesh of several devices.
    """
    require("flash")
    return _attend(float(scale), int(window), q_BTHK, k_BSGK, v_BSGV, segments_BT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(scale, window, q_BTHK, k_BSGK, v_BSGV, segments_BT):
    return _forward(scale, window, q_BTHK, k_BSGK, v_BSGV, segments_BT)[0]


def _forward(scale, window, q_BTHK, k_BSGK, v_BSGV, segments_BT):
    B, T, H, _ = q_BTHK.shape
    shapes = jax.ShapeDtypeStruct((B, T, H, v_BSGV.shape[-1]), jnp.bfloat16), jax.ShapeDtypeStruct((B, H, T), jnp.float32)
    call = jax.ffi.ffi_call("lm_flash", shapes, vmap_method="sequential")
    out_BTHV, logz_BHT = call(
        *map(_whole, (q_BTHK, k_BSGK, v_BSGV, segments_BT)), scale=np.float32(scale), window=np.int32(window)
    )
    # Named inside, so that a remat policy can keep both and the backward pass need not run this again.
    out_BTHV, logz_BHT = saved(_like(out_BTHV, q_BTHK)), saved(logz_BHT)
    return out_BTHV, (q_BTHK, k_BSGK, v_BSGV, segments_BT, out_BTHV, logz_BHT)


def _backward(scale, window, kept, dout_BTHV):
    q_BTHK, k_BSGK, v_BSGV = kept[:3]
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in kept[:3]]
    call = jax.ffi.ffi_call("lm_flash_gradients", shapes, vmap_method="sequential")
    given = map(_whole, (*kept, dout_BTHV.astype(jnp.bfloat16)))
    dq, dk, dv = call(*given, scale=np.float32(scale), window=np.int32(window))
    return _like(dq, q_BTHK), _like(dk, k_BSGK), _like(dv, v_BSGV), None


_attend.defvjp(_forward, _backward)


def _whole(x):
    """Return x with a partition that names no axis: that of the compiled functions' arguments."""
    return reshard(x, *[None] * x.ndim)


def _like(x, other):
    """Return x with the partition of another array."""
    mesh = jax.sharding.get_abstract_mesh()
    return x if mesh.empty else jax.sharding.reshard(x, jax.typeof(other).sharding.spec)
