"""Rotary positions (Su et al. 2021): pair i of a head rotates by position · f_i, with f_i = θ^(−2i/d) unless scaled.

d is the number of rotated dimensions, so i = 0 … d/2 − 1. Values that do not depend on the sequence's length are computed in
numpy, in float64, while tracing. Scaling is that of transformers, except that dynamic NTK keeps no state between calls.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lm.config import Rope
from lm.parallel.arrays import PyTree
from lm.parallel.context import context_ways
from lm.parallel.mesh import platform, spec, spec_of


def rotary_angles(positions_BT: jax.Array, dim: int, rope: Rope, length: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Return cos and sin of position · f_i, times the attention factor: float32 [B, T, 1, dim/2].

    Args:
      dim: even, the rotated dimensions of a head.
      length: int32, the largest position of the batch + 1, or [B, 1, 1, 1] for each row; only ntk and longrope read it.
    """
    frequencies = rotary_frequencies(dim, rope, length)
    angles = positions_BT[:, :, None, None].astype(jnp.float32) * frequencies
    factor = attention_factor(rope)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return (cos, sin) if factor == 1 else (cos * factor, sin * factor)


def rotate(x_BTHK: jax.Array, cos: jax.Array, sin: jax.Array, interleaved: bool = False) -> jax.Array:
    """Rotate pairs of the first 2·cos.shape[-1] dimensions of every head; the rest stays (partial rotary).

    A pair (a, b) becomes (a·cos − b·sin, b·cos + a·sin). Pair i is (i, i + d/2), as in Llama, or (2i, 2i + 1) if
    interleaved, as in the paper. Computed in float32, returned in x's dtype.
    """
    if platform() == "tpu":
        return rotate_by_product(x_BTHK, cos, sin, interleaved)
    dim = 2 * cos.shape[-1]
    x = x_BTHK[..., :dim].astype(jnp.float32)
    first, second = (x[..., 0::2], x[..., 1::2]) if interleaved else jnp.split(x, 2, axis=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    y = jnp.stack(turned, axis=-1).reshape(x.shape) if interleaved else jnp.concatenate(turned, axis=-1)
    y = y.astype(x_BTHK.dtype)
    return y if dim == x_BTHK.shape[-1] else jnp.concatenate((y, x_BTHK[..., dim:]), axis=-1)


def rotate_by_product(x_BTHK: jax.Array, cos: jax.Array, sin: jax.Array, interleaved: bool = False) -> jax.Array:
    """Return the same as `rotate`, as x·C + (x·P)·S with a matrix P that swaps the numbers of each pair and negates the first.

    For TPUs: half a head does not fill the lanes, so its halves would take twice the memory and time, and the matrix unit does
    this product next to nothing. It is exact: a row of P has one number that is not 0, which is 1 or −1.
    """
    size, half = x_BTHK.shape[-1], cos.shape[-1]
    first = np.arange(0, 2 * half, 2) if interleaved else np.arange(half)
    second = first + (1 if interleaved else half)
    swap = np.zeros((size, size), np.float32)
    swap[second, first], swap[first, second] = -1, 1
    exact = lax.Precision.HIGHEST if x_BTHK.dtype == jnp.float32 else None
    partner = jnp.einsum(
        "bthk,kj->bthj",
        x_BTHK,
        swap.astype(x_BTHK.dtype),
        precision=exact,
        preferred_element_type=jnp.float32,
        out_sharding=spec_of(x_BTHK),
    )
    place = np.full(size, half)  # of the angle of each number; the rest is not rotated
    place[first] = place[second] = np.arange(half)

    def spread(x: jax.Array, rest: float) -> jax.Array:
        return jnp.concatenate((x, jnp.full_like(x[..., :1], rest)), axis=-1)[..., place]

    return (x_BTHK.astype(jnp.float32) * spread(cos, 1.0) + partner * spread(sin, 0.0)).astype(x_BTHK.dtype)


def rotary_frequencies(dim: int, rope: Rope, length: jax.Array | None) -> np.ndarray | jax.Array:
    """Return f_i, float32 [dim/2]: a numpy constant, for ntk and longrope a jax array."""
    plain = rope.theta ** (-np.arange(0, dim, 2) / dim)
    if rope.scaling == "none":
        frequencies = plain
    elif rope.scaling == "linear":
        frequencies = plain / rope.factor  # position interpolation (Chen et al. 2023)
    elif rope.scaling == "yarn":
        frequencies = _yarn(plain, dim, rope)
    elif rope.scaling == "llama3":
        frequencies = _llama3(plain, rope)
    elif rope.scaling == "ntk":
        assert length is not None
        return _dynamic_ntk(plain, dim, rope, length)
    else:
        assert length is not None
        return _longrope(plain, rope, length)
    return frequencies.astype(np.float32)


def attention_factor(rope: Rope) -> float:
    """Return the factor of cos and sin, at every length. It multiplies q·k by its square.

    YaRN (Peng et al. 2023, eq. 22): 0.1·ln(factor) + 1; in DeepSeek-V2: yarn_mscale(factor, mscale) /
    yarn_mscale(factor, mscale_all_dim), where both are given. LongRoPE (Ding et al. 2024; Phi-3's code):
    √(1 + ln(factor) / ln(original_positions)), also within the original context. rope.attention_factor overrides both.
    """
    if rope.scaling not in ("yarn", "longrope"):
        return 1.0
    if rope.attention_factor:
        return rope.attention_factor
    if rope.scaling == "yarn":
        if rope.mscale and rope.mscale_all_dim:
            return yarn_mscale(rope.factor, rope.mscale) / yarn_mscale(rope.factor, rope.mscale_all_dim)
        return yarn_mscale(rope.factor)
    return math.sqrt(1 + math.log(rope.factor) / math.log(rope.original_positions)) if rope.factor > 1 else 1.0


def yarn_mscale(factor: float, mscale: float = 1.0) -> float:
    """Return 0.1·mscale·ln(factor) + 1 (Peng et al. 2023, eq. 22, with DeepSeek-V2's mscale); 1 if factor ≤ 1.

    DeepSeek also multiplies the softmax's scale by yarn_mscale(factor, mscale_all_dim)².
    """
    return 0.1 * mscale * math.log(factor) + 1 if factor > 1 else 1.0


def _yarn(plain: np.ndarray, dim: int, rope: Rope) -> np.ndarray:
    """NTK by parts (Peng et al. 2023, §3.2): f·(1 − γ_i) + f/factor·γ_i, with γ rising from 0 to 1 between two dimensions.

    A dimension that rotates r times over the original context L is d(r) = dim·ln(L / 2πr) / (2·ln θ); γ rises from
    d(beta_fast), rounded down, to d(beta_slow), rounded up (neither rounded without `truncate`).
    """
    low, high = (
        dim * math.log(rope.original_positions / (2 * math.pi * turns)) / (2 * math.log(rope.theta))
        for turns in (rope.beta_fast, rope.beta_slow)
    )
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    gamma = np.clip((np.arange(dim // 2) - low) / (high - low if high != low else 1e-3), 0, 1)
    return plain * (1 - gamma) + plain / rope.factor * gamma


def _llama3(plain: np.ndarray, rope: Rope) -> np.ndarray:
    """Llama 3.1's code: f·(1 − s)/factor + f·s, with s = (turns − low) / (high − low) within 0 … 1.

    turns = L·f / 2π over the original context L; low, high: low_freq_factor, high_freq_factor. Llama 4 has low = high: a step.
    """
    turns = rope.original_positions * plain / (2 * math.pi)
    width = rope.high_freq_factor - rope.low_freq_factor or 1e-12
    smooth = np.clip((turns - rope.low_freq_factor) / width, 0, 1)
    return plain * (1 - smooth) / rope.factor + plain * smooth


def _dynamic_ntk(plain: np.ndarray, dim: int, rope: Rope, length: jax.Array) -> jax.Array:
    """θ grows with the length n beyond the original context L: θ·(factor·n/L − factor + 1)^(d / (d − 2)).

    From bloc97's and emozilla's posts (2023), after Peng et al. 2023, §3.1 and §3.3; so f_i is multiplied by that base
    to the −2i / (d − 2). Angles are a function of n alone: transformers, whose buffers outlive a call, keeps those of a
    longer sequence seen before, until one shorter than L comes.
    """
    stretch = rope.factor * jnp.maximum(length, rope.original_positions) / rope.original_positions - (rope.factor - 1)
    powers = -np.arange(0, dim, 2) / max(dim - 2, 1)
    return np.float32(plain) * stretch.astype(jnp.float32) ** np.float32(powers)


def _longrope(plain: np.ndarray, rope: Rope, length: jax.Array) -> jax.Array:
    """LongRoPE (Ding et al. 2024; Phi-3's code): f_i / short_factor_i, and f_i / long_factor_i beyond the original context."""
    short, long = (np.float32(plain / np.array(factors)) for factors in (rope.short_factor, rope.long_factor))
    return jnp.where(length > rope.original_positions, long, short)


def once(f: Callable[..., PyTree], *xs_BT: jax.Array) -> PyTree:
    """Return f(*xs_BT), with results [B, T, …], computed in a loop over two halves of T.

    The compiler would otherwise fuse f into every layer that reads its result and compute it again there; it does not fuse
    the results of a loop. On a CPU this saves a quarter of a training step. Each device of a context axis halves its own part.
    """
    (B, T), ways = xs_BT[0].shape, context_ways()
    if T == 1:
        return f(*xs_BT)
    half = -(-T // (2 * ways))

    def reshaped(x: jax.Array, shape: tuple[int, ...], *axes: str | None) -> jax.Array:
        where = spec(*axes, *[None] * (len(shape) - len(axes))) if ways > 1 else None
        return lax.reshape(x, shape, out_sharding=where)

    def halves(x_BT: jax.Array) -> jax.Array:
        x_BT = jnp.pad(x_BT, ((0, 0), (0, 2 * half * ways - T))) if ways == 1 else x_BT
        x = reshaped(x_BT, (B, ways, 2, half), "batch", "length")
        return reshaped(jnp.moveaxis(x, 2, 0), (2, B, ways * half), None, "batch", "length")

    def whole(y: jax.Array) -> jax.Array:
        y = reshaped(y, (2, B, ways, half, *y.shape[3:]), None, "batch", "length")
        y = jnp.moveaxis(y, 0, 2)
        return reshaped(y, (B, 2 * half * ways, *y.shape[4:]), "batch", "length")[:, :T]

    return jax.tree.map(whole, lax.map(lambda xs: f(*xs), tuple(map(halves, xs_BT))))
