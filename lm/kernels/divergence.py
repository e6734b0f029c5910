"""Divergence between a student's and a teacher's next-token distributions, in chunks: whole-batch logits never exist.

Like the chunked cross-entropy it is a sum over positions. The forward pass has both models' logits, so it computes the gradient
with respect to the student's hidden states and head; the backward pass scales it by the cotangent. That takes two products for
the logits and two for the gradients, none repeated.

Extra axis: E the teacher's model dimension.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lm.kernels.chunks import chunk_of, joined, partial_spec, reduced, split
from lm.kernels.matmul import gathered, product, spec_of
from lm.parallel.mesh import spec


class Divergence(NamedTuple):
    """Weighted sums over positions, float32 scalars. Only the objective has a gradient, with respect to x and head.

    objective: w·(mix·τ²·divergence + (1 − mix)·nll). The divergence's gradient shrinks as 1/τ²; the factor τ² keeps it at the
      size of the nll's (Hinton et al. 2015, §2).
    divergence: w·D(p, q) of the teacher's p and the student's q at temperature τ, in nats.
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


class Settings(NamedTuple):
    kind: str
    beta: float
    mix: float
    temperature: float
    softcap: float
    teacher_softcap: float


def divergence(
    x_BTD,
    head_VD,
    teacher_BTE,
    teacher_head_VE,
    targets_BT,
    weights_BT,
    *,
    dtype,
    kind: str = "forward",
    beta: float = 0.5,
    mix: float = 1.0,
    temperature: float = 1.0,
    softcap: float = 0.0,
    teacher_softcap: float = 0.0,
    chunk: int | None = None,
) -> Divergence:
    """Return the sums of `Divergence` for a student with logits x·headᵀ and a teacher with logits teacher·teacher_headᵀ.

    Args:
      x_BTD, teacher_BTE: hidden states after the last norm. head_VD, teacher_head_VE: heads over the same vocabulary.
      targets_BT: int32. weights_BT: float32.
      dtype: compute type of the products; logits, softmax and sums are float32.
      kind: of the divergence D(p, q) from teacher p to student q:
        "forward": KL(p ‖ q) = Σ p·(log p − log q), mode-covering;
        "reverse": KL(q ‖ p), mode-seeking;
        "jsd": β·KL(p ‖ m) + (1 − β)·KL(q ‖ m) with m = β·p + (1 − β)·q, 0 < β < 1 (generalised Jensen-Shannon: Agarwal et al.
        2024, "On-Policy Distillation of Language Models", eq. 1), bounded, and near β times the forward KL for small β.
      mix: share of the divergence in the objective; the rest is the targets' nll.
      temperature: τ > 0; both models' logits are divided by it for the divergence.
      softcap, teacher_softcap: logits s become softcap·tanh(s/softcap) (Gemma 2); 0: no cap.
      chunk: time steps per chunk; None: see `chunk_of`.
    """
    chunk = chunk or chunk_of(*targets_BT.shape)
    settings = Settings(kind, float(beta), float(mix), float(temperature), float(softcap), float(teacher_softcap))
    teacher_BTE, teacher_head_VE = lax.stop_gradient((teacher_BTE, teacher_head_VE))
    return _chunked(jnp.dtype(dtype), settings, chunk, x_BTD, head_VD, teacher_BTE, teacher_head_VE, targets_BT, weights_BT)


def divergence_reference(
    x_BTD,
    head_VD,
    teacher_BTE,
    teacher_head_VE,
    targets_BT,
    weights_BT,
    *,
    kind: str = "forward",
    beta: float = 0.5,
    mix: float = 1.0,
    temperature: float = 1.0,
    softcap: float = 0.0,
    teacher_softcap: float = 0.0,
) -> Divergence:
    """Reference twin: whole logits, float32, autodiff, the definitions written out."""

    def logits(x, head, cap):
        y = jnp.einsum("btd,vd->btv", x.astype(jnp.float32), head)
        return cap * jnp.tanh(y / cap) if cap else y

    student, teacher = logits(x_BTD, head_VD, softcap), logits(teacher_BTE, teacher_head_VE, teacher_softcap)
    q, p = jax.nn.softmax(student / temperature), jax.nn.softmax(teacher / temperature)

    def kl(a, b):
        return jnp.sum(a * (jnp.log(a) - jnp.log(b)), axis=-1)

    m = beta * p + (1 - beta) * q
    value = {"forward": kl(p, q), "reverse": kl(q, p), "jsd": beta * kl(p, m) + (1 - beta) * kl(q, m)}[kind]
    log_q = jax.nn.log_softmax(student)
    nll = -jnp.take_along_axis(log_q, targets_BT[..., None], axis=-1)[..., 0]
    each = (
        mix * temperature**2 * value + (1 - mix) * nll,
        value,
        kl(p, q),
        nll,
        -jnp.sum(jnp.exp(log_q) * log_q, axis=-1),
        jnp.argmax(student, axis=-1) == jnp.argmax(teacher, axis=-1),
    )
    return Divergence(*(jnp.sum(weights_BT * one) for one in each))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _chunked(dtype, settings, chunk, x_BTD, head_VD, teacher_BTE, teacher_head_VE, targets_BT, weights_BT):
    heads = gathered(head_VD.astype(dtype)), gathered(teacher_head_VE.astype(dtype))

    def body(sums, inputs):
        return jax.tree.map(jnp.add, sums, _chunk(*inputs, *heads, settings)[0]), None

    inputs = split(chunk, x_BTD.astype(dtype), teacher_BTE.astype(dtype), targets_BT, weights_BT)
    return jax.tree.map(jnp.sum, lax.scan(body, _nothing(x_BTD.shape[0]), inputs)[0])


