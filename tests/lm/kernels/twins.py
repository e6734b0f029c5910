"""Plain twins of functions that have no other backend: the definitions written out, in float32, by autodiff."""

import functools

import jax
import jax.numpy as jnp

from lm.kernels.divergence import Distillation, Divergence
from lm.kernels.head import softcapped
from lm.kernels.low_precision import KINDS, Scaled, _indices, _terms, in_result, rounded
from lm.model.inputs import inputs_of
from lm.model.transformer import Transformer


def logprobs_reference(model: Transformer, batch: dict, temperature: float = 1.0) -> tuple[jax.Array, jax.Array]:
    """Do the same with full logits; the reference for tests."""
    logits = model(inputs_of(batch))
    logp_BTV = jax.nn.log_softmax(logits / temperature, axis=-1)
    entropy = -jnp.sum(jnp.exp(logp_BTV) * logp_BTV, axis=-1)
    return jnp.take_along_axis(logp_BTV, batch["targets"][..., None], axis=-1)[..., 0], entropy


def divergence_reference(
    x_BTD: jax.Array,
    head_VD: jax.Array,
    teacher_BTE: jax.Array,
    teacher_head_VE: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    d: Distillation,
) -> Divergence:
    """Reference twin: whole logits, float32, autodiff, the definitions written out."""

    def logits(x: jax.Array, head: jax.Array, cap: float) -> jax.Array:
        return softcapped(jnp.einsum("btd,vd->btv", x.astype(jnp.float32), head), cap)

    student, teacher = logits(x_BTD, head_VD, d.softcap), logits(teacher_BTE, teacher_head_VE, d.teacher_softcap)
    q, p = jax.nn.softmax(student / d.temperature), jax.nn.softmax(teacher / d.temperature)

    def kl(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.sum(a * (jnp.log(a) - jnp.log(b)), axis=-1)

    m = d.beta * p + (1 - d.beta) * q
    value = {"forward": kl(p, q), "reverse": kl(q, p), "jsd": d.beta * kl(p, m) + (1 - d.beta) * kl(q, m)}[d.kind]
    log_q = jax.nn.log_softmax(student)
    nll = -jnp.take_along_axis(log_q, targets_BT[..., None], axis=-1)[..., 0]
    each = (
        d.mix * d.temperature**2 * value + (1 - d.mix) * nll,
        value,
        kl(p, q),
        nll,
        -jnp.sum(jnp.exp(log_q) * log_q, axis=-1),
        jnp.argmax(student, axis=-1) == jnp.argmax(teacher, axis=-1),
    )
    return Divergence(*(jnp.sum(weights_BT * one) for one in each))


def grouped_matmul_reference(x_ND: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array) -> jax.Array:
    """Reference twin: every group multiplies all rows and keeps its own. Float32; rows after the last group are 0."""
    ends_E = jnp.cumsum(sizes_E)
    rows_N, parts = jnp.arange(x_ND.shape[0]), []
    for e in range(w_EDF.shape[0]):
        mine_N = (rows_N >= ends_E[e] - sizes_E[e]) & (rows_N < ends_E[e])
        parts.append(jnp.where(mine_N[:, None], jnp.dot(x_ND, w_EDF[e], precision="highest"), 0.0))
    return sum(parts[1:], start=parts[0])


def low_precision_reference(
    equation: str, x: jax.Array, w: jax.Array, dy: jax.Array, *, kind: str
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Reference twin: return float32 (y, dx, dw) of one device by float32 products of the rounded operands; dy: like y."""
    (x_axes, w_axes), y_axes = _terms(equation)
    of, dot = KINDS[kind], functools.partial(jnp.einsum, precision="highest")

    def values(q: Scaled) -> jax.Array:
        return q.values.astype(jnp.float32)

    def floats(q: Scaled) -> jax.Array:
        return values(q) if q.scale is None else values(q) * q.scale

    inputs, outputs, rows = _indices(x_axes, w_axes), _indices(y_axes, w_axes), _indices(y_axes, x_axes)
    q_x, q_w = rounded(x, inputs, of.values), rounded(w, _indices(w_axes, x_axes), of.values)
    y = dot(equation, floats(q_x), floats(q_w))
    for_x = rounded(dy * in_result(q_w.scale, w_axes, y_axes), outputs, of.gradients)
    for_w = rounded(dy * in_result(q_x.scale, x_axes, y_axes), rows, of.gradients)
    dx = dot(f"{y_axes},{w_axes}->{x_axes}", floats(for_x), values(q_w))
    return y, dx, dot(f"{x_axes},{y_axes}->{w_axes}", values(q_x), floats(for_w))
