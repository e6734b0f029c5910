"""Log-probabilities of given tokens under a linear head, in chunks, so that the logits of a whole batch never exist.

The backward pass recomputes each chunk's logits. The gradient is −cotangent of a position, times the gradient of its nll.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.typing import DTypeLike

from lm.kernels.cpu.packed import pack
from lm.kernels.head import Logits, chunk_of, exponentials, head_gradients, head_logits, joined, skipping, split, target_mask
from lm.kernels.matmul import gathered
from lm.kernels.ops import rounded_weights, row_logprobs
from lm.kernels.vocabulary import block_rows, gradients, statistics
from lm.parallel.arrays import PyTree
from lm.parallel.mesh import reshard


@jax.named_scope("head_loss")
def target_logprobs(
    x_BTD: jax.Array,
    head_VD: jax.Array,
    targets_BT: jax.Array,
    *,
    dtype: DTypeLike,
    softcap: float = 0.0,
    temperature: float = 1.0,
    chunk: int | None = None,
    used_BT: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Return log p(target) and the entropy of p, float32 [B, T], in nats; logits are x·headᵀ.

    Args:
      x_BTD: hidden states after the last norm. head_VD: float32 head. targets_BT: int32.
      dtype: of the operands and of the logits, like the model's; sums and softmax are float32.
      softcap: logits s become softcap·tanh(s/softcap) (Gemma 2); 0: no cap. The temperature divides the capped logits.
      chunk: time steps per chunk; None: see `chunk_of`.
      used_BT: bool; a chunk without any used position is skipped, and both results are 0 there. None: skip nothing.
    Only the first result has a gradient, with respect to x and head.
    """
    dtype, chunk = jnp.dtype(dtype), chunk or chunk_of(*targets_BT.shape)
    return _chunked(Logits(dtype, softcap, chunk, dtype, temperature), x_BTD, head_VD, targets_BT, used_BT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunked(
    how: Logits, x_BTD: jax.Array, head_VD: jax.Array, targets_BT: jax.Array, used_BT: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    logps_BT, entropy_BT, _ = _values(how, x_BTD, head_VD, targets_BT, used_BT)
    return logps_BT, entropy_BT


def _values(
    how: Logits, x_BTD: jax.Array, head_VD: jax.Array, targets_BT: jax.Array, used_BT: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return log p(target), the entropy and log Z, each [B, T]."""
    if (rows := block_rows(head_VD, how.dtype)) is not None:
        found = statistics(x_BTD, head_VD, targets_BT, how._replace(part=rows))
        used = 1.0 if used_BT is None else used_BT
        return (found.label - found.logz) * used, found.entropy * used, found.logz
    weights = rounded_weights()
    head = pack(head_VD.T, 8 * jnp.dtype(weights).itemsize) if weights else gathered(head_VD.astype(how.dtype))

    def some(_: None, inputs: tuple[jax.Array, jax.Array]) -> tuple[None, tuple[jax.Array, ...]]:
        x, targets = inputs
        capped = head_logits(x, head, how.softcap, how.rounded)
        logits = capped / how.temperature
        top, below, e, z = exponentials(logits)
        # With p = e/Z and log p = below − log Z: the entropy is log Z − Σ e·below / Z.
        entropy = jnp.log(z) - jnp.sum(e * below, axis=-1) / z
        if weights:  # as an engine computes them, to the bit
            rows = reshard(capped, None, None, None).reshape(-1, capped.shape[-1]), reshard(targets, None, None).reshape(-1)
            found = row_logprobs(*rows, jnp.full(targets.size, how.temperature, jnp.float32))
            logp, logz = (reshard(x.reshape(targets.shape), "rows", None) for x in found)
            return None, (logp, entropy, logz)
        label = jnp.sum(jnp.where(target_mask(logits, targets), below, 0.0), axis=-1)
        return None, (label - jnp.log(z), entropy, top + jnp.log(z))

    chunks = split(how.part, x_BTD.astype(how.dtype), targets_BT)
    found = lax.scan(*skipping(some, None, chunks, used_BT, how.part))[1]
    logps_BT, entropy_BT, logz_BT = (joined(x, targets_BT.shape[1]) for x in found)
    return logps_BT, entropy_BT, logz_BT


def _forward(how: Logits, *arguments: PyTree) -> tuple[tuple[jax.Array, jax.Array], tuple[Any, ...]]:
    x_BTD, head_VD, targets_BT, used_BT = (jax.tree.map(lambda argument: argument.value, one) for one in arguments)
    logps_BT, entropy_BT, logz_BT = _values(how, x_BTD, head_VD, targets_BT, used_BT)
    learns = () if arguments[1].perturbed else None  # a frozen head, as that of a model with adapters, gets no gradient
    return (logps_BT, entropy_BT), (x_BTD, head_VD, targets_BT, used_BT, logz_BT, learns)


def _backward(
    how: Logits, residuals: tuple[Any, ...], cotangents: tuple[jax.Array, ...]
) -> tuple[jax.Array | None, jax.Array | None, None, None]:
    x_BTD, head_VD, targets_BT, used_BT, logz_BT, learns = residuals
    if isinstance(cotangents[0], SymbolicZero):
        return None, None, None, None

    if (rows := block_rows(head_VD, how.dtype)) is not None:
        dlogp_BT = cotangents[0] if used_BT is None else cotangents[0] * used_BT
        blocks = how._replace(part=rows)
        dx_BTD, dhead_VD = gradients(x_BTD, head_VD, targets_BT, logz_BT, -dlogp_BT, dlogp_BT, blocks, learns is not None)
        return dx_BTD, dhead_VD, None, None

    def loss(logits: jax.Array, targets: jax.Array, logz: jax.Array, dlogp: jax.Array) -> tuple[tuple[()], jax.Array]:
        p = jnp.exp(logits / how.temperature - logz[..., None])
        return (), dlogp[..., None] * (target_mask(logits, targets) - p) / how.temperature

    arrays = (targets_BT, logz_BT, cotangents[0])
    _, dx_BTD, dhead_VD = head_gradients(loss, how, x_BTD, head_VD, (), arrays, learns is not None, used_BT)
    return dx_BTD, None if dhead_VD is None else dhead_VD.astype(head_VD.dtype), None, None


_chunked.defvjp(_forward, _backward, symbolic_zeros=True)