def _forward(dtype, settings, chunk, x_BTD, head_VD, teacher_BTE, teacher_head_VE, targets_BT, weights_BT):
    head, teacher_head = gathered(head_VD.astype(dtype)), gathered(teacher_head_VE.astype(dtype))
    (B, T, _), where = x_BTD.shape, spec_of(head_VD)

    def body(carry, inputs):
        sums, dhead = carry
        more, dlogits = _chunk(*inputs, head, teacher_head, settings)
        dlogits = dlogits.astype(dtype)
        dx = product("btv,vd->btd", dlogits, head, spec("batch", None, None)).astype(dtype)
        dhead = dhead + product("btv,btd->vd", dlogits, inputs[0], partial_spec(where))
        return (jax.tree.map(jnp.add, sums, more), dhead), dx

    inputs = split(chunk, x_BTD.astype(dtype), teacher_BTE.astype(dtype), targets_BT, weights_BT)
    nothing = _nothing(B), jnp.zeros(head_VD.shape, jnp.float32, out_sharding=partial_spec(where))
    (sums, dhead), dx = lax.scan(body, nothing, inputs)
    return jax.tree.map(jnp.sum, sums), (joined(dx, T).astype(x_BTD.dtype), reduced(dhead, where))


def _backward(dtype, settings, chunk, residuals, cotangents):
    dx_BTD, dhead = residuals
    scale = cotangents.objective
    return (dx_BTD * scale).astype(dx_BTD.dtype), dhead * scale, None, None, None, None


_chunked.defvjp(_forward, _backward)


def _chunk(x, teacher, targets, weights, head, teacher_head, settings: Settings):
    """Return for one chunk: sums per row [B], and d objective / d student logits, float32 [B, c, V]."""
    beta, mix, temperature = settings.beta, settings.mix, settings.temperature
    student = _logits(x, head, settings.softcap)
    teacher = _logits(teacher, teacher_head, settings.teacher_softcap)
    log_q, log_p = jax.nn.log_softmax(student / temperature), jax.nn.log_softmax(teacher / temperature)
    log_q1 = log_q if temperature == 1 else jax.nn.log_softmax(student)
    kl = _expectation(log_p, log_p - log_q)
    value, slope = KINDS[settings.kind](log_p, log_q, kl, beta)

    ids = lax.broadcasted_iota(jnp.int32, student.shape, 2, out_sharding=spec("batch", None, "vocab"))
    is_target = ids == targets[..., None]
    nll = -jnp.sum(jnp.where(is_target, log_q1, 0.0), axis=-1)
    same = jnp.argmax(student, axis=-1) == jnp.argmax(teacher, axis=-1)
    objective = mix * temperature**2 * value + (1 - mix) * nll
    each = Divergence(objective, value, kl, nll, -_expectation(log_q1, log_q1), same)

    # d/ds of τ²·D(s/τ) is τ·D'(s/τ); d/ds of the nll is q − onehot.
    dlogits = mix * temperature * slope + (1 - mix) * (jnp.exp(log_q1) - is_target)
    if settings.softcap:
        dlogits = dlogits * (1 - (student / settings.softcap) ** 2)  # the derivative of softcap·tanh(s/softcap)
    return Divergence(*(jnp.sum(weights * one, axis=-1) for one in each)), weights[..., None] * dlogits


def _logits(x, head, softcap):
    logits = product("btd,vd->btv", x, head, spec("batch", None, "vocab"))
    return softcap * jnp.tanh(logits / softcap) if softcap else logits


def _expectation(log_p, values):
    """Return Σ p·values over the vocabulary. Values stay finite where p underflows, because they come from log p."""
    return jnp.sum(jnp.exp(log_p) * values, axis=-1)


# Each function returns (D [B, c], ∂D/∂s [B, c, V]) from log p, log q = log softmax(s), KL(p ‖ q) and β. The chain rule through
# the softmax gives ∂D/∂s = q·(g − Σ q·g) with g = ∂D/∂q. A constant in g cancels.


def _forward_kl(log_p, log_q, kl, beta):
    """g = −p/q, so ∂D/∂s = q − p."""
    return kl, jnp.exp(log_q) - jnp.exp(log_p)


def _reverse_kl(log_p, log_q, kl, beta):
    """g = log q − log p + 1, so ∂D/∂s = q·(log q − log p − D)."""
    value = _expectation(log_q, log_q - log_p)
    return value, jnp.exp(log_q) * (log_q - log_p - value[..., None])


def _jensen_shannon(log_p, log_q, kl, beta):
    """The derivatives through m sum to a constant, (1 − β)·(βp + (1 − β)q)/m = 1 − β, so g = (1 − β)·log(q/m)."""
    log_m = jnp.logaddexp(log_p + jnp.log(beta), log_q + jnp.log1p(-beta))
    of_student = _expectation(log_q, log_q - log_m)
    value = beta * _expectation(log_p, log_p - log_m) + (1 - beta) * of_student
    return value, (1 - beta) * jnp.exp(log_q) * (log_q - log_m - of_student[..., None])


KINDS = {"forward": _forward_kl, "reverse": _reverse_kl, "jsd": _jensen_shannon}


def _nothing(B: int) -> Divergence:
    return Divergence(*(jnp.zeros((B,), jnp.float32, out_sharding=spec("batch")) for _ in Divergence._fields))
