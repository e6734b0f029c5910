"""Log-probabilities of given tokens under a linear head, in chunks, so that the logits of a whole batch never exist.

The backward pass recomputes each chunk's logits. The gradient is −cotangent of a position, times the gradient of its nll.
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
    softcap: float
    temperature: float


def target_logprobs(
    x_BTD, head_VD, targets_BT, *, dtype, softcap: float = 0.0, temperature: float = 1.0, chunk: int | None = None
) -> tuple[jax.Array, jax.Array]:
    """Return log p(target) and the entropy of p, float32 [B, T], in nats; logits are x·headᵀ.

    Args:
      x_BTD: hidden states after the last norm. head_VD: float32 head. targets_BT: int32.
      dtype: of the operands and of the logits, like the model's; sums and softmax are float32.
      softcap: logits s become softcap·tanh(s/softcap) (Gemma 2); 0: no cap. The temperature divides the capped logits.
      chunk: time steps per chunk; None: see `chunk_of`.
    Only the first result has a gradient, with respect to x and head.
    """
    settings = Settings(float(softcap), float(temperature))
    return _chunked(jnp.dtype(dtype), settings, chunk or chunk_of(*targets_BT.shape), x_BTD, head_VD, targets_BT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _chunked(dtype, settings, chunk, x_BTD, head_VD, targets_BT):
    return _forward(dtype, settings, chunk, x_BTD, head_VD, targets_BT)[0]


def _forward(dtype, settings, chunk, x_BTD, head_VD, targets_BT):
    head, T = gathered(head_VD.astype(dtype)), targets_BT.shape[1]

    def body(_, inputs):
        x, targets = inputs
        logits, is_target = _logits(x, head, targets, settings)
        logits = logits / settings.temperature
        logz = jax.nn.logsumexp(logits, axis=-1)
        label = jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
        logp = logits - logz[..., None]
        return None, (label - logz, -jnp.sum(jnp.exp(logp) * logp, axis=-1), logz)

    _, found = lax.scan(body, None, split(chunk, x_BTD.astype(dtype), targets_BT))
    logp_BT, entropy_BT, logz_BT = (joined(x, T) for x in found)
    return (logp_BT, entropy_BT), (x_BTD, head_VD, targets_BT, logz_BT)


def _logits(x, head, targets, settings):
    """Return for one chunk the capped logits and the target mask, [B, c, V]."""
    logits = product("btd,vd->btv", x, head, spec("batch", None, "vocab")).astype(x.dtype).astype(jnp.float32)
    if settings.softcap:
        logits = settings.softcap * jnp.tanh(logits / settings.softcap)
    ids = lax.broadcasted_iota(jnp.int32, logits.shape, 2, out_sharding=spec("batch", None, "vocab"))
    return logits, ids == targets[..., None]


def _backward(dtype, settings, chunk, residuals, cotangents):
    x_BTD, head_VD, targets_BT, logz_BT = residuals
    head, T, where = gathered(head_VD.astype(dtype)), targets_BT.shape[1], spec_of(head_VD)

    def body(dhead, inputs):
        x, targets, logz, dlogp = inputs
        logits, is_target = _logits(x, head, targets, settings)
        p = jnp.exp(logits / settings.temperature - logz[..., None])
        dlogits = dlogp[..., None] * (is_target - p) / settings.temperature
        if settings.softcap:
            dlogits = dlogits * (1 - (logits / settings.softcap) ** 2)  # the derivative of softcap·tanh(s/softcap)
        dlogits = dlogits.astype(dtype)
        dx = product("btv,vd->btd", dlogits, head, spec("batch", None, None)).astype(dtype)
        return dhead + product("btv,btd->vd", dlogits, x, partial_spec(where)), dx

    inputs = split(chunk, x_BTD.astype(dtype), targets_BT, logz_BT, cotangents[0])
    dhead, dx = lax.scan(body, jnp.zeros(head_VD.shape, jnp.float32, out_sharding=partial_spec(where)), inputs)
    return joined(dx, T).astype(x_BTD.dtype), reduced(dhead, where).astype(head_VD.dtype), None


_chunked.defvjp(_forward, _backward)
