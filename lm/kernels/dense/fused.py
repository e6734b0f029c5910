"""silu(gate)·up and RMSNorm as compiled functions, in one pass over memory each."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from lm.kernels.dense.attention import like, whole
from lm.kernels.dense.usable import require, usable

SMALLEST = 2**15  # numbers; below, the call itself takes as long as XLA
UNITS = 64  # of work, of the gradient of a scale


def takes(x: jax.Array, other: jax.Array, eps: float = 0.0, alone: bool = False) -> bool:
    """Return whether an operation on an array of this kind and size is computed here."""
    return (x.size >= SMALLEST or alone) and usable("rows", jnp.float32 if alone else x.dtype)


@jax.custom_vjp
def silu_gated(gate: jax.Array, up: jax.Array) -> jax.Array:
    """Compute lm.kernels.ops.silu_gated."""
    return _call("lm_gated", 1, gate, up)[0]


silu_gated.defvjp(
    lambda gate, up: (silu_gated(gate, up), (gate, up)), lambda kept, d: tuple(_call("lm_gated_gradients", 2, *kept, d))
)


def rms_norm(x: jax.Array, scale: jax.Array, eps: float, alone: bool = False) -> jax.Array:
    """Compute lm.kernels.ops.rms_norm. Rows that are alone are read as float32, which every processor can."""
    return _normed(x.astype(jnp.float32), scale, eps).astype(x.dtype) if alone else _normed(x, scale, eps)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _normed(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    require("rows", x.dtype)
    rows = _rows(x, scale.ndim)
    y = jax.ffi.ffi_call("lm_rms_norm", jax.ShapeDtypeStruct(rows.shape, x.dtype))(rows, _flat(scale), eps=np.float32(eps))
    return like(y.reshape(x.shape), x)


def _gradients(eps: float, kept: tuple[jax.Array, jax.Array], d: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, scale = kept
    rows = _rows(x, scale.ndim)
    results = (
        jax.ShapeDtypeStruct(rows.shape, x.dtype),
        jax.ShapeDtypeStruct((min(UNITS, len(rows)), rows.shape[1]), jnp.float32),
    )
    call = jax.ffi.ffi_call("lm_rms_norm_gradients", results)
    dx, dscale = call(rows, _rows(d, scale.ndim), _flat(scale), eps=np.float32(eps))
    return like(dx.reshape(x.shape), x), like(jnp.sum(dscale, axis=0).reshape(scale.shape), scale)


_normed.defvjp(lambda x, scale, eps: (_normed(x, scale, eps), (x, scale)), _gradients)


def _call(name: str, results: int, *arrays: jax.Array) -> list[jax.Array]:
    require("rows", arrays[0].dtype)
    rows = [_rows(x, 1) for x in arrays]
    shape = jax.ShapeDtypeStruct(rows[0].shape, rows[0].dtype)
    return [like(y.reshape(arrays[0].shape), arrays[0]) for y in jax.ffi.ffi_call(name, [shape] * results)(*rows)]


def _rows(x: jax.Array, axes: int) -> jax.Array:
    """Return [R, N], with N the product of the last axes."""
    return whole(x).reshape(-1, int(np.prod(x.shape[x.ndim - axes :])))


def _flat(scale: jax.Array) -> jax.Array:
    return whole(scale.astype(jnp.float32)).reshape(-1)
