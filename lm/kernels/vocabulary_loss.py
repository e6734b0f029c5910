"""Cross-entropy of a head that is too large to gather whole, in blocks of its vocabulary (lm/kernels/vocabulary.py)."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero

from lm.kernels.cross_entropy import CrossEntropy
from lm.kernels.head import Logits, scaled
from lm.kernels.vocabulary import Statistics, block_rows, gradients, statistics


class Options(NamedTuple):
    """Constants of `_by_blocks`; logits: with the rows of a block of the vocabulary."""

    objective: CrossEntropy
    logits: Logits


def takes(
    x_BTD: jax.Array,
    head_VD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    objective: CrossEntropy,
    *,
    dtype: jnp.dtype,
) -> bool:
    """Return whether a block of the head is smaller than the head."""
    return block_rows(head_VD, dtype) is not None


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
    rows = block_rows(head_VD, dtype)
    assert rows is not None  # as `takes` says
    return _by_blocks(Options(objective, Logits(dtype, objective.softcap, rows)), x_BTD, head_VD, targets_BT, weights_BT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _by_blocks(
    options: Options, x_BTD: jax.Array, head_VD: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array
) -> tuple[jax.Array, ...]:
    """Return the sums of `cross_entropy`; the gradients are computed in the forward pass."""
    return _sums(options, statistics(x_BTD, head_VD, targets_BT, options.logits), weights_BT)


def _sums(options: Options, found: Statistics, weights_BT: jax.Array) -> tuple[jax.Array, ...]:
    nll_BT = found.logz - found.label
    nll = jnp.sum(weights_BT * nll_BT)
    objective = jnp.sum(_scale(options, found, weights_BT) * nll_BT) if options.objective.dft else nll
    sums: tuple[jax.Array, ...] = (objective + jnp.sum(weights_BT * options.objective.z_loss * found.logz**2), nll)
    if options.objective.measured:
        sums += (jnp.sum(weights_BT * found.entropy), jnp.sum(weights_BT * (found.label >= found.top)))
    return sums


def _scale(options: Options, found: Statistics, weights_BT: jax.Array) -> jax.Array:
    return weights_BT * jnp.exp(found.label - found.logz) if options.objective.dft else weights_BT


def _by_blocks_forward(
    options: Options, *arguments: CustomVJPPrimal
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, jax.Array | None]]:
    x_BTD, head_VD, targets_BT, weights_BT = (argument.value for argument in arguments)
    found = statistics(x_BTD, head_VD, targets_BT, options.logits)
    scale_BT = _scale(options, found, weights_BT)
    of_p_BT = scale_BT + 2 * options.objective.z_loss * weights_BT * found.logz  # as in lm/kernels/cross_entropy.py
    learns = arguments[1].perturbed
    return _sums(options, found, weights_BT), gradients(
        x_BTD, head_VD, targets_BT, found.logz, of_p_BT, -scale_BT, options.logits, learns
    )


def _by_blocks_backward(
    options: Options, residuals: tuple[jax.Array, jax.Array | None], cotangents: Sequence[jax.Array | SymbolicZero]
) -> tuple[jax.Array | None, ...]:
    return (*scaled(residuals, cotangents[0]), None, None)


_by_blocks.defvjp(_by_blocks_forward, _by_blocks_backward, symbolic_zeros=True)
