"""Divergence between a student's and a teacher's next-token distributions, in chunks: whole-batch logits never exist.

Extra axis: E the teacher's model dimension.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from lm.kernels.head import Logits, chunk_of, head_logits, head_loss, target_mask
from lm.kernels.matmul import gathered


@dataclasses.dataclass(frozen=True)
class Distillation:
    """The objective mix·τ²·D(p, q) + (1 − mix)·nll of a teacher's p and a student's q.

    kind: of the divergence D(p, q):
      "forward": KL(p ‖ q) = Σ p·(log p − log q), mode-covering;
      "reverse": KL(q ‖ p), mode-seeking;
      "jsd": β·KL(p ‖ m) + (1 − β)·KL(q ‖ m) with m = β·p + (1 − β)·q, 0 < β < 1 (generalised Jensen-Shannon: Agarwal et al.
      2024, "On-Policy Distillation of Language Models", eq. 1), bounded, and near β times the forward KL for small β.
    mix: share of the divergence in the objective; the rest is the targets' nll.
    temperature: τ > 0; both models' logits are divided by it for the divergence. The divergence's gradient shrinks as 1/τ²;
      the factor τ² keeps it at the size of the nll's (Hinton et al. 2015, §2).
    softcap, teacher_softcap: logits s become softcap·tanh(s/softcap) (Gemma 2); 0: no cap.
    chunk: time steps per chunk; 0: see `chunk_of`.
    """

    kind: str = "forward"
    beta: float = 0.5
    mix: float = 1.0
    temperature: float = 1.0
    softcap: float = 0.0
    teacher_softcap: float = 0.0
    chunk: int = 0


class Divergence(NamedTuple):
    """Weighted sums over positions, float32 scalars. Only the objective has a gradient, with respect to x and head.

    objective: w·(mix·τ²·divergence + (1 − mix)·nll).
    divergence: w·D(p, q) at temperature τ, in nats.
    kl: w·KL(p ‖ q) at temperature τ, for every kind of divergence.
    nll: −w·log q(target). entropy: w·H(q). Both at temperature 1.
    agreement: w where both models have the same most likely token.
    """

    objective: jax.Array
    divergence: jax.Array
    kl: jax.Array
    nll: jax.Array
    entropy: jax.Array
    agreement: jax.Array


@jax.named_scope("head_loss")
def divergence(
    x_BTD: jax.Array,
    head_VD: jax.Array,
    teacher_BTE: jax.Array,
    teacher_head_VE: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    d: Distillation,
    *,
    dtype: DTypeLike,
) -> Divergence:
    """Return the sums of `Divergence` for a student with logits x·headᵀ and a teacher with logits teacher·teacher_headᵀ.

    Args:
      x_BTD, teacher_BTE: hidden states after the last norm. head_VD, teacher_head_VE: heads over the same vocabulary.
      targets_BT: int32. weights_BT: float32.
      dtype: compute type of the products; logits, softmax and sums are float32.
    """
    dtype, chunk = jnp.dtype(dtype), d.chunk or chunk_of(*targets_BT.shape)
    teacher_BTE, teacher_head_VE = lax.stop_gradient((teacher_BTE.astype(dtype), gathered(teacher_head_VE.astype(dtype))))
    arrays = (teacher_BTE, targets_BT, weights_BT)
    how = Logits(dtype, d.softcap, chunk)
    return head_loss(functools.partial(_chunk, d), how, x_BTD, head_VD, (teacher_head_VE,), arrays)


def _chunk(
    d: Distillation, student: jax.Array, teacher: jax.Array, targets: jax.Array, weights: jax.Array, teacher_head: jax.Array
) -> tuple[Divergence, jax.Array]:
    """Return for one chunk: sums per row [B], and d objective / d student logits, float32 [B, c, V]."""
    teacher = head_logits(teacher, teacher_head, d.teacher_softcap)
    log_q, log_p = jax.nn.log_softmax(student / d.temperature), jax.nn.log_softmax(teacher / d.temperature)
    log_q1 = log_q if d.temperature == 1 else jax.nn.log_softmax(student)
    kl = _expectation(log_p, log_p - log_q)
    value, slope = KINDS[d.kind](log_p, log_q, kl, d.beta)

    is_target = target_mask(student, targets)
    nll = -jnp.sum(jnp.where(is_target, log_q1, 0.0), axis=-1)
    same = jnp.argmax(student, axis=-1) == jnp.argmax(teacher, axis=-1)
    objective = d.mix * d.temperature**2 * value + (1 - d.mix) * nll
    each = Divergence(objective, value, kl, nll, -_expectation(log_q1, log_q1), same)

    # d/ds of τ²·D(s/τ) is τ·D'(s/τ); d/ds of the nll is q − onehot.
    dlogits = d.mix * d.temperature * slope + (1 - d.mix) * (jnp.exp(log_q1) - is_target)
    return Divergence(*(jnp.sum(weights * one, axis=-1) for one in each)), weights[..., None] * dlogits


def _expectation(log_p: jax.Array, values: jax.Array) -> jax.Array:
    """Return Σ p·values over the vocabulary. Values stay finite where p underflows, because they come from log p."""
    return jnp.sum(jnp.exp(log_p) * values, axis=-1)


# Each function returns (D [B, c], ∂D/∂s [B, c, V]) from log p, log q = log softmax(s), KL(p ‖ q) and β. The chain rule through
# the softmax gives ∂D/∂s = q·(g − Σ q·g) with g = ∂D/∂q. A constant in g cancels.


def _forward_kl(log_p: jax.Array, log_q: jax.Array, kl: jax.Array, beta: float) -> tuple[jax.Array, jax.Array]:
    """g = −p/q, so ∂D/∂s = q − p."""
    return kl, jnp.exp(log_q) - jnp.exp(log_p)


def _reverse_kl(log_p: jax.Array, log_q: jax.Array, kl: jax.Array, beta: float) -> tuple[jax.Array, jax.Array]:
    """g = log q − log p + 1, so ∂D/∂s = q·(log q − log p − D)."""
    value = _expectation(log_q, log_q - log_p)
    return value, jnp.exp(log_q) * (log_q - log_p - value[..., None])


def _jensen_shannon(log_p: jax.Array, log_q: jax.Array, kl: jax.Array, beta: float) -> tuple[jax.Array, jax.Array]:
    """The derivatives through m sum to a constant, (1 − β)·(βp + (1 − β)q)/m = 1 − β, so g = (1 − β)·log(q/m)."""
    log_m = jnp.logaddexp(log_p + jnp.log(beta), log_q + jnp.log1p(-beta))
    of_student = _expectation(log_q, log_q - log_m)
    value = beta * _expectation(log_p, log_p - log_m) + (1 - beta) * of_student
    return value, (1 - beta) * jnp.exp(log_q) * (log_q - log_m - of_student[..., None])


KINDS = {"forward": _forward_kl, "reverse": _reverse_kl, "jsd": _jensen_shannon}
