"""The one door to the kernels: what each operation computes, and by which backend.

Whoever wants one of these operations calls it here. A function says what it returns; the backends above it compute that. A call
goes to the first one that runs on the platform of the mesh and takes its arguments; the last resort is the operation's plain
twin in lm/kernels/reference.py, which takes every call and to which tests hold the others.

`--kernels=reference` (or LMCRAFT_KERNELS=reference for commands without that flag) computes everything by the plain twins;
`--kernels=attention=blocks,product=xla` forces the backends of single operations. `summary` says which ones served so far.

Axes: B batch, T tokens, S keys, D model, H query heads, G key/value heads, K head size, V head size of values or vocabulary,
E experts, F hidden units, N rows, R sequences, P pages of a sequence.
"""

import contextlib
import contextvars
import functools
import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple, ParamSpec, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from lm.errors import UserError
from lm.parallel.arrays import AnyArray
from lm.parallel.context import context_ways
from lm.parallel.mesh import platform, ways

if TYPE_CHECKING:
    from lm.kernels.attention import Scoring, Visible
    from lm.kernels.cpu.packed import Packed
    from lm.kernels.cpu.pages import Pages, Places
    from lm.kernels.head import CrossEntropy
    from lm.kernels.quantize import Integers
    from lm.kernels.recurrence import Flow

VARIABLE = "LMCRAFT_KERNELS"

Weight: TypeAlias = "jax.Array | Packed | Integers"  # stored as floats, packed for a CPU, or as integers with scales
P = ParamSpec("P")
R = TypeVar("R")


_WEIGHTS: contextvars.ContextVar[str | None] = contextvars.ContextVar("weights", default=None)


@contextlib.contextmanager
def rows_alone(weights: str = "") -> Iterator[None]:
    """While a model is traced in this context, the bits of a row do not depend on the number of rows, on one device.

    weights: "" in an engine, whose matrices are packed. Where a model is trained, the dtype to which matrices are rounded: what
      it computes in float32 are then the values of the engine with such weights (lm/kernels/cpu/alone.py).
    """
    token = _WEIGHTS.set(weights)
    try:
        yield
    finally:
        _WEIGHTS.reset(token)


def rows_are_alone() -> bool:
    """Return whether the program that is traced computes rows alone."""
    return _WEIGHTS.get() is not None and jax.sharding.get_abstract_mesh().size <= 1


def rounded_weights(*_: object, **__: object) -> str:
    """Return the dtype to which matrices are rounded in training with the values of an engine; "" elsewhere."""
    return (_WEIGHTS.get() or "") if rows_are_alone() else ""


class Backend(NamedTuple):
    """One way to compute an operation.

    module: in lm.kernels; it has a function of the operation's name and arguments. If it has a function `takes`, which gets the
      same arguments, that says which calls it computes. It is imported when it is first asked: Pallas and numba take a second.
    on: the platform that it needs; "": any.
    when: which calls it is asked for, as a function of their arguments, where the module need not be imported to tell.
    """

    name: str
    module: str
    on: str = ""
    when: Callable[..., object] | None = None


REFERENCE = Backend("reference", "reference")
TABLE: dict[str, tuple[Backend, ...]] = {}  # the backends of each operation, in the order in which they are asked
_served: dict[str, set[str]] = {}


