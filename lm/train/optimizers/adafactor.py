"""Adafactor (Shazeer and Stern 2018) with momentum and without relative step sizes (Zhai et al. 2022, §3.5)."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from lm.parallel.mesh import logical_axes
from lm.train.optimizers.matrices import MatrixAxes, is_variable, matrix_axes

EPS = 1e-30  # added to squared gradients
DECAY, MAX = 0.8, 0.999  # the mean of squared gradients decays by min(1 − step^−DECAY, MAX)


class AdafactorState(NamedTuple):
    """count: int32, finished updates. mu: mean of directions, () without momentum. inputs, outputs: means of squared gradients
    of each matrix over its outputs and over its inputs; of a vector `inputs` holds them whole, and `outputs` nothing."""

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count; a name in checkpoints
    mu: nnx.State | tuple[()]
    inputs: nnx.State
    outputs: nnx.State


def scale_by_adafactor(b1: float) -> optax.GradientTransformation:
    """Return the transform from gradients g to the mean of clip(g/√v̂), with decay b1 and corrected for its start; 0: no mean.

    v̂_ij = r_i·c_j / mean(r), where r and c are moving means of g² + ε over a matrix's columns and rows (Shazeer and Stern 2018,
    algorithm 4). clip divides by the root mean square of a parameter's direction if that is above 1 (ibid. §6).
    """

    def init(params: nnx.State) -> AdafactorState:
        mu = jax.tree.map(jnp.zeros_like, params) if b1 else ()
        return AdafactorState(jnp.zeros((), jnp.int32), mu, *(_map(functools.partial(_zeros, part=i), params) for i in (0, 1)))

    def update(grads: nnx.State, state: AdafactorState, params: nnx.State | None = None) -> tuple[nnx.State, AdafactorState]:
        count = state.count + 1
        decay = jnp.minimum(1 - count.astype(jnp.float32) ** -DECAY, MAX)
        means = [_map(functools.partial(_squares, part=i), grads) for i in (0, 1)]
        inputs, outputs = (
            jax.tree.map(lambda v, new: decay * v + (1 - decay) * new, old, new)
            for old, new in zip((state.inputs, state.outputs), means, strict=True)
        )
        direction = jax.tree.map(_direction, grads, inputs, outputs, is_leaf=is_variable)
        if not b1:
            return direction, AdafactorState(count, (), inputs, outputs)
        mu = jax.tree.map(lambda m, u: b1 * m + (1 - b1) * u, state.mu, direction)
        corrected = jax.tree.map(lambda m: m / (1 - b1 ** count.astype(jnp.float32)), mu)
        return corrected, AdafactorState(count, mu, inputs, outputs)

    return optax.GradientTransformation(init, update)


def factored(variable: nnx.Variable) -> MatrixAxes | None:
    """Return the axes of a parameter's matrices, also of an embedding or a head; None for a vector."""
    if variable.get_metadata()["role"] == "vector":
        return None
    stacked = int(logical_axes(variable)[0] == "layers")
    ndim = len(logical_axes(variable))
    return matrix_axes(variable) or (MatrixAxes(stacked, ndim - stacked - 1) if ndim - stacked > 1 else None)


def _kept(variable: nnx.Variable, part: int) -> tuple[int, ...] | None:
    """Return the axes that the means of a parameter keep. part: 0, its inputs; 1, its outputs."""
    axes, ndim = factored(variable), len(logical_axes(variable))
    if axes is None:
        return tuple(range(ndim)) if part == 0 else None
    begin = axes.stacked + axes.inputs
    return tuple(range(begin)) if part == 0 else (*range(axes.stacked), *range(begin, ndim))


def _of_part(variable: nnx.Variable, part: int, value: jax.Array) -> nnx.Variable:
    """Return a variable with `value`, sharded as the axes that are kept, or with nothing if none are.

    Its role is "vector", since it is small.
    """
    kept = _kept(variable, part)
    if kept is None:
        return variable.replace(optax.MaskedNode(), role="vector")
    return variable.replace(value, out_sharding=tuple(logical_axes(variable)[i] for i in kept), role="vector")


def _zeros(variable: nnx.Variable, part: int) -> nnx.Variable:
    kept = _kept(variable, part)
    return _of_part(variable, part, jnp.zeros([variable.get_value().shape[i] for i in kept or ()], jnp.float32))


def _squares(gradient: nnx.Variable, part: int) -> nnx.Variable:
    """Return the means of squares of a gradient over the axes that are not kept."""
    kept, g = _kept(gradient, part), gradient.get_value()
    gone = tuple(i for i in range(g.ndim) if i not in (kept or ()))
    return _of_part(gradient, part, jnp.mean(jnp.square(g) + EPS, axis=gone))


def _direction(gradient: nnx.Variable, inputs: nnx.Variable, outputs: nnx.Variable) -> nnx.Variable:
    """Return clip(g/√v̂) of a parameter."""
    g, axes = gradient.get_value(), factored(gradient)
    if axes is None:
        u, over = g * jax.lax.rsqrt(inputs.get_value()), tuple(range(g.ndim))
    else:
        begin = axes.stacked + axes.inputs
        over = tuple(range(axes.stacked, g.ndim))
        r, c = inputs.get_value(), outputs.get_value()
        r = r / jnp.mean(r, axis=tuple(range(axes.stacked, begin)), keepdims=True)
        r = jnp.expand_dims(r, tuple(range(begin, g.ndim)))
        c = jnp.expand_dims(c, tuple(range(axes.stacked, begin)))
        u = g * jax.lax.rsqrt(r) * jax.lax.rsqrt(c)
    rms = jnp.sqrt(jnp.mean(jnp.square(u), axis=over, keepdims=True))
    return gradient.replace(u / jnp.maximum(1.0, rms))


def _map(f: Callable[[nnx.Variable], nnx.Variable], tree: nnx.State) -> nnx.State:
    return jax.tree.map(f, tree, is_leaf=is_variable)
