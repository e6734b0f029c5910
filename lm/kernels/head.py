"""The linear head over the vocabulary: logits, and losses of logits that never exist for a whole batch.

Sequences are split into chunks of time steps. A loop over chunks should send nothing between devices that hold different
tokens. So sums are kept per row, and the head's gradient stays a partial sum on each device (`partial_spec`) until the loop
ends (`reduced`). If a context axis splits the sequences, each device's part of a sequence becomes a row of its own.

A loss that is a sum over positions can compute its gradient in the forward pass: each chunk's right after its logits. The
backward pass only scales it by the cotangent. That takes one product for the logits and two for the gradients, none repeated
(the idea of Liger Kernel's fused linear cross-entropy, Hsu et al. 2024).
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.typing import DTypeLike

from lm.kernels.matmul import gathered, partial_spec, reduced
from lm.kernels.ops import Weight, matmul, product
from lm.parallel.arrays import PyTree
from lm.parallel.context import context_ways
from lm.parallel.mesh import platform, reshard, row_ways, spec, spec_of

CHUNK_TOKENS = 2048  # positions per device whose logits exist at once
CPU_CHUNK_TOKENS = 512  # on a CPU, where more are no faster


def chunk_of(B: int, T: int) -> int:
    """Return the time steps per chunk: at most CHUNK_TOKENS positions per device, on a CPU CPU_CHUNK_TOKENS."""
    most = min(CHUNK_TOKENS, CPU_CHUNK_TOKENS) if platform() == "cpu" else CHUNK_TOKENS
    return even(T // context_ways(), most // max(1, B // row_ways()))


def even(length: int, most: int) -> int:
    """Return the chunk length, at most `most`, for which equal chunks cover `length` with the least padding."""
    chunks = max(1, -(-length // max(1, most)))
    return max(1, -(-length // chunks))


def split(chunk: int, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Reshape [B, T, …] to [⌈T / chunk⌉, B, chunk, …]: rows sharded over the mesh, zeros as padding after T.

    With a context axis of n devices it is [⌈T / (n · chunk)⌉, n · B, chunk, …].
    """

    def one(x: jax.Array) -> jax.Array:
        x = _as_rows(x)
        if x.shape[1] % chunk:
            x = jnp.pad(x, [(0, -x.shape[1] % chunk if axis == 1 else 0) for axis in range(x.ndim)])
        return jnp.moveaxis(_reshaped(x, x.shape[0], x.shape[1] // chunk, chunk, *x.shape[2:]), 1, 0)

    return tuple(map(one, arrays))


def joined(x: jax.Array, T: int) -> jax.Array:
    """Reshape chunks to [B, T, …]; the inverse of `split`."""
    x = jnp.moveaxis(x, 0, 1)
    x = _reshaped(x, x.shape[0], x.shape[1] * x.shape[2], *x.shape[3:])[:, : T // context_ways()]
    rest = [None] * (x.ndim - 2)
    return x if context_ways() == 1 else _same_parts(x, ("rows", None, *rest), ("batch", "length", *rest))


def _as_rows(x: jax.Array) -> jax.Array:
    """Return [n · B, T / n, …] of x [B, T, …] with each device's part of the tokens in its own rows. No token moves."""
    rest = [None] * (x.ndim - 2)
    x = reshard(x, "batch", "length", *rest)
    return x if context_ways() == 1 else _same_parts(x, ("batch", "length", *rest), ("rows", None, *rest))


def _same_parts(x: jax.Array, before: Sequence[str | None], after: Sequence[str | None]) -> jax.Array:
    """Return the array with partition `after` of which every device holds what it holds of x with partition `before`."""
    return jax.shard_map(lambda part: part, in_specs=spec(*before), out_specs=spec(*after))(x)


def _reshaped(x: jax.Array, *shape: int) -> jax.Array:
    # With a partition, because JAX does not know where that of a single row goes.
    return lax.reshape(x, shape, out_sharding=spec("rows", *[None] * (len(shape) - 1)))


HeadGradients: TypeAlias = tuple[jax.Array, jax.Array | None]  # dx [B, T, D]; dhead [V, D], None for a frozen head
ChunkLoss: TypeAlias = Callable[..., tuple[PyTree, jax.Array]]  # see `head_gradients`
Body: TypeAlias = Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]  # of a lax.scan


class Logits(NamedTuple):
    """How the logits of a head are computed.

    dtype: of the operands. softcap: see `softcapped`. rounded: dtype that logits are rounded to before the cap.
    temperature: divides the capped logits; only losses that say so know it.
    part: what is computed at once: time steps of a chunk, or rows of a block of the vocabulary (vocabulary.py).
    """

    dtype: DTypeLike
    softcap: float = 0.0
    part: int = 0
    rounded: DTypeLike = jnp.float32
    temperature: float = 1.0


def softcapped(scores: jax.Array, cap: float) -> jax.Array:
    """Return cap·tanh(scores / cap), or the scores themselves if the cap is 0 (Gemma 2, 2024)."""
    return cap * jnp.tanh(scores / cap) if cap else scores


def softcap_slope(capped: jax.Array, cap: float) -> jax.Array:
    """Return the derivative of `softcapped` from its results: 1 − (capped / cap)²."""
    return 1 - jnp.square(capped / cap)


def head_logits(x_BTD: jax.Array, head: Weight, softcap: float, dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Return float32 logits [B, T, V] of hidden states and a gathered head of one dtype, rounded to `dtype` before the cap.

    head: [V, D], or packed from its transpose.
    """
    if isinstance(head, jax.Array):
        logits = product("btd,vd->btv", x_BTD, head, spec("rows", None, "vocab"))
    else:
        x_BTD, out = reshard(x_BTD, None, None, None), ("rows", None, "vocab")
        logits = reshard(matmul("btd,dv->btv", x_BTD, head, dtype=jnp.float32, out=out), *out)
    return softcapped(logits.astype(dtype).astype(jnp.float32), softcap)


def target_mask(logits_BTV: jax.Array, targets_BT: jax.Array) -> jax.Array:
    """Return bool [B, T, V]: where the vocabulary id is the target. It may be split over the vocabulary, unlike a gather."""
    ids = lax.broadcasted_iota(jnp.int32, logits_BTV.shape, 2, out_sharding=spec("rows", None, "vocab"))
    return ids == targets_BT[..., None]


def exponentials(logits_BTV: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Return the largest logit [B, T], the logits below it [B, T, V], their exponentials, and the sum of these [B, T]."""
    top = jnp.max(logits_BTV, axis=-1)
    below = logits_BTV - top[..., None]
    e = jnp.exp(below)
    return top, below, e, jnp.sum(e, axis=-1)


def head_gradients(
    loss: ChunkLoss,
    how: Logits,
    x_BTD: jax.Array,
    head_VD: jax.Array,
    fixed: Sequence[jax.Array],
    arrays: Sequence[jax.Array],
    learns: bool = True,
    used_BT: jax.Array | None = None,
) -> tuple[PyTree, jax.Array, jax.Array | None]:
    """Return a loss's results stacked over chunks, and its gradients: dx [B, T, D] in x's dtype, dhead float32 [V, D].

    loss(logits, *arrays, *fixed) -> (results, d loss / d logits) of one chunk: logits float32 [B, chunk, V] after the cap.
    arrays: [B, T, …], split like x. fixed: given whole to each chunk.
    learns: whether the head has a gradient; if not, dhead is None and costs nothing.
    used_BT: bool; a chunk without any used position is skipped, and its results and gradients are 0. None: skip nothing.
    """
    head, T, where = gathered(head_VD.astype(how.dtype)), x_BTD.shape[1], spec_of(head_VD)

    def body(dhead: jax.Array | None, inputs: tuple[jax.Array, ...]) -> tuple[jax.Array | None, tuple[PyTree, jax.Array]]:
        x, *arrays = inputs
        logits = head_logits(x, head, how.softcap, how.rounded)
        results, dlogits = loss(logits, *arrays, *fixed)
        if how.softcap:
            dlogits = dlogits * softcap_slope(logits, how.softcap)
        dlogits = dlogits.astype(how.dtype)
        dx = product("btv,vd->btd", dlogits, head, spec("rows", None, None)).astype(how.dtype)
        if dhead is not None:
            dhead = product("btv,btd->vd", dlogits, x, partial_spec(where), total=dhead)
        return dhead, (results, dx)

    nothing = jnp.zeros(head_VD.shape, jnp.float32, out_sharding=partial_spec(where)) if learns else None
    chunks = split(how.part, x_BTD.astype(how.dtype), *arrays)
    dhead, (results, dx) = lax.scan(*skipping(body, nothing, chunks, used_BT, how.part))
    return results, joined(dx, T).astype(x_BTD.dtype), reduced(dhead, where) if learns else None


def skipping(
    body: Body, carry: PyTree, chunks: tuple[jax.Array, ...], used_BT: jax.Array | None, chunk: int
) -> tuple[Body, PyTree, PyTree]:
    """Return the arguments of a lax.scan that runs body(carry, chunk) -> (carry, results) on the used chunks only.

    The results of the others are 0.
    """
    if used_BT is None:
        return body, carry, chunks
    # Computed before the loop, which should send nothing between devices.
    used_N = reshard(jnp.any(split(chunk, used_BT)[0], axis=(1, 2)), None)

    def some(carry: PyTree, inputs: tuple[jax.Array, tuple[jax.Array, ...]]) -> tuple[PyTree, PyTree]:
        used, arrays = inputs
        _, shapes = jax.eval_shape(body, carry, arrays)
        return lax.cond(used, body, lambda carry, _: (carry, zeros(shapes)), carry, arrays)

    return some, carry, (used_N, chunks)


def zeros(shapes: PyTree) -> PyTree:
    """Return zeros of these shapes, dtypes and shardings."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype, out_sharding=x.sharding and x.sharding.spec), shapes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def head_loss(
    loss: ChunkLoss,
    how: Logits,
    x_BTD: jax.Array,
    head_VD: jax.Array,
    fixed: Sequence[jax.Array],
    arrays: Sequence[jax.Array],
    used_BT: jax.Array | None = None,
) -> PyTree:
    """Return the float32 sums over all positions; only the first has a gradient, with respect to x and head.

    loss: as in `head_gradients`; its results are a tuple of float32 sums per row, [B]. used_BT: as in `head_gradients`.
    """
    head = gathered(head_VD.astype(how.dtype))

    def sums(_: None, inputs: tuple[jax.Array, ...]) -> tuple[None, PyTree]:
        x, *arrays = inputs
        return None, loss(head_logits(x, head, how.softcap), *arrays, *fixed)[0]

    chunks = split(how.part, x_BTD.astype(how.dtype), *arrays)
    return jax.tree.map(jnp.sum, lax.scan(*skipping(sums, None, chunks, used_BT, how.part))[1])


def _forward(loss: ChunkLoss, how: Logits, *arguments: PyTree) -> tuple[PyTree, HeadGradients]:
    # A frozen head, as that of a model with adapters, gets no gradient.
    learns = arguments[1].perturbed
    x_BTD, head_VD, fixed, arrays, used_BT = jax.tree.map(lambda argument: argument.value, arguments)
    sums, dx_BTD, dhead_VD = head_gradients(loss, how, x_BTD, head_VD, fixed, arrays, learns, used_BT)
    return jax.tree.map(jnp.sum, sums), (dx_BTD, dhead_VD)


def _backward(loss: ChunkLoss, how: Logits, gradients: HeadGradients, cotangents: PyTree) -> tuple[jax.Array | None, ...]:
    return (*scaled(gradients, cotangents[0]), None, None, None)


def scaled(gradients: HeadGradients, cotangent: jax.Array | SymbolicZero) -> tuple[jax.Array | None, jax.Array | None]:
    """Return the gradients (dx, dhead or None), times the cotangent of their sum; None for both if that is a symbolic zero."""
    dx_BTD, dhead_VD = gradients
    if isinstance(cotangent, SymbolicZero):
        return None, None
    return (dx_BTD * cotangent).astype(dx_BTD.dtype), None if dhead_VD is None else dhead_VD * cotangent


head_loss.defvjp(_forward, _backward, symbolic_zeros=True)


class CrossEntropy(NamedTuple):
    """Constants of a cross-entropy.

    z_loss: coefficient of the auxiliary loss that keeps log Z near 0 (PaLM, Chowdhery et al. 2022, uses 1e-4).
    softcap: logits s become softcap·tanh(s/softcap) (Gemma 2); 0: no cap.
    dft: multiply the nll by p(target), with no gradient through the factor (dynamic fine-tuning).
    measured: also return Σ w·entropy of the softmax, and Σ w over the positions whose most likely id is the target.
    sparse: skip chunks whose weights are all 0, such as those of prompts.
    chunk: time steps per chunk; 0: as many as give a device at most CHUNK_TOKENS positions (lm/kernels/head.py).
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
