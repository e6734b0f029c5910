"""Optimizer state in less memory: the moments of matrices in bfloat16 or int8. Computations stay in float32.

int8 (Dettmers et al. 2022, with other codes): blocks of up to BLOCK numbers along a parameter's last axis share a float32
scale, the largest size in the block. With the scale s,
  a signed moment m  is s·c/127, c = −127 … 127
  a mean of squares v is s·2^((c−255)/STEPS), c = 1 … 255, and 0 for c = 0: its root is off by at most 6 %, over 21 octaves
Linear codes would round small v to 0, and directions to infinity. Rounding, also to bfloat16, is stochastic and right on
average: a moving mean that changes by less than half a code in a step would else never change. The random numbers are a hash of
place and step, so a resumed run rounds alike.
"""

import math
from typing import NamedTuple, TypeGuard

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import lax
from jax.sharding import PartitionSpec

from lm.parallel.arrays import PyTree
from lm.parallel.mesh import logical_axes, spec_of, ways
from lm.train.optimizers.muon import is_variable, parts_of

BLOCK, MIN = 64, 16  # numbers that share a scale: a divisor of the last axis in this range, else the whole axis
STEPS = 6  # codes of an octave of v
SQUARES = ("nu",)  # fields of optax's states that hold means of squares


class CompactState(NamedTuple):
    """count: int32, updates. codes: the state with its moments as stored. scales: of int8 moments, like `codes`; else empty."""

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count; a name in checkpoints
    codes: optax.OptState
    scales: optax.OptState


def compact(inner: optax.GradientTransformation, dtype: str) -> optax.GradientTransformation:
    """Return `inner` with the moments of matrices in its state stored as `dtype`: bfloat16 or int8; float32: `inner`."""
    if dtype == "float32":
        return inner

    def stored(count: jax.Array, state: optax.OptState) -> CompactState:
        leaves, tree = jax.tree_util.tree_flatten_with_path(state, is_leaf=is_variable)
        pairs = [_encoded(leaf, dtype, count, _is_squares(path), n) for n, (path, leaf) in enumerate(leaves)]
        return CompactState(count, *(jax.tree.unflatten(tree, part) for part in zip(*pairs, strict=True)))

    def init(params: nnx.State) -> CompactState:
        return stored(jnp.zeros((), jnp.int32), inner.init(params))

    def update(grads: nnx.State, state: CompactState, params: nnx.State | None = None) -> tuple[nnx.State, CompactState]:
        moments = jax.tree.map_with_path(
            lambda path, leaf, scale: _decoded(leaf, scale, _is_squares(path)), state.codes, state.scales, is_leaf=is_variable
        )
        updates, after = inner.update(grads, moments, params)
        return updates, stored(state.count + 1, after)

    return optax.GradientTransformation(init, update)


def _encoded(leaf: nnx.Variable | jax.Array, dtype: str, count: jax.Array, squares: bool, salt: int) -> tuple[PyTree, PyTree]:
    """Return a leaf of the state as stored, and its scales (MaskedNode if it has none)."""
    if not _is_matrix(leaf):
        return leaf, leaf.replace(optax.MaskedNode()) if is_variable(leaf) else optax.MaskedNode()
    x = leaf.get_value()
    seed = count.astype(jnp.uint32) + jnp.uint32(salt * 0x9E3779B9 % 2**32)
    if dtype == "bfloat16":
        return leaf.replace(to_bfloat16(x, bits_like(x, seed))), leaf.replace(optax.MaskedNode())
    x_Bk = in_blocks(x)
    scale_B1 = jnp.max(jnp.abs(x_Bk), axis=-1, keepdims=True)
    u_Bk = (bits_like(x_Bk, seed) >> 8).astype(jnp.float32) * 2.0**-24
    unit_Bk = x_Bk / jnp.where(scale_B1 > 0, scale_B1, 1.0)
    code_Bk = square_codes(unit_Bk, u_Bk) if squares else signed_codes(unit_Bk, u_Bk)
    scale, axes = scale_B1[..., 0], logical_axes(leaf)
    fits = scale.shape[-1] % ways(axes[-1]) == 0
    axes = axes if fits else (*axes[:-1], "replicated")
    return leaf.replace(whole(code_Bk, x)), leaf.replace(scale, out_sharding=axes)


