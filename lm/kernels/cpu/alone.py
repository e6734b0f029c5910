"""Operations of a model that is trained, with the values of the engine that samples from it, to the bit.

Forward they call the compiled kernels of the engine, whose bits of a row depend on the row alone, with weights that are packed
on the spot. Backward they are the ordinary operations of training. `rows_alone` (lm/kernels/ops.py) asks for them.

Axes as in lm/kernels/ops.py; M rows, K inputs, N outputs of a product.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from lm.kernels import matmul as ordinary
from lm.kernels import ops
from lm.kernels.attention import Scoring, Visible
from lm.kernels.cpu import packed
from lm.kernels.cpu.pages import Pages, Places
from lm.kernels.dense.attention import whole
from lm.kernels.native.registered import compiled
from lm.kernels.ops import rounded_weights
from lm.parallel.mesh import reshard

PAGE = 16  # tokens


def takes(*arguments: object, **options: object) -> bool:
    """Return whether the engine's kernels are compiled here, and compute this call: not the attention to chosen keys."""
    chosen = any(isinstance(x, Visible) and x.chosen_BTS is not None for x in arguments)
    return not chosen and compiled("cpu.products") and compiled("cpu.attention")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3, 4, 5))
def matmul(
    equation: str, x: jax.Array, w: jax.Array, dtype: DTypeLike, out: tuple[str | None, ...], precision: str = "none"
) -> jax.Array:
    """Compute lm.kernels.ops.matmul for a weight whose first axes are the inputs, rounded to `rounded_weights`."""
    x_axes, w_axes = equation.split("->")[0].split(",")
    inputs = sum(axis in x_axes for axis in w_axes)
    w_KN = whole(w).reshape(math.prod(w.shape[:inputs]), -1)
    held = dataclasses.replace(packed.pack(w_KN, 8 * jnp.dtype(rounded_weights()).itemsize), shape=w.shape[inputs:])
    return reshard(packed.matmul(equation, whole(x), held, dtype=dtype), *out)


def _matmul_forward(equation: str, x: jax.Array, w: jax.Array, *how: Any) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    return matmul(equation, x, w, *how), (x, w, jnp.zeros((), rounded_weights()))


def _matmul_gradients(
    equation: str, dtype: DTypeLike, out: tuple[str | None, ...], precision: str, kept: tuple[jax.Array, ...], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, w, like = kept  # products are those of training in the dtype of the weights
    return ordinary.gradients(equation, like.dtype, out, precision, (x, w), dy)


matmul.defvjp(_matmul_forward, _matmul_gradients)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, visible: Visible, scoring: Scoring, sinks: jax.Array | None = None
) -> jax.Array:
    """Compute lm.kernels.ops.attention for rows of one segment and padding after it, whose results are 0."""
    B, T, H, K = q.shape

    def pages(x: jax.Array) -> Pages:
        x = jnp.pad(whole(x), ((0, 0), (0, -T % PAGE), (0, 0), (0, 0)))
        return Pages(x.reshape(-1, PAGE, *x.shape[2:]))

    row_BT, place_BT = jnp.indices((B, T), dtype=jnp.int32)
    row_BT = jnp.where(whole(visible.segments_BT) > 0, row_BT, -1)
    tables_RP = jnp.arange(B * -(-T // PAGE), dtype=jnp.int32).reshape(B, -1)
    places = Places(tables_RP, row_BT.reshape(-1), place_BT.reshape(-1))
    y = ops.paged_attention(whole(q).reshape(B * T, H, K), pages(k), pages(v), places, scoring, sinks)
    return reshard(y.reshape(B, T, H, -1).astype(q.dtype), "batch", "length", "heads", None)


def _attention_gradients(scoring: Scoring, kept: tuple[Any, ...], dy: jax.Array) -> tuple[jax.Array | None, ...]:
    q, k, v, visible, sinks = kept
    dq, dk, dv, dsinks = jax.vjp(lambda q, k, v, sinks: ops.attention(q, k, v, visible, scoring, sinks), q, k, v, sinks)[1](dy)
    return dq, dk, dv, None, dsinks


attention.defvjp(
    lambda q, k, v, visible, scoring, sinks: (attention(q, k, v, visible, scoring, sinks), (q, k, v, visible, sinks)),
    _attention_gradients,
)
