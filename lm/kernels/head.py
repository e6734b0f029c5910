"""The linear head over the vocabulary: logits, and losses of logits that never exist for a whole batch.

A loss that is a sum over positions can compute its gradient in the forward pass: each chunk's right after its logits. The
backward pass only scales it by the cotangent. That takes one product for the logits and two for the gradients, none repeated
(the idea of Liger Kernel's fused linear cross-entropy, Hsu et al. 2024).
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.typing import DTypeLike

from lm.kernels.chunks import joined, split
from lm.kernels.matmul import gathered, partial_spec, reduced, spec_of
from lm.kernels.ops import product
from lm.parallel.arrays import PyTree
from lm.parallel.mesh import reshard, spec

HeadGradients: TypeAlias = tuple[jax.Array, jax.Array | None]  # dx [B, T, D]; dhead [V, D], None for a frozen head
ChunkLoss: TypeAlias = Callable[..., tuple[PyTree, jax.Array]]  # see `head_gradients`
Body: TypeAlias = Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]  # of a lax.scan


class Logits(NamedTuple):
    """How the logits of a head are computed.

    dtype: of the operands. softcap: see `softcapped`. rounded: dtype that logits are rounded to before the cap.
    temperature: divides the capped logits; only losses that say so know it.
    part: what is computed at once: time steps of a chunk (chunks.py), or rows of a block of the vocabulary (vocabulary.py).
    """

    dtype: DTypeLike
    softcap: float = 0.0
    part: int = 0
    rounded: DTypeLike = jnp.float32
    temperature: float = 1.0


def softcapped(scores: jax.Array, cap: float) -> jax.Array:
    """Return cap·tanh(scores / cap), or the scores themselves if the cap is 0 (Gemma 2, 2024)."""
    return cap * jnp.tanh(scores / cap) if cap else scores


def softcap_slope(capped: jax.Array, cap: float) -> jax.Array:
    """Return the derivative of `softcapped` from its results: 1 − (capped / cap)²."""
    return 1 - jnp.square(capped / cap)


def head_logits(x_BTD: jax.Array, head_VD: jax.Array, softcap: float, dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Return float32 logits [B, T, V] of hidden states and a gathered head of one dtype, rounded to `dtype` before the cap."""
    logits = product("btd,vd->btv", x_BTD, head_VD, spec("rows", None, "vocab"))
    return softcapped(logits.astype(dtype).astype(jnp.float32), softcap)


def target_mask(logits_BTV: jax.Array, targets_BT: jax.Array) -> jax.Array:
    """Return bool [B, T, V]: where the vocabulary id is the target. It may be split over the vocabulary, unlike a gather."""
    ids = lax.broadcasted_iota(jnp.int32, logits_BTV.shape, 2, out_sharding=spec("rows", None, "vocab"))
    return ids == targets_BT[..., None]


