"""Attention on a TPU: JAX's Splash kernels, which never write scores to memory and skip blocks that the mask hides.

Axes: B batch, T time, H query heads, G key/value heads, K head size of queries and keys, V head size of values.
"""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from lm.kernels.attention import Scoring, Visible
from lm.kernels.saved import NAME
from lm.parallel.mesh import free_axes, reshard, spec

LANES = 128  # a block is a multiple of this
BLOCK = 512  # queries and keys of a block, as in MaxText; smaller blocks skip more and start more often
WIDE = 2048  # keys of a block in the backward pass of long rows


def takes(
    q_BTHK: jax.Array,
    k_BTGK: jax.Array,
    v_BTGV: jax.Array,
    visible: Visible,
    scoring: Scoring,
    sinks_H: jax.Array | None = None,
) -> bool:
    """Return whether the kernels compute this call: all but branches of a row and chosen keys."""
    return visible.branches is None and visible.chosen_BTS is None


def attention(
    q_BTHK: jax.Array,
    k_BTGK: jax.Array,
    v_BTGV: jax.Array,
    visible: Visible,
    scoring: Scoring,
    sinks_H: jax.Array | None = None,
    *,
    interpret: bool = False,
) -> jax.Array:
    """Compute lm.kernels.ops.attention.

    Rows may be split over the mesh, and heads over its tensor axis; each device runs the kernels on its own. The output and
    the logarithm of the softmax's denominator have the name that remat policies keep. interpret: run without a TPU, slowly.
    """
    inner = functools.partial(_on_device, scoring=scoring, interpret=interpret)
    sinks_H = None if sinks_H is None else reshard(sinks_H, "heads")
    segments_BT, heads, rows = visible.segments_BT, spec("batch", None, "heads", None), spec("batch", None)
    if heads is None:
        return inner(q_BTHK, k_BTGK, v_BTGV, segments_BT, sinks_H)
    of_keys = spec("batch", None, "kv_heads", None)
    mapped = jax.shard_map(
        inner, in_specs=(heads, of_keys, of_keys, rows, spec("heads")), out_specs=heads, check_vma=False, axis_names=free_axes()
    )
    return mapped(q_BTHK, k_BTGK, v_BTGV, segments_BT, sinks_H)


def _on_device(
    q_BTHK: jax.Array,
    k_BTGK: jax.Array,
    v_BTGV: jax.Array,
    segments_BT: jax.Array,
    sinks_H: jax.Array | None,
    *,
    scoring: Scoring,
    interpret: bool,
) -> jax.Array:
    T, H = q_BTHK.shape[1:3]
    length = -(-T // LANES) * LANES
    q_BTHK = q_BTHK * jnp.asarray(scoring.scale, q_BTHK.dtype)
    q, k, v = (jnp.swapaxes(_padded(x, length), 1, 2) for x in (q_BTHK, k_BTGK, v_BTGV))
    segments_BT = _padded(segments_BT, length)
    kernel = _kernel(length, H, q_BTHK.shape[-1], scoring, interpret)
    scope = f"splash_B{len(q)}_H{H}_T{length}_K{q.shape[-1]}_V{v.shape[-1]}_W{scoring.window}"  # for kernel_flops
    with jax.named_scope(scope):
        out_BHTV = jax.vmap(lambda q, k, v, ids: kernel(q, k, v, splash.SegmentIds(ids, ids), sinks_H))(q, k, v, segments_BT)
    return jnp.swapaxes(out_BHTV, 1, 2)[:, :T]


def _padded(x: jax.Array, length: int) -> jax.Array:
    return jnp.pad(x, [(0, length - x.shape[1] if axis == 1 else 0) for axis in range(x.ndim)])


def kernel_flops(name: str, text: str) -> int:
    """Return the FLOPs of a kernel of `attention` in a compiled program: those of whole blocks. 0 for any other kernel.

    name, text: of the instruction, as XLA prints them.
    """
    found = re.search(r"splash_B(\d+)_H(\d+)_T(\d+)_K(\d+)_V(\d+)_W(\d+)", text)
    if not name.startswith("%splash_mha_") or not found:
        return 0
    B, H, T, K, V, window = map(int, found.groups())
    block, wide = _blocks(T)
    phase = name.removeprefix("%splash_mha_")[:3]  # fwd, dkv, or dq_
    of_keys = wide if phase == "dkv" and _fused(T) else block
    queries, keys = np.arange(0, T, block)[:, None], np.arange(0, T, of_keys)[None]
    seen = keys < queries + block
    if window:
        seen &= keys + of_keys > queries - window + 1
    # Scores and output; scores, dV, dP, dK and, if they are fused, dQ; scores, dP, dQ.
    products = {"fwd": K + V, "dkv": 2 * K + 2 * V + (K if _fused(T) else 0), "dq_": 2 * K + V}[phase]
    return B * H * int(seen.sum()) * block * of_keys * 2 * products


def _kernel(length: int, heads: int, head_size: int, scoring: Scoring, interpret: bool) -> Callable[..., jax.Array]:
    """Return the kernel for rows of this length, a multiple of LANES."""
    (block, wide), window = _blocks(length), scoring.window
    mask = masks.LocalMask((length, length), (window - 1, 0), 0) if window else masks.CausalMask((length, length))
    # A head that is smaller than the lanes would be stored with as much padding, so its tokens lie along the lanes instead.
    layout = splash.QKVLayout.SEQ_MINOR if head_size % LANES else splash.QKVLayout.HEAD_DIM_MINOR
    layouts: dict[str, Any] = dict.fromkeys(("q_layout", "k_layout", "v_layout"), layout)
    if _fused(length):
        backward: dict[str, Any] = dict(
            block_q_dkv=block, block_kv_dkv=wide, block_kv_dkv_compute=block, use_fused_bwd_kernel=True
        )
    else:
        names = ("block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute", "block_q_dq", "block_kv_dq")
        backward = dict.fromkeys(names, block)
    sizes = splash.BlockSizes(block_q=block, block_kv=block, **backward, **layouts)
    return splash.make_splash_mha(
        masks.MultiHeadMask([mask] * heads),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=scoring.softcap or None,
        residual_checkpoint_name=NAME,
        interpret=interpret,
    )


def _fused(length: int) -> bool:
    """Return whether one kernel computes all three gradients, with five products in place of seven.

    Then each wide block of keys gives a whole array of gradients of queries, and wide blocks skip less of what the mask hides.
    In rows of few wide blocks both cost more than two products.
    """
    return length >= 4 * WIDE


def _blocks(length: int) -> tuple[int, int]:
    """Return the sizes of blocks for rows of this length: the largest that divide it."""
    block, wide = (max(size for size in range(LANES, most + 1, LANES) if length % size == 0) for most in (BLOCK, WIDE))
    return block, wide
