"""Products for gradients of weights on a CPU, which first transposes the operand of the leading result axes."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from lm.kernels.ops import product


def takes(
    equation: str, a: jax.Array, b: jax.Array, out_spec: PartitionSpec | None = None, *, dtype: DTypeLike | None = None
) -> bool:
    """Return whether the operand of the leading result axes is the larger one."""
    return a.size > b.size


def product_over_rows(
    equation: str, a: jax.Array, b: jax.Array, out_spec: PartitionSpec | None = None, *, dtype: DTypeLike | None = None
) -> jax.Array:
    """Return the product with the operands swapped, so that the smaller one is transposed.

    Then the result, which is smaller still, is transposed. Without the barrier XLA would turn both around again.
    """
    inputs, y_axes = equation.split("->")
    a_axes, b_axes = inputs.split(",")
    both = [axis for axis in y_axes if axis in a_axes and axis in b_axes]
    turned = "".join(both + [axis for term in (b_axes, a_axes) for axis in term if axis in y_axes and axis not in both])
    where = out_spec and PartitionSpec(*(out_spec[y_axes.index(axis)] for axis in turned))
    y = lax.optimization_barrier(product(f"{b_axes},{a_axes}->{turned}", b, a, where, dtype=dtype))
    return jnp.transpose(y, [turned.index(axis) for axis in y_axes])