def exponentials(logits_BTV: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Return the largest logit [B, T], the logits below it [B, T, V], their exponentials, and the sum of these [B, T]."""
    top = jnp.max(logits_BTV, axis=-1)
    below = logits_BTV - top[..., None]
    e = jnp.exp(below)
    return top, below, e, jnp.sum(e, axis=-1)


def head_gradients(
    loss: ChunkLoss,
    how: Logits,
    x_BTD: jax.Array,
    head_VD: jax.Array,
    fixed: Sequence[jax.Array],
    arrays: Sequence[jax.Array],
    learns: bool = True,
    used_BT: jax.Array | None = None,
) -> tuple[PyTree, jax.Array, jax.Array | None]:
    """Return a loss's results stacked over chunks, and its gradients: dx [B, T, D] in x's dtype, dhead float32 [V, D].

    loss(logits, *arrays, *fixed) -> (results, d loss / d logits) of one chunk: logits float32 [B, chunk, V] after the cap.
    arrays: [B, T, …], split like x. fixed: given whole to each chunk.
    learns: whether the head has a gradient; if not, dhead is None and costs nothing.
    used_BT: bool; a chunk without any used position is skipped, and its results and gradients are 0. None: skip nothing.
    """
    head, T, where = gathered(head_VD.astype(how.dtype)), x_BTD.shape[1], spec_of(head_VD)

    def body(dhead: jax.Array | None, inputs: tuple[jax.Array, ...]) -> tuple[jax.Array | None, tuple[PyTree, jax.Array]]:
        x, *arrays = inputs
        logits = head_logits(x, head, how.softcap, how.rounded)
        results, dlogits = loss(logits, *arrays, *fixed)
        if how.softcap:
            dlogits = dlogits * softcap_slope(logits, how.softcap)
        dlogits = dlogits.astype(how.dtype)
        dx = product("btv,vd->btd", dlogits, head, spec("rows", None, None)).astype(how.dtype)
        return None if dhead is None else dhead + product("btv,btd->vd", dlogits, x, partial_spec(where)), (results, dx)

    nothing = jnp.zeros(head_VD.shape, jnp.float32, out_sharding=partial_spec(where)) if learns else None
    chunks = split(how.part, x_BTD.astype(how.dtype), *arrays)
    dhead, (results, dx) = lax.scan(*skipping(body, nothing, chunks, used_BT, how.part))
    return results, joined(dx, T).astype(x_BTD.dtype), reduced(dhead, where) if learns else None


def skipping(
    body: Body, carry: PyTree, chunks: tuple[jax.Array, ...], used_BT: jax.Array | None, chunk: int
) -> tuple[Body, PyTree, PyTree]:
    """Return the arguments of a lax.scan that runs body(carry, chunk) -> (carry, results) on the used chunks only.

    The results of the others are 0.
    """
    if used_BT is None:
        return body, carry, chunks
    # Computed before the loop, which should send nothing between devices.
    used_N = reshard(jnp.any(split(chunk, used_BT)[0], axis=(1, 2)), None)

    def some(carry: PyTree, inputs: tuple[jax.Array, tuple[jax.Array, ...]]) -> tuple[PyTree, PyTree]:
        used, arrays = inputs
        _, shapes = jax.eval_shape(body, carry, arrays)
        return lax.cond(used, body, lambda carry, _: (carry, zeros(shapes)), carry, arrays)

    return some, carry, (used_N, chunks)


def zeros(shapes: PyTree) -> PyTree:
    """Return zeros of these shapes, dtypes and shardings."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype, out_sharding=x.sharding and x.sharding.spec), shapes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def head_loss(
    loss: ChunkLoss,
    how: Logits,
    x_BTD: jax.Array,
    head_VD: jax.Array,
    fixed: Sequence[jax.Array],
    arrays: Sequence[jax.Array],
    used_BT: jax.Array | None = None,
) -> PyTree:
    """Return the float32 sums over all positions; only the first has a gradient, with respect to x and head.

    loss: as in `head_gradients`; its results are a tuple of float32 sums per row, [B]. used_BT: as in `head_gradients`.
    """
    head = gathered(head_VD.astype(how.dtype))

    def sums(_: None, inputs: tuple[jax.Array, ...]) -> tuple[None, PyTree]:
        x, *arrays = inputs
        return None, loss(head_logits(x, head, how.softcap), *arrays, *fixed)[0]

    chunks = split(how.part, x_BTD.astype(how.dtype), *arrays)
    return jax.tree.map(jnp.sum, lax.scan(*skipping(sums, None, chunks, used_BT, how.part))[1])


def _forward(loss: ChunkLoss, how: Logits, *arguments: PyTree) -> tuple[PyTree, HeadGradients]:
    # A frozen head, as that of a model with adapters, gets no gradient.
    learns = arguments[1].perturbed
    x_BTD, head_VD, fixed, arrays, used_BT = jax.tree.map(lambda argument: argument.value, arguments)
    sums, dx_BTD, dhead_VD = head_gradients(loss, how, x_BTD, head_VD, fixed, arrays, learns, used_BT)
    return jax.tree.map(jnp.sum, sums), (dx_BTD, dhead_VD)


def _backward(loss: ChunkLoss, how: Logits, gradients: HeadGradients, cotangents: PyTree) -> tuple[jax.Array | None, ...]:
    return (*scaled(gradients, cotangents[0]), None, None, None)


def scaled(gradients: HeadGradients, cotangent: jax.Array | SymbolicZero) -> tuple[jax.Array | None, jax.Array | None]:
    """Return the gradients (dx, dhead or None), times the cotangent of their sum; None for both if that is a symbolic zero."""
    dx_BTD, dhead_VD = gradients
    if isinstance(cotangent, SymbolicZero):
        return None, None
    return (dx_BTD * cotangent).astype(dx_BTD.dtype), None if dhead_VD is None else dhead_VD * cotangent


head_loss.defvjp(_forward, _backward, symbolic_zeros=True)
