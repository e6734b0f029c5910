"""Operations of a model that is trained, with the values of the engine that samples from it, to the bit.

Forward they call the compiled kernels of the engine, whose bits of a row depend on the row alone, with weights that are packed
on the spot. Backward they are the ordinary operations of training. `rows_alone` (lm/kernels/alone.py) asks for them.

Axes as in lm/kernels/ops.py; M rows, K inputs, N outputs of a product.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from lm.kernels import matmul as ordinary
from lm.kernels import ops
from lm.kernels.alone import rounded_weights
from lm.kernels.attention import Scoring, Visible
from lm.kernels.cpu import packed
from lm.kernels.cpu.pages import Pages, Places
from lm.kernels.dense.attention import whole
from lm.kernels.native.registered import compiled
from lm.parallel.mesh import reshard

PAGE = 16  # tokens


def takes(*arguments: object, **options: object) -> bool:
    """Return whether the engine's kernels are compiled here."""
    return compiled("cpu.products") and compiled("cpu.attention")


def matmul(
    equation: str, x: jax.Array, w: jax.Array, *, dtype: jnp.dtype, out: tuple[str | None, ...], precision: str = "none"
) -> jax.Array:
    """Compute lm.kernels.ops.matmul for a weight whose first axes are the inputs, rounded to `rounded_weights`."""
    return _matmul(equation, x, w, dtype, out, rounded_weights())


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3, 4, 5))
def _matmul(
    equation: str, x: jax.Array, w: jax.Array, dtype: jnp.dtype, out: tuple[str | None, ...], weights: str
) -> jax.Array:
    x_axes, w_axes = equation.split("->")[0].split(",")
    inputs = sum(axis in x_axes for axis in w_axes)
    w_KN = whole(w).reshape(math.prod(w.shape[:inputs]), -1)
    held = dataclasses.replace(packed.pack_rounded(w_KN, weights), shape=w.shape[inputs:])
    return reshard(packed.matmul(equation, whole(x), held, dtype=dtype), *out)


def _matmul_gradients(
    equation: str, dtype: jnp.dtype, out: tuple[str | None, ...], weights: str, kept: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return ordinary.gradients(equation, jnp.dtype(weights), out, "none", kept, dy)


_matmul.defvjp(lambda equation, x, w, *how: (_matmul(equation, x, w, *how), (x, w)), _matmul_gradients)


def attention(
    q_BTHK: jax.Array,
    k_BSGK: jax.Array,
    v_BSGV: jax.Array,
    visible: Visible,
    scoring: Scoring,
    sinks_H: jax.Array | None = None,
) -> jax.Array:
    """Compute lm.kernels.ops.attention for rows of one segment and padding after it, whose results are 0."""
    return _attend(scoring, q_BTHK, k_BSGK, v_BSGV, visible, sinks_H)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    scoring: Scoring, q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGV: jax.Array, visible: Visible, sinks_H: jax.Array | None
) -> jax.Array:
    B, T, H, K = q_BTHK.shape

    def pages(x: jax.Array) -> Pages:
        x = jnp.pad(whole(x).astype(jnp.float32), ((0, 0), (0, -T % PAGE), (0, 0), (0, 0)))
        return Pages(x.reshape(-1, PAGE, *x.shape[2:]))

    row_BT, place_BT = jnp.indices((B, T), dtype=jnp.int32)
    row_BT = jnp.where(whole(visible.segments_BT) > 0, row_BT, -1)
    tables_RP = jnp.arange(B * -(-T // PAGE), dtype=jnp.int32).reshape(B, -1)
    places = Places(tables_RP, row_BT.reshape(-1), place_BT.reshape(-1))
    y = ops.paged_attention(whole(q_BTHK).reshape(B * T, H, K), pages(k_BSGK), pages(v_BSGV), places, scoring, sinks_H)
    return reshard(y.reshape(B, T, H, -1).astype(q_BTHK.dtype), "batch", "length", "heads", None)


def _attend_forward(scoring: Scoring, *given):
    return _attend(scoring, *given), given


def _attend_gradients(scoring: Scoring, given, dy: jax.Array):
    q, k, v, visible, sinks_H = given
    of_floats = jax.vjp(lambda q, k, v, sinks_H: ops.attention(q, k, v, visible, scoring, sinks_H), q, k, v, sinks_H)[1](dy)
    return *of_floats[:3], None, of_floats[3]


_attend.defvjp(_attend_forward, _attend_gradients)