def operation(*backends: Backend) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Compute a function, of which only the arguments and the docstring are written, by the first of these backends that can.

    Raises UserError if another one is forced that does not compute a call.
    """

    def declare(described: Callable[P, R]) -> Callable[P, R]:
        name = described.__name__
        TABLE[name] = backends

        @functools.wraps(described)
        def call(*arguments: P.args, **options: P.kwargs) -> R:
            here, forced = platform(), _forced(os.environ.get(VARIABLE, "")).get(name)
            for backend in (*TABLE[name], REFERENCE):
                if forced not in (None, backend.name) or backend.on not in ("", here):
                    continue
                if backend.when is None or backend.when(*arguments, **options):
                    module = _module(backend.module)
                    if not hasattr(module, "takes") or module.takes(*arguments, **options):
                        _served.setdefault(name, set()).add(backend.name)
                        return getattr(module, name)(*arguments, **options)
            raise UserError(f"--kernels={name}={forced}: it does not compute this call on a {here}; leave it out")

        return call

    return declare


def summary() -> str:
    """Return the backends that have served calls so far, by operation. A call counts when its program is traced."""
    return ", ".join([f"{name} {'/'.join(sorted(_served[name]))}" for name in TABLE if name in _served])


@functools.cache
def _forced(choice: str) -> dict[str, str]:
    """Return the forced backend of each operation that has one. Raises UserError for an unknown name."""
    if choice == REFERENCE.name:
        return dict.fromkeys(TABLE, REFERENCE.name)
    forced = {}
    for part in filter(None, choice.split(",")):
        operation, _, name = part.partition("=")
        if operation not in TABLE:
            raise UserError(f"--kernels={choice}: {operation} is no operation; use reference, or one of {', '.join(TABLE)}")
        names = [backend.name for backend in (*TABLE[operation], REFERENCE)]
        if name not in names:
            raise UserError(f"--kernels={choice}: {operation} has no backend {name!r}; it has {', '.join(names)}")
        forced[operation] = name
    return forced


@functools.cache
def _module(name: str) -> ModuleType:
    return importlib.import_module(f"lm.kernels.{name}")


def _is_stored(how: str) -> Callable[..., bool]:
    """Return a function that says whether a weight or table is stored so: "packed" for a CPU, or as "integers" with scales."""
    return lambda *arguments, **_: how in [getattr(argument, "stored", "") for argument in arguments]


ALONE = Backend("alone", "cpu.alone", "cpu", when=rounded_weights)  # has the values of an engine


# --- Products ---


@operation(
    Backend("packed", "cpu.packed", when=_is_stored("packed")),
    Backend("integers", "quantize", when=_is_stored("integers")),
    ALONE,
    Backend("low precision", "low_precision", when=lambda *_, precision="none", **__: precision != "none"),
    Backend("mixed precision", "matmul"),
)
def matmul(
    equation: str, x: jax.Array, w: "Weight", *, dtype: DTypeLike, out: tuple[str | None, ...], precision: str = "none"
) -> jax.Array:
    """Return einsum(equation, x, w) with operands rounded to `dtype` and float32 accumulation, forward and backward.

    Args:
      equation: `x,w->y`, such as "btd,dhk->bthk". Every letter is in two of the three terms, once in each.
      x: activations, any float dtype.
      w: float32 with the sharding of its declaration; or packed, or integers with scales, which have no gradient.
      dtype: of the operands and of the result.
      out: logical axes of the result.
      precision: "int8" or "float8": what operands are rounded to in training (lm/kernels/low_precision.py); "none": `dtype`.
    Returns: the product in `dtype`; gradients are `x.dtype` for x and `w.dtype` for w.
    """


@operation(Backend("compiled", "cpu.packed_product", "cpu"))
def packed_product(x_MK: jax.Array, packed: "Packed", dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Return x · w [M, N], accumulated in float32. x: any float dtype; dtype: of the result."""


@operation(Backend("compiled", "dense.large", "cpu"), Backend("xla", "matmul"))
def product(
    equation: str,
    a: jax.Array,
    b: jax.Array,
    out_spec: PartitionSpec | None = None,
    *,
    dtype: DTypeLike | None = None,
    result: DTypeLike = jnp.float32,
    total: jax.Array | None = None,
) -> jax.Array:
    """Return the einsum of operands rounded to `dtype` (None: as they are), added up in float32, in the dtype `result`.

    out_spec: partition of the result; None: as JAX infers it. total: float32 array that a float32 result is added to; compiled,
    where it is, if nothing else reads it, and without a gradient.
    """


@operation(Backend("packed", "cpu.packed", when=_is_stored("packed")), Backend("exchanged ids", "embedding"))
def embedding(table_VD: "jax.Array | Packed", tokens_BT: jax.Array, dtype: DTypeLike, axis: str = "length") -> jax.Array:
    """Return the table's rows, [B, T, D] in `dtype`; the gradient of a float32 table is added up in float32.

    axis: the logical axis of T in the result, "length" or "sequence" (lm/parallel/context.py).
    """


@operation(Backend("compiled", "cpu.row_sums", "cpu"))
def row_sums(x: jax.Array) -> jax.Array:
    """Return the float32 sums of x over its last axis, which stays with length 1; compiled, a row's bits depend on it alone."""


@operation(Backend("compiled", "cpu.row_sums", "cpu"))
def row_logprobs(logits_SV: jax.Array, token_S: jax.Array, divisor_S: AnyArray) -> tuple[jax.Array, jax.Array]:
    """Return log p(token) of each row of logits / divisor and log Z, float32 [S]; compiled, a row's bits depend on it alone."""


@operation(Backend("compiled", "dense.fused", "cpu", lambda *_: not rows_are_alone()))  # `takes` looks at the size
def silu_gated(gate: jax.Array, up: jax.Array) -> jax.Array:
    """Return silu(gate)·up in their dtype, computed in float32 (SwiGLU, Shazeer 2020)."""


