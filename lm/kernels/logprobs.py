"""Log-probabilities of given tokens under a linear head, in chunks, so that the logits of a whole batch never exist.

The backward pass recomputes each chunk's logits. The gradient is −cotangent of a position, times the gradient of its nll.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from lm.kernels.chunks import chunk_of, joined, split
from lm.kernels.head import head_gradients, head_logits, target_and_normalizer, target_mask
from lm.kernels.matmul import gathered


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
    chunk = chunk or chunk_of(*targets_BT.shape)
    return _chunked(softcap, temperature, jnp.dtype(dtype), chunk, x_BTD, head_VD, targets_BT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _chunked(softcap, temperature, dtype, chunk, x_BTD, head_VD, targets_BT):
    return _forward(softcap, temperature, dtype, chunk, x_BTD, head_VD, targets_BT)[0]


def _forward(softcap, temperature, dtype, chunk, x_BTD, head_VD, targets_BT):
    head = gathered(head_VD.astype(dtype))

    def some(inputs):
        x, targets = inputs
        logits = head_logits(x, head, softcap, dtype) / temperature
        label, logz = target_and_normalizer(logits, targets)
        logp = logits - logz[..., None]
        return label - logz, -jnp.sum(jnp.exp(logp) * logp, axis=-1), logz

    found = lax.map(some, split(chunk, x_BTD.astype(dtype), targets_BT))
    logp_BT, entropy_BT, logz_BT = (joined(x, targets_BT.shape[1]) for x in found)
    return (logp_BT, entropy_BT), (x_BTD, head_VD, targets_BT, logz_BT)


def _backward(softcap, temperature, dtype, chunk, residuals, cotangents):
    x_BTD, head_VD, targets_BT, logz_BT = residuals

    def loss(logits, targets, logz, dlogp):
        p = jnp.exp(logits / temperature - logz[..., None])
        return (), dlogp[..., None] * (target_mask(logits, targets) - p) / temperature

    arrays = (targets_BT, logz_BT, cotangents[0])
    _, dx_BTD, dhead = head_gradients(loss, softcap, dtype, chunk, x_BTD, head_VD, (), arrays, logits_dtype=dtype)
    return dx_BTD, dhead.astype(head_VD.dtype), None


_chunked.defvjp(_forward, _backward)
