"""The matrices of a parameter: which of its axes count them, which are inputs, and which are outputs."""

import math
from typing import NamedTuple

import jax
from flax import nnx
from jax import lax

from lm.parallel.mesh import logical_axes, spec_of


class MatrixAxes(NamedTuple):
    """A parameter's first `stacked` axes count matrices (layers, experts); `inputs` axes follow; the rest are outputs."""

    stacked: int
    inputs: int


def matrix_axes(variable: nnx.Variable) -> MatrixAxes | None:
    """Return the axes of a parameter that was declared as a matrix of layers (lm/model/initializers.py), else None."""
    inputs = variable.get_metadata().get("inputs", ())
    if not inputs:
        return None
    return MatrixAxes(inputs[0] + (logical_axes(variable)[0] == "layers"), len(inputs))


def as_matrices(x: jax.Array, axes: MatrixAxes) -> jax.Array:
    """Return x as [..., inputs, outputs] with its `stacked` axes in front. Only the first of merged axes may be sharded."""
    groups: list[tuple[int, ...]] = [(i,) for i in range(axes.stacked)]
    groups += [tuple(range(axes.stacked, axes.stacked + axes.inputs)), tuple(range(axes.stacked + axes.inputs, x.ndim))]
    shape = tuple(math.prod(x.shape[i] for i in group) for group in groups)
    spec = spec_of(x)
    if spec is None:
        return x.reshape(shape)
    assert all(spec[i] is None for group in groups for i in group[1:])
    return lax.reshape(x, shape, out_sharding=jax.sharding.PartitionSpec(*(spec[group[0]] for group in groups)))


def from_matrices(x: jax.Array, like: jax.Array) -> jax.Array:
    """Return matrices [..., inputs, outputs] in the shape and sharding of `like`; the inverse of `as_matrices`."""
    return lax.reshape(x, like.shape, out_sharding=spec_of(like))