@operation(Backend("compiled", "dense.fused", "cpu"))
def rms_norm(x: jax.Array, scale: jax.Array, eps: float, alone: bool = False) -> jax.Array:
    """Return x / √(mean(x²) + ε) · scale in x's dtype, computed in float32 (Zhang and Sennrich 2019).

    The mean runs over the axes of `scale`. alone: compiled, the bits of a row depend on it alone, as in `row_sums`.
    """


# --- Attention ---


@operation(
    Backend("ring", "ring", when=lambda *_, **__: context_ways() > 1),
    Backend("splash", "tpu.attention", "tpu"),
    Backend("triton", "gpu.attention", "gpu"),
    ALONE,
    Backend("compiled", "dense.attention", "cpu"),
    Backend("blocks", "attention"),
)
def attention(
    q_BTHK: jax.Array,
    k_BSGK: jax.Array,
    v_BSGV: jax.Array,
    visible: "Visible",
    scoring: "Scoring",
    sinks_H: jax.Array | None = None,
) -> jax.Array:
    """Return softmax(scale·q·kᵀ + mask)·v (Vaswani et al. 2017); H query heads share G key/value heads (Ainslie et al. 2023).

    Args:
      q, k, v: in the compute dtype; T may be split over the mesh's context axis.
      visible: T = S, and query t is in slot t, in the order of lm.parallel.context.slots.
      sinks_H: logits added to the softmax's denominator only; their value is 0 (gpt-oss, 2025; Xiao et al. 2023).
    Returns: [B, T, H, V] in q's dtype. Scores and softmax are float32.
    """


@operation(Backend("blocks", "cached_attention"))
def cached_attention(
    q_BTHK: jax.Array,
    parts: Sequence[tuple[jax.Array, jax.Array]],
    visible: "Visible",
    scoring: "Scoring",
    sinks_H: jax.Array | None = None,
) -> jax.Array:
    """Return `attention` of queries to cached keys and values, [B, T, H, V] in q's dtype. The layout is that of the cache.

    parts: of the S slots in order, each keys [P, G, s, K] and values [P, G, s, V]. P divides B. Row p of a part serves the
      batch rows p·n … (p+1)·n − 1 with n = B / P.
    Products use the keys' dtype, which may be wider than the queries'.
    """


@operation(Backend("blocks", "bidirectional"))
def bidirectional_attention(q_RTHK: jax.Array, k_RTHK: jax.Array, v_RTHK: jax.Array, scale: float) -> jax.Array:
    """Return softmax(scale·q·kᵀ)·v without a mask, [R, T, H, K] in q's dtype; scores and softmax are float32."""


@operation(Backend("compiled", "cpu.pages", "cpu"))
def write_pages(pages: "Pages", new_TGK: jax.Array, slots_T: AnyArray) -> "Pages":
    """Return the pool with the tokens written into their slots, in place if the caller donates it.

    slots_T: int32, distinct; −1 skips the token. Int8 pools quantize each token and head.
    """


@operation(Backend("compiled", "cpu.pages", "cpu"))
def paged_attention(
    q_THK: jax.Array,
    k: "Pages",
    v: "Pages | None",
    places: "Places",
    scoring: "Scoring",
    sinks_H: jax.Array | None = None,
    value_size: int = 0,
) -> jax.Array:
    """Return float32 [T, H, V]: for each token the mixture of the values that it sees.

    A token at place p of its sequence sees places 0 … p, with a window the last `window` of these, or chunked those from
    ⌊p / window⌋ · window on. Their keys and values, its own too, must have been written. Compiled, its result does not depend
    on the other tokens, to the bit.

    Args:
      q_THK: any float dtype. k, v: pools with the same pages; v None: the values are the first `value_size` elements of the
        keys (multi-head latent attention, whose one head holds latent and rotated key).
      places: where the tokens are. Tokens of a sequence are faster as neighbours.
    """


@operation(Backend("ragged", "tpu.pages", "tpu"))
def combined_attention(q_THK: jax.Array, pages: "Pages", places: "Places", scoring: "Scoring") -> jax.Array:
    """Return `paged_attention` to one pool of keys and values, float32 [T, H, K].

    pages: heads 2g and 2g + 1 are keys and values of head g. Its keys and q have the same size.
    places: tokens of a sequence are neighbours in their order, and padding is last.
    """


def combined_size(heads: int, size: int, dtype: DTypeLike, sinks: bool) -> int:
    """Return the head size of a pool for `combined_attention`, which may be padded; 0 where keys and values have a pool each.

    heads, size, dtype: of keys and values that are kept. sinks: whether attention has some.
    """
    return _module("tpu.pages").combined_size(heads, size, dtype, sinks) if platform() == "tpu" else 0


# --- States ---


