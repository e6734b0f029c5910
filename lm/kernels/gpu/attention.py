"""Attention on NVIDIA GPUs by JAX's Triton kernel, which knows segments. Axes as in attention.py.

It is FlashAttention (Dao et al. 2022): no score matrix is stored, forward or backward.
"""

import functools
import importlib
import warnings
from types import ModuleType

import jax
import jax.numpy as jnp

from lm.kernels.attention import Scoring, Visible
from lm.kernels.saved import saved
from lm.parallel.mesh import free_axes, spec

BLOCK = 128  # of queries and of keys; the kernel takes whole blocks


def takes(
    q_BTHK: jax.Array,
    k_BSGK: jax.Array,
    v_BSGV: jax.Array,
    visible: Visible,
    scoring: Scoring,
    sinks_H: jax.Array | None = None,
) -> bool:
    """Return whether the kernel computes this call: 16-bit floats in whole blocks, with nothing but segments."""
    key_size, value_size = q_BTHK.shape[-1], v_BSGV.shape[-1]
    if visible.branches is not None or visible.chosen_BTS is not None:
        return False
    if sinks_H is not None or scoring.window or scoring.softcap or key_size != value_size:
        return False
    return q_BTHK.dtype in (jnp.bfloat16, jnp.float16) and q_BTHK.shape[1] % BLOCK == 0 and key_size <= 128


def attention(
    q_BTHK: jax.Array,
    k_BSGK: jax.Array,
    v_BSGV: jax.Array,
    visible: Visible,
    scoring: Scoring,
    sinks_H: jax.Array | None = None,
    *,
    interpret: bool = False,
) -> jax.Array:
    """Compute lm.kernels.ops.attention, in a case that `takes` allows. Every device computes its own rows and heads.

    interpret: run the kernel on a CPU, to test it.
    """
    segments_BT, compute = visible.segments_BT, functools.partial(_triton, scoring.scale, interpret)
    if spec() is None:
        return compute(q_BTHK, k_BSGK, v_BSGV, segments_BT)
    q, kv, rows = spec("batch", None, "heads", None), spec("batch", None, "kv_heads", None), spec("batch", None)
    return jax.shard_map(compute, in_specs=(q, kv, kv, rows), out_specs=q, check_vma=False, axis_names=free_axes())(
        q_BTHK, k_BSGK, v_BSGV, segments_BT
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _triton(
    scale: float, interpret: bool, q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, segments_BT: jax.Array
) -> jax.Array:
    """Compute attention with JAX's Triton kernel. It has one key head a query head, so those of a group are repeated."""
    return _forward(scale, interpret, q_BTHK, k_BSGK, v_BSGK, segments_BT)[0]


def _forward(
    scale: float, interpret: bool, q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, segments_BT: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    out, lse = _flash().mha(
        q_BTHK,
        *_repeated(q_BTHK, k_BSGK, v_BSGK),
        segments_BT,
        sm_scale=scale,
        causal=True,
        interpret=interpret,
        return_residuals=True,
    )
    # Named inside, so that a remat policy can keep both and the backward pass need not run this again.
    out, lse = saved(out), saved(lse)
    return out, (q_BTHK, k_BSGK, v_BSGK, segments_BT, out, lse)


def _backward(
    scale: float, interpret: bool, residuals: tuple[jax.Array, ...], dout_BTHK: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    q_BTHK, k_BSGK, v_BSGK, segments_BT, out, lse = residuals
    flash, G = _flash(), k_BSGK.shape[2]
    arguments = scale, True, flash.BlockSizes.get_default(), "triton", None, 2, None, interpret, False, False
    kept = (q_BTHK, *_repeated(q_BTHK, k_BSGK, v_BSGK), segments_BT, out, lse)
    dq, dk, dv, _ = flash._mha_backward(*arguments, kept, dout_BTHK.astype(out.dtype))

    def summed(x_BSHK: jax.Array, like: jax.Array) -> jax.Array:
        B, S, H, K = x_BSHK.shape
        return jnp.sum(x_BSHK.reshape(B, S, G, H // G, K), axis=3, dtype=jnp.float32).astype(like.dtype)

    return dq, summed(dk, k_BSGK), summed(dv, v_BSGK), None


_triton.defvjp(_forward, _backward)


def _repeated(q_BTHK: jax.Array, *kv_BSGK: jax.Array) -> list[jax.Array]:
    times = q_BTHK.shape[2] // kv_BSGK[0].shape[2]
    return [jnp.repeat(x, times, axis=2) for x in kv_BSGK]


@functools.cache
def _flash() -> ModuleType:
    """Return JAX's module, which loads Triton's compiler and, from 0.11.2 on, warns that tokamax will replace it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return importlib.import_module("jax.experimental.pallas.ops.gpu.attention")
