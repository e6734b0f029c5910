"""The linear head over the vocabulary: logits, and losses of logits that never exist for a whole batch.

A loss that is a sum over positions can compute its gradient in the forward pass: each chunk's right after its logits. The
backward pass only scales it by the cotangent. That takes one product for the logits and two for the gradients, none repeated
(the idea of Liger Kernel's fused linear cross-entropy, Hsu et al. 2024).
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from lm.kernels.chunks import joined, partial_spec, reduced, split
from lm.kernels.matmul import gathered, product, spec_of
from lm.parallel.mesh import spec


def softcapped(scores: jax.Array, cap: float) -> jax.Array:
    """Return cap·tanh(scores / cap), or the scores themselves if the cap is 0 (Gemma 2, 2024)."""
    return cap * jnp.tanh(scores / cap) if cap else scores


def softcap_slope(capped: jax.Array, cap: float) -> jax.Array:
    """Return the derivative of `softcapped` from its results: 1 − (capped / cap)²."""
    return 1 - jnp.square(capped / cap)


def head_logits(x_BTD, head_VD, softcap: float, dtype=jnp.float32) -> jax.Array:
    """Return float32 logits [B, T, V] of hidden states and a gathered head of one dtype, rounded to `dtype` before the cap."""
    logits = product("btd,vd->btv", x_BTD, head_VD, spec("batch", None, "vocab"))
    return softcapped(logits.astype(dtype).astype(jnp.float32), softcap)


def target_mask(logits_BTV, targets_BT) -> jax.Array:
    """Return bool [B, T, V]: where the vocabulary id is the target. It may be split over the vocabulary, unlike a gather."""
    ids = lax.broadcasted_iota(jnp.int32, logits_BTV.shape, 2, out_sharding=spec("batch", None, "vocab"))
    return ids == targets_BT[..., None]


def target_and_normalizer(logits_BTV, targets_BT) -> tuple[jax.Array, jax.Array]:
    """Return the target's logit and log Z = log Σ exp(logits), [B, T]; their difference is log p(target)."""
    targets = jnp.sum(jnp.where(target_mask(logits_BTV, targets_BT), logits_BTV, 0.0), axis=-1)
    return targets, jax.nn.logsumexp(logits_BTV, axis=-1)


def head_gradients(loss, softcap: float, dtype, chunk: int, x_BTD, head_VD, fixed, arrays, logits_dtype=jnp.float32):
    """Return a loss's results stacked over chunks, and its gradients: dx [B, T, D] in x's dtype, dhead float32 [V, D].

    loss(logits, *arrays, *fixed) -> (results, d loss / d logits) of one chunk: logits float32 [B, chunk, V] after the cap.
    arrays: [B, T, …], split like x. fixed: given whole to each chunk. See `head_logits` for logits_dtype.
    """
    head, T, where = gathered(head_VD.astype(dtype)), x_BTD.shape[1], spec_of(head_VD)

    def body(dhead, inputs):
        x, *arrays = inputs
        logits = head_logits(x, head, softcap, logits_dtype)
        results, dlogits = loss(logits, *arrays, *fixed)
        if softcap:
            dlogits = dlogits * softcap_slope(logits, softcap)
        dlogits = dlogits.astype(dtype)
        dx = product("btv,vd->btd", dlogits, head, spec("batch", None, None)).astype(dtype)
        return dhead + product("btv,btd->vd", dlogits, x, partial_spec(where)), (results, dx)

    nothing = jnp.zeros(head_VD.shape, jnp.float32, out_sharding=partial_spec(where))
    dhead, (results, dx) = lax.scan(body, nothing, split(chunk, x_BTD.astype(dtype), *arrays))
    return results, joined(dx, T).astype(x_BTD.dtype), reduced(dhead, where)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def head_loss(loss, softcap: float, dtype, chunk: int, x_BTD, head_VD, fixed, arrays):
    """Return the float32 sums over all positions; only the first has a gradient, with respect to x and head.

    loss: as in `head_gradients`; its results are a tuple of float32 sums per row, [B].
    """
    head = gathered(head_VD.astype(dtype))

    def sums(inputs):
        x, *arrays = inputs
        return loss(head_logits(x, head, softcap), *arrays, *fixed)[0]

    return jax.tree.map(jnp.sum, lax.map(sums, split(chunk, x_BTD.astype(dtype), *arrays)))


def _forward(loss, softcap, dtype, chunk, x_BTD, head_VD, fixed, arrays):
    sums, *gradients = head_gradients(loss, softcap, dtype, chunk, x_BTD, head_VD, fixed, arrays)
    return jax.tree.map(jnp.sum, sums), gradients


def _backward(loss, softcap, dtype, chunk, gradients, cotangents):
    dx_BTD, dhead_VD = gradients
    return (dx_BTD * cotangents[0]).astype(dx_BTD.dtype), dhead_VD * cotangents[0], None, None


head_loss.defvjp(_forward, _backward)
