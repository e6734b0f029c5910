"""The losses between a student and a teacher with different tokenizers: ULD, and GOLD, which compares shared tokens directly.

The same text is a row of T tokens for the student and one of U for the teacher. `spans.py` gives the spans of bytes at whose
ends both have a token's end. Both models have read the same bytes before a span, so their distributions of the first token of a
span are comparable. The probability that a model gives to the rest of the span joins by the chain rule (GOLD, the "observed"
merge of TRL): with tokens x_1 … x_n of the span,

    p(v | span) = p(v | before) · Π_{i = 2 … n} p(x_i | before, x_1 … x_{i−1}),     v in the vocabulary.

Extra axes: U places in the teacher's rows, E the teacher's model dimension, W its vocabulary, M shared tokens.
Sources: Boizard et al. 2024, "Towards Cross-Tokenizer Distillation: the Universal Logit Distillation Loss for LLMs" (ULD);
Patiño et al. 2025, "Unlocking On-Policy Distillation for Any Model Family" (GOLD; TRL, trl/experimental/gold).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from lm.align.cross.vocabulary import Shared
from lm.align.logprobs import logprobs_of
from lm.kernels.head import chunk_of, softcapped, split
from lm.kernels.ops import matmul
from lm.model.inputs import inputs_of
from lm.parallel.mesh import reshard
from lm.train.step import Objective, Sums, router_loss


def shared_divergence(log_p_M: jax.Array, log_q_M: jax.Array, kind: str, beta: float) -> jax.Array:
    """Return D(p, q) [...] in nats over the shared tokens of float32 log-probabilities [..., M], which need not sum to 1.

    With KL(p ‖ q) = Σ p·(log p − log q) − p + q, which is at least 0 and is 0 only for p = q whatever their sums:
    forward KL(p ‖ q), reverse KL(q ‖ p), jsd β·KL(p ‖ m) + (1 − β)·KL(q ‖ m) with m = β·p + (1 − β)·q (Agarwal et al. 2024,
    eq. 1). The jsd is TRL's. TRL's KLs lack − p + q, and fall without bound as q grows.
    """

    def kl(log_a: jax.Array, log_b: jax.Array) -> jax.Array:
        a, b = jnp.exp(log_a), jnp.exp(log_b)
        return jnp.sum(a * (log_a - log_b) - a + b, axis=-1)

    if kind == "forward":
        return kl(log_p_M, log_q_M)
    if kind == "reverse":
        return kl(log_q_M, log_p_M)
    log_m = jnp.logaddexp(log_p_M + jnp.log(beta), log_q_M + jnp.log1p(-beta))
    return beta * kl(log_p_M, log_m) + (1 - beta) * kl(log_q_M, log_m)


def sorted_distance(p: jax.Array, q: jax.Array) -> jax.Array:
    """Return Σ_i |p_(i) − q_(i)| [...] of probabilities [..., W] and [..., V], in descending order, the shorter with zeros.

    It is the Wasserstein distance of both where every two different tokens are equally far apart: the closed form of ULD
    (Boizard et al. 2024). It has a gradient with respect to q: the sign of q_(i) − p_(i) at the token of rank i.
    """
    p, fixed, V = lax.stop_gradient(p), lax.stop_gradient(q), q.shape[-1]
    size = max(p.shape[-1], V)
    ranked, order = lax.sort((fixed, jnp.zeros_like(fixed, jnp.int32) + jnp.arange(V, dtype=jnp.int32)), num_keys=1)
    padded = (jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(size - x.shape[-1], 0)]) for x in (ranked, jnp.sort(p)))
    apart = next(padded) - next(padded)
    slope = lax.sort((order, jnp.sign(apart)[..., size - V :]), num_keys=1)[1]
    return jnp.sum(jnp.abs(apart), axis=-1) + jnp.sum(slope * (q - fixed), axis=-1)


class Side(NamedTuple):
    """A model's part of a loss: hidden states at the first places of spans [B, T, D], its head [V, D] with the shared tokens
    first, its softcap, and log Π of the rest of each span [B, T]."""

    x_BTD: jax.Array
    head_VD: jax.Array
    softcap: float
    rest_BT: jax.Array


class Terms(NamedTuple):
    """Weighted sums over spans, float32 scalars: `shared_divergence`, `sorted_distance` of the other tokens, and the weight of
    the spans for whose first token both models find the same shared token likeliest."""

    shared: jax.Array
    sorted: jax.Array
    agreement: jax.Array


def compared(student: Side, teacher: Side, weights_BT: jax.Array, shared: int, d, dtype) -> Terms:
    """Return the sums of `Terms` over spans, in chunks of time steps whose logits are computed again in the backward pass.

    weights_BT: `span_weights`. shared: M. d: config.distill. dtype: of the operands of the products.
    """
    heads = student.head_VD, teacher.head_VD
    softcaps = student.softcap, teacher.softcap

    def of_tokens(head: jax.Array, softcap: float, x: jax.Array, rest: jax.Array) -> jax.Array:
        logits = matmul("btd,vd->btv", x, head, dtype=dtype, out=("batch", "length", None)).astype(jnp.float32)
        return jax.nn.log_softmax(softcapped(logits, softcap) / d.temperature) + rest[..., None]

    @jax.checkpoint
    def chunk(heads: tuple[jax.Array, jax.Array], weights: jax.Array, parts: tuple[jax.Array, ...]) -> Terms:
        q, p = map(of_tokens, heads, softcaps, parts[::2], parts[1::2])
        likeliest = jnp.argmax(q, axis=-1)
        each = Terms(
            shared_divergence(p[..., :shared], q[..., :shared], d.divergence, d.beta),
            sorted_distance(jnp.exp(p[..., shared:]), jnp.exp(q[..., shared:])),
            (likeliest == jnp.argmax(p, axis=-1)) & (likeliest < shared),
        )
        return Terms(*(jnp.sum(jnp.where(weights > 0, weights * x, 0.0), axis=-1) for x in each))

    size = chunk_of(*weights_BT.shape)
    chunks = split(size, weights_BT, student.x_BTD, student.rest_BT, teacher.x_BTD, teacher.rest_BT)
    sums = lax.scan(lambda _, parts: (None, chunk(heads, parts[0], parts[1:])), None, chunks)[1]
    return jax.tree.map(jnp.sum, sums)


def objective(config, teacher_graph: nnx.GraphDef, shared: Shared) -> Objective:
    """Return the objective Σ over spans of w·mix·(τ²·D + λ·τ·S) + Σ over tokens of w·(1 − mix)·nll.

    D is `shared_divergence` over the shared tokens and S `sorted_distance` of the others, of a teacher's p and a student's q at
    temperature τ. λ is config.distill.unshared. The weight w of a span is its number of the student's tokens, so a span of one
    token counts as in lm/align/distill.py. With config.distill.across "uld" no token counts as shared, and λ is 1.
    Batches: those of the student, with what `Aligner` adds. Metrics, means over tokens: loss, nll and entropy of the student;
    over tokens in spans: shared D, sorted S, agreement, and teacher_nll, −log p of the span's bytes per token of the student;
    aligned: the share of the tokens that are in spans.
    """
    d, count = config.distill, len(shared.student_M)

    def loss(model, batch, frozen, *, train, key=None):
        teacher = nnx.merge(teacher_graph, frozen)
        theirs = {name.removeprefix("teacher_"): x for name, x in batch.items() if name.startswith("teacher_")}
        hidden, seen = model.hidden(inputs_of(batch)), teacher.hidden(inputs_of(theirs))
        logps, entropy = logprobs_of(model, hidden.x_BTD, batch["targets"])
        tempered, given = logps, logprobs_of(teacher, seen.x_BTD, theirs["targets"])[0]
        if d.temperature != 1:
            tempered = logprobs_of(model, hidden.x_BTD, batch["targets"], d.temperature)[0]
            given = logprobs_of(teacher, seen.x_BTD, theirs["targets"], d.temperature)[0]
        T = batch["tokens"].shape[1]
        ours = Side(
            model.to_head(hidden.x_BTD),
            _shared_first(model.head_VD, shared.student_M),
            model.config.logit_softcap,
            _sums_of_spans(tempered, batch["span_ids"], T),
        )
        rest = _sums_of_spans(given, theirs["span_ids"], T)
        seen_BTE = _taken(teacher.to_head(seen.x_BTD), theirs["places"])
        head_WE = _shared_first(teacher.head_VD, shared.teacher_M)
        frozen_side = lax.stop_gradient((seen_BTE, head_WE, rest))
        their_side = Side(*frozen_side[:2], teacher.config.logit_softcap, frozen_side[2])
        sums = compared(ours, their_side, batch["span_weights"], count, d, config.dtype)

        weight, in_spans = jnp.sum(batch["weights"]), jnp.sum(batch["span_weights"])
        nll = -jnp.sum(batch["weights"] * logps)
        distance = d.temperature**2 * sums.shared + (d.unshared if count else 1.0) * d.temperature * sums.sorted
        total = d.mix * distance + (1 - d.mix) * nll
        first = _taken(given[..., None], theirs["places"])[..., 0]
        their_nll = -jnp.sum(jnp.where(batch["span_weights"] > 0, first + rest, 0.0))
        metrics = {"loss": (total, weight), "nll": (nll, weight), "entropy": (jnp.sum(batch["weights"] * entropy), weight)}
        named = {"shared": sums.shared, "sorted": sums.sorted, "agreement": sums.agreement, "teacher_nll": their_nll}
        metrics |= {name: (x, in_spans) for name, x in named.items()} | {"aligned": (in_spans, weight)}
        if not train:
            return total, Sums(metrics, {})
        router, loads = router_loss(model, [hidden])
        return total + router, Sums(metrics, loads)

    return Objective(loss, lambda batch: jnp.sum(batch["weights"]))


def _shared_first(head_VD: jax.Array, shared_M: np.ndarray) -> jax.Array:
    """Return a head's rows with those of the shared tokens first, in their order."""
    others = np.setdiff1d(np.arange(head_VD.shape[0]), shared_M)
    return reshard(head_VD, None, "embed")[np.concatenate([shared_M, others])]


def _taken(x_BUE: jax.Array, places_BT: jax.Array) -> jax.Array:
    """Return [B, T, E]: of each row the vectors at these places."""
    return jax.vmap(lambda x, places: x[places])(x_BUE, places_BT)


def _sums_of_spans(logps_BU: jax.Array, ids_BU: jax.Array, T: int) -> jax.Array:
    """Return [B, T]: the sum of the values whose id is t; ids of T count nowhere."""
    return jax.vmap(functools.partial(jax.ops.segment_sum, num_segments=T + 1))(logps_BU, ids_BU)[:, :T]
