"""A linear head in blocks of its vocabulary, for heads that are split over fsdp and too large to gather whole.

Each block is gathered, used for all tokens of the device, and forgotten; its gradient is scattered back at once. So the largest
gather is one block, and neither a whole head nor its whole gradient exists on any device. The price is a second product for the
logits: a block's gradient needs the softmax's denominator, which is known only after the last block (the online softmax of
Milakov and Gimelshein 2018, and the recomputation of FlashAttention, Dao et al. 2022).

Axes: B batch, T time, D model, V vocabulary, N tokens of this device, C rows of a block.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from lm.kernels.head import CrossEntropy, Logits, scaled, softcap_slope, softcapped
from lm.kernels.matmul import scattered
from lm.kernels.ops import product
from lm.parallel.mesh import embed_axes, several, spec, spec_of, token_axes

BLOCK_BYTES = 64 << 20  # of a gathered block in the compute dtype, about one matrix of a layer
LANES = 128  # a block is a multiple of this
MIN = -1e30  # a logit of no token; finite, so that its product with 0 is 0
Sums: TypeAlias = tuple[jax.Array, jax.Array, jax.Array, jax.Array]  # [N]: top, Σ e, Σ e·below, the target's logit
Block: TypeAlias = tuple[jax.Array, jax.Array]  # its index, and its rows [C, D] on this device


class Statistics(NamedTuple):
    """What a loss needs to know about the softmax over the vocabulary, each float32 [B, T]: the target's logit, log Σ exp
    of all, the entropy in nats and the largest logit."""

    label: jax.Array
    logz: jax.Array
    entropy: jax.Array
    top: jax.Array


def block_rows(head_VD: jax.Array, dtype: DTypeLike) -> int | None:
    """Return the rows of a block for this head on the current mesh; None if the head should be gathered whole."""
    where = spec_of(head_VD)
    mesh = jax.sharding.get_abstract_mesh()
    if where is None or where != spec("vocab", "embed") or all(mesh.shape[axis] == 1 for axis in several(where[1])):
        return None
    rows = head_VD.shape[0] // mesh.shape["tensor"]
    size = rows * head_VD.shape[1] * jnp.dtype(dtype).itemsize
    blocks = -(-size // BLOCK_BYTES)
    return None if blocks == 1 else -(-rows // (blocks * LANES)) * LANES


def statistics(x_BTD: jax.Array, head_VD: jax.Array, targets_BT: jax.Array, how: Logits) -> Statistics:
    """Return Statistics of the logits x·headᵀ, softcapped and divided by the temperature, in blocks of how.part rows."""

    def on_device(x_BTD: jax.Array, head_VD: jax.Array, targets_BT: jax.Array) -> Statistics:
        x_ND, targets_N1 = x_BTD.reshape(-1, x_BTD.shape[-1]).astype(how.dtype), targets_BT.reshape(-1, 1)

        def body(carry: Sums, block: Block) -> tuple[Sums, None]:
            top, z, s, label = carry
            _, logits_NC, is_target = _logits(x_ND, targets_N1, block, head_VD.shape[0], columns, how)
            logits_NC = logits_NC / how.temperature
            new = jnp.maximum(top, jnp.max(logits_NC, axis=-1))
            below = logits_NC - new[:, None]
            e, shrunk = jnp.exp(below), jnp.exp(top - new)
            s = shrunk * (s + z * (top - new)) + jnp.sum(e * below, axis=-1)
            z = shrunk * z + jnp.sum(e, axis=-1)
            return (new, z, s, label + jnp.sum(jnp.where(is_target, logits_NC, 0.0), axis=-1)), None

        zeros = jnp.zeros(x_ND.shape[:1], jnp.float32)
        (top, z, s, label), _ = lax.scan(body, (zeros + MIN, zeros, zeros, zeros), _blocks(head_VD.astype(how.dtype), how.part))
        new = lax.pmax(top, "tensor")
        shrunk = jnp.exp(top - new)
        s, z = lax.psum((shrunk * (s + z * (top - new)), shrunk * z), "tensor")
        found = Statistics(lax.psum(label, "tensor"), new + jnp.log(z), jnp.log(z) - s / z, new)
        return jax.tree.map(lambda x_N: x_N.reshape(targets_BT.shape), found)

    tokens, columns = spec("batch", "length"), embed_axes()
    specs = (spec("batch", "length", None), spec_of(head_VD), tokens)
    return jax.shard_map(on_device, in_specs=specs, out_specs=tokens, check_vma=False)(x_BTD, head_VD, targets_BT)


def gradients(
    x_BTD: jax.Array,
    head_VD: jax.Array,
    targets_BT: jax.Array,
    logz_BT: jax.Array,
    of_p_BT: jax.Array,
    of_target_BT: jax.Array,
    how: Logits,
    learns: bool = True,
) -> tuple[jax.Array, jax.Array | None]:
    """Return dx [B, T, D] in x's dtype and dhead float32 [V, D], if d loss / d logits is of_p·p + of_target·onehot(target).

    p: the softmax; logits are those after cap and temperature. learns: whether the head has a gradient; if not, dhead is None.
    """

    def on_device(
        x_BTD: jax.Array, head_VD: jax.Array, targets_BT: jax.Array, *arrays: jax.Array
    ) -> tuple[jax.Array, jax.Array | None]:
        x_ND, targets_N1 = x_BTD.reshape(-1, x_BTD.shape[-1]).astype(how.dtype), targets_BT.reshape(-1, 1)
        logz_N1, of_p_N1, of_target_N1 = (array.reshape(-1, 1) for array in arrays)

        def body(dx_ND: jax.Array, block: Block) -> tuple[jax.Array, jax.Array | None]:
            w_CD, logits_NC, is_target = _logits(x_ND, targets_N1, block, head_VD.shape[0], columns, how)
            d_NC = of_p_N1 * jnp.exp(logits_NC / how.temperature - logz_N1) + jnp.where(is_target, of_target_N1, 0.0)
            if how.softcap:
                d_NC = d_NC * softcap_slope(jnp.maximum(logits_NC, -how.softcap), how.softcap)  # MIN has no slope
            d_NC = (d_NC / how.temperature).astype(how.dtype)
            dx_ND = dx_ND + product("nc,cd->nd", d_NC, w_CD)
            if not learns:
                return dx_ND, None
            return dx_ND, scattered(product("nc,nd->cd", d_NC, x_ND), PartitionSpec(None, columns), over)

        blocks = _blocks(head_VD.astype(how.dtype), how.part)
        dx_ND, dw = lax.scan(body, jnp.zeros(x_ND.shape, jnp.float32), blocks)
        dx_BTD = lax.psum(dx_ND, "tensor").reshape(x_BTD.shape).astype(x_BTD.dtype)
        return dx_BTD, None if dw is None else dw.reshape(-1, head_VD.shape[1])[: head_VD.shape[0]]

    over, columns = token_axes(), embed_axes()
    tokens, states, where = spec("batch", "length"), spec("batch", "length", None), spec_of(head_VD)
    specs = (states, where, tokens, tokens, tokens, tokens)
    mapped = jax.shard_map(on_device, in_specs=specs, out_specs=(states, where if learns else None), check_vma=False)
    return mapped(x_BTD, head_VD, targets_BT, logz_BT, of_p_BT, of_target_BT)


def _blocks(head_VD: jax.Array, rows: int) -> Block:
    """Return (index [n], blocks [n, C, D]) of this device's part of the head, with rows of zeros at the end."""
    blocks = -(-head_VD.shape[0] // rows)
    head_VD = jnp.pad(head_VD, ((0, blocks * rows - head_VD.shape[0]), (0, 0)))
    return jnp.arange(blocks), head_VD.reshape(blocks, rows, head_VD.shape[1])


def _logits(
    x_ND: jax.Array, targets_N1: jax.Array, block: Block, V: int, columns: str | tuple[str, ...] | None, how: Logits
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return a gathered block, its float32 logits [N, C] after the cap, and where the vocabulary id is the target."""
    n, part_CD = block
    w_CD = lax.all_gather(part_CD, columns, axis=1, tiled=True)
    logits_NC = softcapped(product("nd,cd->nc", x_ND, w_CD).astype(how.rounded).astype(jnp.float32), how.softcap)
    places_C = n * w_CD.shape[0] + jnp.arange(w_CD.shape[0])
    is_target = lax.axis_index("tensor") * V + places_C == targets_N1
    if V % w_CD.shape[0]:  # the last block has rows of no token
        known_C = places_C < V
        logits_NC, is_target = jnp.where(known_C, logits_NC, MIN), is_target & known_C
    return w_CD, logits_NC, is_target


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
    of_p_BT = scale_BT + 2 * options.objective.z_loss * weights_BT * found.logz  # as in lm/kernels/head.py
    learns = arguments[1].perturbed
    return _sums(options, found, weights_BT), gradients(
        x_BTD, head_VD, targets_BT, found.logz, of_p_BT, -scale_BT, options.logits, learns
    )


def _by_blocks_backward(
    options: Options, residuals: tuple[jax.Array, jax.Array | None], cotangents: Sequence[jax.Array | SymbolicZero]
) -> tuple[jax.Array | None, ...]:
    return (*scaled(residuals, cotangents[0]), None, None)


_by_blocks.defvjp(_by_blocks_forward, _by_blocks_backward, symbolic_zeros=True)
