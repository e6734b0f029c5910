"""Cross-entropy of a linear head in chunks of time steps, so that the logits of a whole batch never exist."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lm.kernels.chunks import chunk_of
from lm.kernels.head import Logits, exponentials, head_loss, target_mask


class CrossEntropy(NamedTuple):
    """Constants of a cross-entropy.

    z_loss: coefficient of the auxiliary loss that keeps log Z near 0 (PaLM, Chowdhery et al. 2022, uses 1e-4).
    softcap: logits s become softcap·tanh(s/softcap) (Gemma 2); 0: no cap.
    dft: multiply the nll by p(target), with no gradient through the factor (dynamic fine-tuning).
    measured: also return Σ w·entropy of the softmax, and Σ w over the positions whose most likely id is the target.
    sparse: skip chunks whose weights are all 0, such as those of prompts.
    chunk: time steps per chunk; 0: as many as give a device at most CHUNK_TOKENS positions (lm/kernels/chunks.py).
    """

    z_loss: float = 0.0
    softcap: float = 0.0
    dft: bool = False
    measured: bool = False
    sparse: bool = False
    chunk: int = 0


def cross_entropy(
    x_BTD: jax.Array,
    head_VD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    objective: CrossEntropy,
    *,
    dtype: jnp.dtype,
) -> tuple[jax.Array, ...]:
    """Compute lm.kernels.ops.cross_entropy."""
    chunk = objective.chunk or chunk_of(*targets_BT.shape)
    arrays, used_BT = (targets_BT, weights_BT), weights_BT != 0 if objective.sparse else None
    loss = functools.partial(_chunk, objective)
    return head_loss(loss, Logits(dtype, objective.softcap, chunk), x_BTD, head_VD, (), arrays, used_BT)


def _chunk(
    objective: CrossEntropy, logits: jax.Array, targets: jax.Array, weights: jax.Array
) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """Return for one chunk: sums per row [B], and d objective / d logits, float32 [B, c, V]."""
    z_loss, is_target = objective.z_loss, target_mask(logits, targets)
    top, below, e, z = exponentials(logits)
    logz, label = top + jnp.log(z), jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
    scale = weights * jnp.exp(label - logz) if objective.dft else weights
    nll = jnp.sum(weights * (logz - label), axis=-1)
    loss = jnp.sum(scale * (logz - label), axis=-1) if objective.dft else nll
    sums: tuple[jax.Array, ...] = (loss + jnp.sum(weights * z_loss * logz**2, axis=-1), nll)
    if objective.measured:
        # With p = e/Z and log p = below − log Z: −Σ p·log p = log Z − Σ e·below / Z. No second exponential, no third pass.
        entropy = jnp.log(z) - jnp.sum(e * below, axis=-1) / z
        sums += (jnp.sum(weights * entropy, axis=-1), jnp.sum(weights * (label >= top), axis=-1))
    # d/dlogits of s·(logZ − label) + w·ζ·logZ² is (s + 2ζ·w·logZ)·p − s·onehot
    of_logz = (scale + 2 * z_loss * weights * logz) / z
    return sums, of_logz[..., None] * e - jnp.where(is_target, scale[..., None], 0.0)