def _in_chunks(x_BT: jax.Array, *_: object, **__: object) -> bool:
    return x_BT.shape[1] > 1 and not rows_are_alone()


@operation(Backend("compiled", "dense.convolution", "cpu", _in_chunks))
def short_convolution(
    x_BTC: jax.Array, taps_CW: jax.Array, bias_C: jax.Array | None, tail_BCW: jax.Array | None, flow: "Flow", silu: bool = False
) -> tuple[jax.Array, jax.Array | None]:
    """Return y_t = Σ_j taps[:, W−1−j] · x_{t−j} + bias over the last W tokens of a sequence, each channel C by itself.

    Args:
      x_BTC: any float dtype. taps_CW: float32; the last one is of the token itself, as in torch.nn.Conv1d. bias_C: float32.
      tail_BCW: the W − 1 inputs before the first token, the newest last, [B, C, W − 1] float32; None: there are none.
      silu: y is silu of that sum.
    Returns: [B, T, C] in x's dtype, summed in float32; and the next tail, None if there was none.
    """


@operation(Backend("compiled", "dense.recurrence", "cpu", _in_chunks), Backend("chunks", "recurrence", when=_in_chunks))
def recurrence(
    q_BTGK: jax.Array,
    k_BTGK: jax.Array,
    v_BTGRV: jax.Array,
    decay_BTGR: jax.Array,
    beta_BTGR: jax.Array | None,
    state_BGRKV: jax.Array | None,
    flow: "Flow",
    chunk: int = 64,
) -> tuple[jax.Array, jax.Array | None]:
    """Return y_t = S_tᵀ·q_t of states S_t = e^decay·S_{t−1} + k·u_tᵀ, [B, T, G, R, V] in v's dtype, and that after the row.

    Without beta u = v (linear attention with decay; Mamba-2, Dao and Gu 2024, eq. 16). With beta the state forgets what it had
    for the key: u = β·(v − (e^decay·S_{t−1})ᵀ·k), the gated delta rule (Yang et al. 2024, "Gated Delta Networks", eq. 10).

    The state is float32. Compiled chunks of bfloat16 round what they multiply to it, as flash-linear-attention does.

    Args: q, k and v any float dtype, the rest float32.
      q, k: G heads, which R heads of values share each. decay: log of the factor, at most 0. beta: in 0…1, or None.
      state: before the first token; None: zero, and none is returned. flow: where states begin and stay.
      chunk: tokens that are computed at once.
    """


# --- Losses and experts ---


@operation(Backend("vocabulary", "vocabulary", when=lambda *_, **__: ways("embed") > 1), Backend("chunks", "head"))
def cross_entropy(
    x_BTD: jax.Array,
    head_VD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    objective: "CrossEntropy",
    *,
    dtype: DTypeLike,
) -> tuple[jax.Array, ...]:
    """Return Σ w·(nll + z_loss·(log Z)²) and Σ w·nll, with nll = −log p(target), logits = x·headᵀ and Z = Σ exp(logits).

    Args:
      x_BTD: hidden states after the last norm. head_VD: float32 head. targets_BT: int32. weights_BT: float32.
      objective: constants of the loss, and what is measured.
      dtype: compute type of the three products; logits, softmax and sums are float32.
    Returns: (objective, nll) or, measured, (objective, nll, entropy, correct), float32 scalars. Only the objective has a
      gradient, with respect to x and head.
    """


@operation(Backend("dispatch", "experts"))
def experts(
    x_BTD: jax.Array,
    choice_BTK: jax.Array,
    weight_BTK: jax.Array,
    weights: dict[str, jax.Array],
    *,
    activation: Callable[[jax.Array], jax.Array],
    dtype: DTypeLike,
    capacity_factor: float = 0.0,
    limit: float = 0.0,
    weigh_inputs: bool = False,
) -> jax.Array:
    """Return Σ_k weight · expert(x) over the experts `choice` of each token, [B, T, D] in `dtype`.

    Args:
      x_BTD: activations. choice_BTK: int32, distinct within a token; a number outside the experts' range is skipped.
      weight_BTK: float32.
      weights: float32 gate (if gated) and up [E, D, F], down [E, F, D]. expert(x) = down(f(gate(x)) · up(x)), f `activation`.
        gate_bias, up_bias [E, F]: added to gate(x) and up(x), if given.
      limit: if above 0, clip(up(x), ±limit) + 1 in place of up(x).
      weigh_inputs: expert(weight · x) in place of weight · expert(x).
      dtype: of the products' operands and results; sums are float32.
      capacity_factor: if above 0, an expert takes at most ⌈factor · N · K / E⌉ of a device's N tokens, earliest first.
    """
