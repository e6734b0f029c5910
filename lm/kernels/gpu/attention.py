"""Attention on NVIDIA GPUs: cuDNN's kernel, or a Triton kernel where rows hold several segments. Axes as in attention.py.

Both are FlashAttention (Dao et al. 2022): no score matrix is stored, forward or backward. cuDNN is the faster one, and knows
one segment a row. `gpu_kernel` says which one computes a case; attention.py computes the others.
"""

import functools
import importlib
import warnings

import jax
import jax.numpy as jnp

from lm.kernels.saved import saved
from lm.parallel.mesh import free_axes, spec

BLOCK = 128  # of queries and of keys; the Triton kernel takes whole blocks


def gpu_kernel(
    dtype,
    length: int,
    key_size: int,
    value_size: int,
    *,
    packed: bool,
    window: int = 0,
    softcap: float = 0.0,
    sinks: bool = False,
    branches: bool = False,
) -> str | None:
    """Return "cudnn", "triton", or None if neither kernel computes this case.

    packed: rows may hold several segments; otherwise each is one segment from its first slot, with padding only behind it.
    """
    if softcap or sinks or branches or key_size != value_size or jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
        return None
    if not packed:
        return "cudnn" if key_size % 8 == 0 and key_size <= 128 else None
    return "triton" if not window and length % BLOCK == 0 and key_size <= 128 else None


def gpu_attention(
    kernel: str, q_BTHK, k_BSGK, v_BSGV, segments_BT, *, scale: float, window: int = 0, interpret: bool = False
) -> jax.Array:
    """Return what `attention` returns, by the kernel that `gpu_kernel` named. T = S, and query t is in slot t.

    Every device computes its own rows and heads. With remat="matmuls" the backward pass runs cuDNN's forward kernel again, as
    its residuals have no name; the Triton kernel's are kept. interpret: run the Triton kernel on a CPU, to test it.
    """
    if kernel == "cudnn":
        behind = (window - 1, 0) if window else None
        compute = functools.partial(
            jax.nn.dot_product_attention, scale=scale, is_causal=True, local_window_size=behind, implementation="cudnn"
        )
        return _by_device(lambda q, k, v, _: saved(compute(q, k, v)), q_BTHK, k_BSGK, v_BSGV, segments_BT)
    triton = functools.partial(_triton, scale, interpret)
    return _by_device(triton, q_BTHK, k_BSGK, v_BSGV, segments_BT)


def _by_device(compute, q_BTHK, k_BSGK, v_BSGV, segments_BT):
    if spec() is None:
        return compute(q_BTHK, k_BSGK, v_BSGV, segments_BT)
    q, kv, rows = spec("batch", None, "heads", None), spec("batch", None, "kv_heads", None), spec("batch", None)
    return jax.shard_map(compute, in_specs=(q, kv, kv, rows), out_specs=q, check_vma=False, axis_names=free_axes())(
        q_BTHK, k_BSGK, v_BSGV, segments_BT
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _triton(scale, interpret, q_BTHK, k_BSGK, v_BSGK, segments_BT):
    """Compute attention with JAX's Triton kernel. It has one key head a query head, so those of a group are repeated."""
    return _forward(scale, interpret, q_BTHK, k_BSGK, v_BSGK, segments_BT)[0]


def _forward(scale, interpret, q_BTHK, k_BSGK, v_BSGK, segments_BT):
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


def _backward(scale, interpret, residuals, dout_BTHK):
    q_BTHK, k_BSGK, v_BSGK, segments_BT, out, lse = residuals
    flash, G = _flash(), k_BSGK.shape[2]
    arguments = scale, True, flash.BlockSizes.get_default(), "triton", None, 2, None, interpret, False, False
    kept = (q_BTHK, *_repeated(q_BTHK, k_BSGK, v_BSGK), segments_BT, out, lse)
    dq, dk, dv, _ = flash._mha_backward(*arguments, kept, dout_BTHK.astype(out.dtype))

    def summed(x_BSHK, like):
        B, S, H, K = x_BSHK.shape
        return jnp.sum(x_BSHK.reshape(B, S, G, H // G, K), axis=3, dtype=jnp.float32).astype(like.dtype)

    return dq, summed(dk, k_BSGK), summed(dv, v_BSGK), None


_triton.defvjp(_forward, _backward)


def _repeated(q_BTHK, *kv_BSGK):
    times = q_BTHK.shape[2] // kv_BSGK[0].shape[2]
    return [jnp.repeat(x, times, axis=2) for x in kv_BSGK]


@functools.cache
def _flash():
    """Return JAX's module, which loads Triton's compiler and, from 0.11.2 on, warns that tokamax will replace it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return importlib.import_module("jax.experimental.pallas.ops.gpu.attention")
