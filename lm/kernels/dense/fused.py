"""silu(gate)·up and RMSNorm as compiled functions, in one pass over memory each."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lm.kernels.dense.attention import like, whole
from lm.kernels.dense.usable import require, usable

SMALLEST = 2**13  # numbers; below, the call itself takes as long as XLA
UNITS = 64  # of work, of the gradient of a scale
GATED, GATED_GRADIENTS, NORM, NORM_GRADIENTS = range(4)  # as in lm/kernels/dense/rows.py, which imports numba


def takes(x: jax.Array, other: jax.Array, eps: float = 0.0, alone: bool = False) -> bool:
    """Return whether an operation on an array of this kind and size is computed here."""
    return (x.size >= SMALLEST or alone) and usable("rows", jnp.float32 if alone else x.dtype)


@jax.custom_vjp
def silu_gated(gate: jax.Array, up: jax.Array) -> jax.Array:
    """Compute lm.kernels.ops.silu_gated."""
    return like(_call(GATED, [_rows(gate), _rows(up)], 1)[0].reshape(gate.shape), gate)


def _gated_gradients(kept: tuple[jax.Array, jax.Array], d: jax.Array) -> tuple[jax.Array, ...]:
    return tuple([like(x.reshape(d.shape), d) for x in _call(GATED_GRADIENTS, list(map(_rows, (*kept, d))), 2)])


silu_gated.defvjp(lambda gate, up: (silu_gated(gate, up), (gate, up)), _gated_gradients)


def rms_norm(x: jax.Array, scale: jax.Array, eps: float, alone: bool = False) -> jax.Array:
    """Compute lm.kernels.ops.rms_norm. Rows that are alone are read as float32, which every processor can."""
    return _normed(x.astype(jnp.float32), scale, eps).astype(x.dtype) if alone else _normed(x, scale, eps)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _normed(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    return like(_call(NORM, [_rows(x, scale.ndim), _flat(scale)], 1, eps)[0].reshape(x.shape), x)


def _norm_gradients(eps: float, kept: tuple[jax.Array, jax.Array], d: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, scale = kept
    rows = [_rows(x, scale.ndim), _rows(d, scale.ndim)]
    sums = jax.ShapeDtypeStruct((min(UNITS, len(rows[0])), scale.size), jnp.float32)
    dx, dscale = _call(NORM_GRADIENTS, [*rows, _flat(scale)], 1, eps, sums)
    return like(dx.reshape(x.shape), x), like(jnp.sum(dscale, axis=0).reshape(scale.shape), scale)


_normed.defvjp(lambda x, scale, eps: (_normed(x, scale, eps), (x, scale)), _norm_gradients)


def _call(
    kind: int, arrays: list[jax.Array], results: int, eps: float = 0.0, *others: jax.ShapeDtypeStruct
) -> Sequence[jax.Array]:
    """Return `results` arrays like the first one, and others."""
    require("rows", arrays[0].dtype)
    shapes = [jax.ShapeDtypeStruct(arrays[0].shape, arrays[0].dtype)] * results
    return jax.ffi.ffi_call("lm_rows", [*shapes, *others], vmap_method="sequential")(
        *arrays, eps=np.float32(eps), kind=np.int32(kind)
    )


def _rows(x: jax.Array, axes: int = 1) -> jax.Array:
    """Return [R, N], with N the product of the last axes."""
    return whole(x).reshape(-1, int(np.prod(x.shape[x.ndim - axes :])))


def _flat(scale: jax.Array) -> jax.Array:
    return whole(scale.astype(jnp.float32)).reshape(-1)
