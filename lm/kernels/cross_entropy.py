"""Cross-entropy of a linear head in chunks, so that the logits of a whole batch never exist."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lm.kernels.chunks import chunk_of
from lm.kernels.head import exponentials, head_loss, scaled, softcapped, target_mask
from lm.kernels.vocabulary import block_rows, gradients, statistics


@jax.named_scope("head_loss")
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
    sparse: bool = False,
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
      sparse: skip chunks whose weights are all 0, such as those of prompts.
      chunk: time steps per chunk; None: as many as give a device at most CHUNK_TOKENS positions (lm/kernels/chunks.py).
    Returns: (objective, nll) or (objective, nll, entropy, correct), float32 scalars. Only the objective has a gradient, with
      respect to x and head.
    """
    if (rows := block_rows(head_VD, dtype)) is not None:
        options = Options(z_loss, softcap, dft, measured, jnp.dtype(dtype), rows)
        return _by_blocks(options, x_BTD, head_VD, targets_BT, weights_BT)
    chunk = chunk or chunk_of(*targets_BT.shape)
    loss = functools.partial(_chunk, z_loss=z_loss, dft=dft, measured=measured)
    arrays, used_BT = (targets_BT, weights_BT), weights_BT != 0 if sparse else None
    return head_loss(loss, softcap, jnp.dtype(dtype), chunk, x_BTD, head_VD, (), arrays, used_BT)


def _chunk(logits, targets, weights, *, z_loss, dft, measured):
    """Return for one chunk: sums per row [B], and d objective / d logits, float32 [B, c, V]."""
    is_target = target_mask(logits, targets)
    top, below, e, z = exponentials(logits)
    logz, label = top + jnp.log(z), jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
    scale = weights * jnp.exp(label - logz) if dft else weights
    nll = jnp.sum(weights * (logz - label), axis=-1)
    objective = jnp.sum(scale * (logz - label), axis=-1) if dft else nll
    sums = (objective + jnp.sum(weights * z_loss * logz**2, axis=-1), nll)
    if measured:
        # With p = e/Z and log p = below − log Z: −Σ p·log p = log Z − Σ e·below / Z. No second exponential, no third pass.
        entropy = jnp.log(z) - jnp.sum(e * below, axis=-1) / z
        sums += (jnp.sum(weights * entropy, axis=-1), jnp.sum(weights * (label >= top), axis=-1))
    # d/dlogits of s·(logZ − label) + w·ζ·logZ² is (s + 2ζ·w·logZ)·p − s·onehot
    of_logz = (scale + 2 * z_loss * weights * logz) / z
    return sums, of_logz[..., None] * e - jnp.where(is_target, scale[..., None], 0.0)


class Options(NamedTuple):
    """Constants of `_by_blocks`; rows: of a block of the vocabulary."""

    z_loss: float
    softcap: float
    dft: bool
    measured: bool
    dtype: jnp.dtype
    rows: int


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _by_blocks(options, x_BTD, head_VD, targets_BT, weights_BT):
    """Compute `cross_entropy` in blocks of the vocabulary (lm/kernels/vocabulary.py); the gradients in the forward pass."""
    return _sums(options, _statistics(options, x_BTD, head_VD, targets_BT), weights_BT)


def _statistics(options, x_BTD, head_VD, targets_BT):
    return statistics(x_BTD, head_VD, targets_BT, dtype=options.dtype, rows=options.rows, softcap=options.softcap)


def _sums(options, found, weights_BT):
    nll_BT = found.logz - found.label
    nll = jnp.sum(weights_BT * nll_BT)
    objective = jnp.sum(_scale(options, found, weights_BT) * nll_BT) if options.dft else nll
    sums = (objective + jnp.sum(weights_BT * options.z_loss * found.logz**2), nll)
    if options.measured:
        sums += (jnp.sum(weights_BT * found.entropy), jnp.sum(weights_BT * (found.label >= found.top)))
    return sums


def _scale(options, found, weights_BT):
    return weights_BT * jnp.exp(found.label - found.logz) if options.dft else weights_BT


def _by_blocks_forward(options, *arguments):
    x_BTD, head_VD, targets_BT, weights_BT = (argument.value for argument in arguments)
    found = _statistics(options, x_BTD, head_VD, targets_BT)
    scale_BT = _scale(options, found, weights_BT)
    of_p_BT = scale_BT + 2 * options.z_loss * weights_BT * found.logz  # as in `_chunk`
    how = dict(dtype=options.dtype, rows=options.rows, softcap=options.softcap, learns=arguments[1].perturbed)
    return _sums(options, found, weights_BT), gradients(x_BTD, head_VD, targets_BT, found.logz, of_p_BT, -scale_BT, **how)


def _by_blocks_backward(options, residuals, cotangents):
    return (*scaled(residuals, cotangents[0]), None, None)


_by_blocks.defvjp(_by_blocks_forward, _by_blocks_backward, symbolic_zeros=True)


def cross_entropy_reference(x_BTD, head_VD, targets_BT, weights_BT, *, z_loss: float = 0.0, softcap: float = 0.0):
    """Reference twin: whole logits, float32, autodiff."""
    logits_BTV = softcapped(jnp.einsum("btd,vd->btv", x_BTD.astype(jnp.float32), head_VD), softcap)
    logz_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    label_BT = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
    nll = jnp.sum(weights_BT * (logz_BT - label_BT))
    return nll + jnp.sum(weights_BT * z_loss * logz_BT**2), nll
