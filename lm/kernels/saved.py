"""Values that a layer keeps for its backward pass.

XLA's CPU backend has no bfloat16 slices: it converts a bfloat16 stack of all layers to float32 to read or to write one layer,
so a loop over layers would convert the whole stack in every iteration and keep float32 copies. It slices integers as they are.
So on a CPU a bfloat16 value is kept as the uint16 of its bits.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from lm.parallel.mesh import platform

NAME = "saved"  # remat="matmuls" and "attention" keep values of this name
WIDE = "saved wide"  # "matmuls" keeps these too: the feed-forward's, which are most of a layer's memory
INPUT = "layer input"  # the name of what a layer begins with


def saved(x: jax.Array, *, wide: bool = False) -> jax.Array:
    """Return x, named for the remat policies."""
    name = WIDE if wide else NAME
    if x.dtype != jnp.bfloat16 or platform() != "cpu":
        return checkpoint_name(x, name)
    return _from_bits(checkpoint_name(bits(x), name), x)


def layer_input(x: jax.Array, as_bits: bool = True) -> tuple[jax.Array, jax.Array | None]:
    """Return (x, its `bits` or None, also without `as_bits`), of which the one that is kept has the name INPUT."""
    return kept_input(x, bits(x) if as_bits and x.dtype == jnp.bfloat16 and platform() == "cpu" else None)


def kept_input(x: jax.Array, x_bits: jax.Array | None) -> tuple[jax.Array, jax.Array | None]:
    """Return both, of which x_bits, or x if that is None, has the name INPUT."""
    return (checkpoint_name(x, INPUT), None) if x_bits is None else (x, checkpoint_name(x_bits, INPUT))


def bits(x: jax.Array) -> jax.Array:
    """Return the bits of a bfloat16 array as uint16. They have no gradient."""
    return lax.bitcast_convert_type(lax.stop_gradient(x), jnp.uint16)


def from_bits(bits: jax.Array | None, x: jax.Array) -> jax.Array:
    """Return x, computed from its `bits` alone if there are any; the gradient is that of x."""
    return x if bits is None else _from_bits(bits, x)


@jax.custom_jvp
def _from_bits(bits: jax.Array, x: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(bits, x.dtype)


@_from_bits.defjvp
def _tangent(primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    bits, x = primals
    return lax.bitcast_convert_type(bits, x.dtype), tangents[1]  # not a call that takes x, or x would be kept or computed again