def _decoded(leaf: nnx.Variable | jax.Array, scale: PyTree, squares: bool) -> nnx.Variable | jax.Array:
    """Return a leaf of the state as float32."""
    if not _is_matrix(leaf):
        return leaf
    code = leaf.get_value()
    if code.dtype == jnp.bfloat16:
        return leaf.replace(code.astype(jnp.float32))
    code_Bk, scale_B1 = in_blocks(code).astype(jnp.float32), scale.get_value()[..., None]
    value = jnp.where(code_Bk > 0, jnp.exp2((code_Bk - 255) / STEPS), 0.0) if squares else code_Bk / 127
    return leaf.replace(whole(value * scale_B1, code))


def to_bfloat16(x: jax.Array, bits: jax.Array) -> jax.Array:
    """Return x in bfloat16, rounded up with the probability of its fraction. bits: random uint32."""
    sum_ = lax.bitcast_convert_type(x, jnp.uint32) + (bits >> 16)
    return lax.bitcast_convert_type(sum_ & jnp.uint32(0xFFFF0000), jnp.float32).astype(jnp.bfloat16)


def signed_codes(x: jax.Array, u: jax.Array) -> jax.Array:
    """Return int8 codes of numbers in −1 … 1, rounded up with the probability of their fraction. u: uniform in 0 … 1."""
    return jnp.clip(jnp.floor(127 * x + u), -127, 127).astype(jnp.int8)


def square_codes(x: jax.Array, u: jax.Array) -> jax.Array:
    """Return uint8 codes of numbers in 0 … 1, rounded so that the mean is x, or the smallest code but 0 for what is less."""
    exact = 255 + STEPS * jnp.log2(jnp.maximum(x, 1e-38))
    below = jnp.floor(exact)
    up = (jnp.exp2((exact - below) / STEPS) - 1) / (2 ** (1 / STEPS) - 1)
    return jnp.where(x > 0, jnp.clip(below + (u < up), 1, 255), 0).astype(jnp.uint8)


def block_size(last: int) -> int:
    """Return how many numbers along a last axis share a scale; the same on every mesh, so that checkpoints move."""
    size = math.gcd(last, BLOCK)
    return size if size >= MIN else last


def in_blocks(x: jax.Array) -> jax.Array:
    """Return x [..., n·k] as [..., n, k]. Where the devices of the last axis do not hold whole blocks, it is gathered first."""
    size = block_size(x.shape[-1])
    shape, spec = (*x.shape[:-1], x.shape[-1] // size, size), spec_of(x)
    if spec is None:
        return x.reshape(shape)
    if parts_of(spec[-1]) > 1 and shape[-2] % parts_of(spec[-1]):
        spec = PartitionSpec(*spec[:-1], None)
        x = jax.sharding.reshard(x, spec)
    return lax.reshape(x, shape, out_sharding=PartitionSpec(*spec, None))


def whole(x_Bk: jax.Array, like: jax.Array) -> jax.Array:
    """Return blocks [..., n, k] in the shape and sharding of `like`; the inverse of `in_blocks`."""
    spec = spec_of(x_Bk)
    if spec is None:
        return x_Bk.reshape(like.shape)
    return jax.sharding.reshard(lax.reshape(x_Bk, like.shape, out_sharding=PartitionSpec(*spec[:-1])), spec_of(like))


def bits_like(x: jax.Array, seed: jax.Array) -> jax.Array:
    """Return random uint32 of the shape and sharding of x: a hash (murmur3's finalizer) of index and seed."""
    index, stride = jnp.uint32(0), 1
    for axis in range(x.ndim - 1, -1, -1):
        place = lax.broadcasted_iota(jnp.uint32, x.shape, axis, out_sharding=spec_of(x))
        index, stride = index + place * jnp.uint32(stride % 2**32), stride * x.shape[axis]
    h = index * jnp.uint32(0x9E3779B9) + seed * jnp.uint32(0x85EBCA6B)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        h = (h ^ (h >> shift)) * jnp.uint32(factor)
    return h ^ (h >> 16)


def _is_matrix(leaf: object) -> TypeGuard[nnx.Variable]:
    """Return whether a leaf of a state is a moment of a matrix. Vectors stay as they are; they are few."""
    return is_variable(leaf) and leaf.get_metadata()["role"] != "vector" and not isinstance(leaf.get_value(), optax.MaskedNode)


def _is_squares(path: tuple[object, ...]) -> bool:
    return any(getattr(key, "name", None) in SQUARES for key in path)
