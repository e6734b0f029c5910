"""Cross-entropy of a linear head in chunks, so that the logits of a whole batch never exist.

The loss is a sum over positions. So the forward pass computes the gradient of each chunk (hidden states and head) right after
its logits, and the backward pass only scales it by the cotangent. That takes one product for the logits and two for the
gradients, none repeated (the idea of Liger Kernel's fused linear cross-entropy, Hsu et al. 2024).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lm.kernels.chunks import chunk_of, joined, partial_spec, reduced, split
from lm.kernels.matmul import gathered, product, spec_of
from lm.parallel.mesh import spec


class Settings(NamedTuple):
    z_loss: float
    softcap: float
    dft: bool
    measured: bool


def cross_entropy(
    x_BTD,
    head_VD,
    targets_BT,
    weights_BT,
    *,
    dtype,
    z_loss: float = 0.0,
    softcap: float = 0.0,
    dft: bool = False,
    measured: bool = False,
    chunk: int | None = None,
):
    """Return Σ w·(nll + z_loss·(log Z)²) and Σ w·nll, with nll = −log p(target), logits = x·headᵀ and Z = Σ exp(logits).

    Args:
      x_BTD: hidden states after the last norm. head_VD: float32 head. targets_BT: int32. weights_BT: float32.
      dtype: compute type of the three products; logits, softmax and sums are float32.
      z_loss: coefficient of the auxiliary loss that keeps log Z near 0 (PaLM, Chowdhery et al. 2022, uses 1e-4).
      softcap: logits s become softcap·tanh(s/softcap) (Gemma 2); 0: no cap.
      dft: multiply the nll by p(target), with no gradient through the factor (dynamic fine-tuning).
      measured: also return Σ w·entropy of the softmax, and Σ w over the positions whose most likely id is the target.
      chunk: time steps per chunk; None: as many as give a device at most CHUNK_TOKENS positions (lm/kernels/chunks.py).
    Returns: (objective, nll) or (objective, nll, entropy, correct), float32 scalars. Only the objective has a gradient, with
      respect to x and head.
    """
    chunk = chunk or chunk_of(*targets_BT.shape)
    settings = Settings(float(z_loss), float(softcap), dft, measured)
    return _chunked(jnp.dtype(dtype), settings, chunk, x_BTD, head_VD, targets_BT, weights_BT)


def cross_entropy_reference(x_BTD, head_VD, targets_BT, weights_BT, *, z_loss: float = 0.0, softcap: float = 0.0):
    """Reference twin: whole logits, float32, autodiff."""
    logits_BTV = jnp.einsum("btd,vd->btv", x_BTD.astype(jnp.float32), head_VD)
    if softcap:
        logits_BTV = softcap * jnp.tanh(logits_BTV / softcap)
    logz_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    label_BT = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
    nll = jnp.sum(weights_BT * (logz_BT - label_BT))
    return nll + jnp.sum(weights_BT * z_loss * logz_BT**2), nll


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _chunked(dtype, settings, chunk, x_BTD, head_VD, targets_BT, weights_BT):
    head = gathered(head_VD.astype(dtype))

    def body(sums, inputs):
        x, targets, weights = inputs
        return jax.tree.map(jnp.add, sums, _logits(x, head, targets, weights, settings)[1]), None

    inputs = split(chunk, x_BTD.astype(dtype), targets_BT, weights_BT)
    return _totals(lax.scan(body, _nothing(settings, x_BTD.shape[0]), inputs)[0])


def _logits(x, head, targets, weights, settings: Settings):
    """Return for one chunk: (logits, target mask) [B, c, V], sums per row [B], (log Z, weights of the nll) [B, c]."""
    logits = product("btd,vd->btv", x, head, spec("batch", None, "vocab"))
    if settings.softcap:
        logits = settings.softcap * jnp.tanh(logits / settings.softcap)
    ids = lax.broadcasted_iota(jnp.int32, logits.shape, 2, out_sharding=spec("batch", None, "vocab"))
    is_target = ids == targets[..., None]
    logz = jax.nn.logsumexp(logits, axis=-1)
    label = jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
    scale = weights * jnp.exp(label - logz) if settings.dft else weights
    nll = jnp.sum(weights * (logz - label), axis=-1)
    objective = jnp.sum(scale * (logz - label), axis=-1) if settings.dft else nll
    sums = (objective + jnp.sum(weights * settings.z_loss * logz**2, axis=-1), nll)
    if settings.measured:
        entropy = jnp.sum(jnp.exp(logits - logz[..., None]) * (logz[..., None] - logits), axis=-1)
        correct = label >= jnp.max(logits, axis=-1)
        sums += (jnp.sum(weights * entropy, axis=-1), jnp.sum(weights * correct, axis=-1))
    return (logits, is_target), sums, logz, scale


def _nothing(settings: Settings, B: int) -> tuple[jax.Array, ...]:
    return (jnp.zeros((B,), jnp.float32, out_sharding=spec("batch")),) * (4 if settings.measured else 2)


def _totals(sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    return tuple(map(jnp.sum, sums))


def _forward(dtype, settings, chunk, x_BTD, head_VD, targets_BT, weights_BT):
    head, (B, T, _) = gathered(head_VD.astype(dtype)), x_BTD.shape
    where = spec_of(head_VD)

    def body(carry, inputs):
        sums, dhead = carry
        x, targets, weights = inputs
        (logits, is_target), more, logz, scale = _logits(x, head, targets, weights, settings)
        # d/dlogits of s·(logZ − label) + w·ζ·logZ² is (s + 2ζ·w·logZ)·p − s·onehot
        p = jnp.exp(logits - logz[..., None])
        of_logz = scale + 2 * settings.z_loss * weights * logz
        dlogits = of_logz[..., None] * p - jnp.where(is_target, scale[..., None], 0.0)
        if settings.softcap:
            dlogits = dlogits * (1 - (logits / settings.softcap) ** 2)  # the derivative of softcap·tanh(s/softcap)
        dlogits = dlogits.astype(dtype)
        dx = product("btv,vd->btd", dlogits, head, spec("batch", None, None)).astype(dtype)
        dhead = dhead + product("btv,btd->vd", dlogits, x, partial_spec(where))
        return (jax.tree.map(jnp.add, sums, more), dhead), dx

    inputs = split(chunk, x_BTD.astype(dtype), targets_BT, weights_BT)
    nothing = _nothing(settings, B), jnp.zeros(head_VD.shape, jnp.float32, out_sharding=partial_spec(where))
    (sums, dhead), dx = lax.scan(body, nothing, inputs)
    return _totals(sums), (joined(dx, T).astype(x_BTD.dtype), reduced(dhead, where), weights_BT)


def _backward(dtype, settings, chunk, residuals, cotangents):
    dx_BTD, dhead, weights_BT = residuals
    scale = cotangents[0]
    return (dx_BTD * scale).astype(dx_BTD.dtype), dhead * scale, None, jnp.zeros_like(weights_BT)


_chunked.defvjp(_forward, _backward)
