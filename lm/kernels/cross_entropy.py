"""Cross-entropy of a linear head in chunks, so that the logits of a whole batch never exist.

The loss is a sum over positions, so its gradient with respect to hidden states and head is known as soon as a
chunk's logits are: it is taken in the forward pass and scaled by the cotangent in the backward pass. One product for
the logits and two for the gradients, none repeated (the idea of Liger Kernel's fused linear cross-entropy, Hsu et al. 2024).
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from lm.kernels.matmul import gathered, product, spec_of
from lm.parallel.mesh import spec

CHUNK_TOKENS = 2048  # positions a device whose logits exist at a time


def cross_entropy(
    x_BTD, head_VD, targets_BT, weights_BT, *, dtype, z_loss: float = 0.0, softcap: float = 0.0, chunk: int | None = None
):
    """Σ w·(nll + z_loss·(log Z)²) and Σ w·nll, with nll = −log p(target), logits = x·headᵀ and Z = Σ exp(logits).

    Args:
      x_BTD: hidden states after the last norm. head_VD: float32 head. targets_BT: int32. weights_BT: float32.
      dtype: compute type of the three products; logits, softmax and sums are float32.
      z_loss: coefficient of the auxiliary loss that holds log Z near 0 (PaLM, Chowdhery et al. 2022, uses 1e-4).
      softcap: logits s become softcap·tanh(s/softcap) (Gemma 2); 0: they stay.
      chunk: time steps a chunk; None chooses the largest divisor of T with at most CHUNK_TOKENS positions a device.
    Returns: (objective, nll), float32 scalars. Only the objective has a gradient, with respect to x and head.
    """
    B, T = targets_BT.shape
    mesh = jax.sharding.get_abstract_mesh()
    rows = B if mesh.empty else B // (mesh.shape["data"] * mesh.shape["fsdp"] * mesh.shape["expert"])
    chunk = chunk or max((c for c in range(1, T + 1) if T % c == 0 and rows * c <= CHUNK_TOKENS), default=1)
    losses = (float(z_loss), float(softcap))
    return _chunked(jnp.dtype(dtype), losses, chunk, x_BTD, head_VD, targets_BT, weights_BT)


def cross_entropy_reference(x_BTD, head_VD, targets_BT, weights_BT, *, z_loss: float = 0.0, softcap: float = 0.0):
    """The plain twin: whole logits, float32, autodiff."""
    logits_BTV = jnp.einsum("btd,vd->btv", x_BTD.astype(jnp.float32), head_VD)
    if softcap:
        logits_BTV = softcap * jnp.tanh(logits_BTV / softcap)
    logz_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    label_BT = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
    nll = jnp.sum(weights_BT * (logz_BT - label_BT))
    return nll + jnp.sum(weights_BT * z_loss * logz_BT**2), nll


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _chunked(dtype, losses, chunk, x_BTD, head_VD, targets_BT, weights_BT):
    head = gathered(head_VD.astype(dtype))

    def body(sums, inputs):
        x, targets, weights = inputs
        _, objective, nll, _ = _logits(x, head, targets, weights, losses)
        return (sums[0] + objective, sums[1] + nll), None

    zero = jnp.zeros((), jnp.float32)
    sums, _ = lax.scan(body, (zero, zero), _split(chunk, x_BTD.astype(dtype), targets_BT, weights_BT))
    return sums


def _logits(x, head, targets, weights, losses):
    """One chunk: (logits, where the targets are) [B, c, V], its objective, its nll, log Z [B, c]."""
    z_loss, softcap = losses
    logits = product("btd,vd->btv", x, head, spec("batch", None, "vocab"))
    if softcap:
        logits = softcap * jnp.tanh(logits / softcap)
    ids = lax.broadcasted_iota(jnp.int32, logits.shape, 2, out_sharding=spec("batch", None, "vocab"))
    is_target = ids == targets[..., None]
    logz = jax.nn.logsumexp(logits, axis=-1)
    label = jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
    nll = jnp.sum(weights * (logz - label))
    return (logits, is_target), nll + jnp.sum(weights * z_loss * logz**2), nll, logz


def _forward(dtype, losses, chunk, x_BTD, head_VD, targets_BT, weights_BT):
    head = gathered(head_VD.astype(dtype))
    z_loss, softcap = losses

    def body(carry, inputs):
        objective_sum, nll_sum, dhead = carry
        x, targets, weights = inputs
        (logits, is_target), objective, nll, logz = _logits(x, head, targets, weights, losses)
        # d/dlogits of w·(logZ − label) + w·ζ·logZ² is w·((1 + 2ζ·logZ)·p − onehot)
        scale = weights * (1 + 2 * z_loss * logz)
        p = jnp.exp(logits - logz[..., None])
        dlogits = scale[..., None] * p - jnp.where(is_target, weights[..., None], 0.0)
        if softcap:
            dlogits = dlogits * (1 - (logits / softcap) ** 2)  # the derivative of softcap·tanh(s/softcap)
        dlogits = dlogits.astype(dtype)
        dx = product("btv,vd->btd", dlogits, head, spec("batch", None, None)).astype(dtype)
        dhead = dhead + product("btv,btd->vd", dlogits, x, spec_of(head_VD))
        return (objective_sum + objective, nll_sum + nll, dhead), dx

    zero = jnp.zeros((), jnp.float32)
    carry = (zero, zero, jnp.zeros_like(head_VD))
    (objective, nll, dhead), dx = lax.scan(body, carry, _split(chunk, x_BTD.astype(dtype), targets_BT, weights_BT))
    dx_BTD = jnp.moveaxis(dx, 0, 1).reshape(x_BTD.shape)
    return (objective, nll), (dx_BTD.astype(x_BTD.dtype), dhead, weights_BT)


def _backward(dtype, losses, chunk, residuals, cotangents):
    dx_BTD, dhead, weights_BT = residuals
    scale, _ = cotangents
    return (dx_BTD * scale).astype(dx_BTD.dtype), dhead * scale, None, jnp.zeros_like(weights_BT)


_chunked.defvjp(_forward, _backward)


def _split(chunk, *arrays):
    """[B, T, …] -> [T / chunk, B, chunk, …], the batch axis left where it is sharded."""
    return tuple(jnp.moveaxis(a.reshape(a.shape[0], -1, chunk, *a.shape[2:]), 1, 0) for a in arrays)
