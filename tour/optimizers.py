"""How gradients change weights: AdamW, Muon, the learning rate's schedule and clipping."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from tour.model import Params, Weight, by_weight

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # a, b, c (Jordan et al. 2024): near 1 quickly, not exactly


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a run learns."""

    steps: int
    learning_rate: float  # the peak
    name: str = "muon"  # or adamw
    warmup: int = 20  # steps
    decay: float = 0.6  # share of the steps in which the rate falls
    final: float = 0.05  # last rate, of the peak
    b1: float = 0.9  # AdamW: memory of the mean of gradients
    b2: float = 0.95  # AdamW: memory of the mean of their squares
    momentum: float = 0.95  # Muon: memory of the mean of gradients
    weight_decay: float = 0.1
    clip_norm: float = 1.0


class State(NamedTuple):
    """All that a step changes."""

    step: Array
    params: Params
    mean: Params  # of each weight's gradients
    square: Params  # mean of their squares; a scalar where Muon needs none


def first_state(weights: Params, params: Params, recipe: Recipe) -> State:
    """Return the state before the first step. The weights are copied, because a step reuses the memory of its input."""
    square = by_weight(lambda w, p: jnp.zeros(()) if muon_updates(w, recipe) else jnp.zeros_like(p), weights, params)
    return State(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params), jax.tree.map(jnp.zeros_like, params), square)


def muon_updates(weight: Weight, recipe: Recipe) -> bool:
    """Return whether Muon updates a weight. It is for matrices of layers; AdamW updates tables and norms."""
    return recipe.name == "muon" and weight.inputs > 0


def learning_rate(recipe: Recipe, step: Array) -> Array:
    """Return the rate of a step: a linear warm-up, then the peak, then a linear fall (Hu et al. 2024)."""
    falling = max(1, round(recipe.decay * recipe.steps))
    warm = jnp.minimum(1.0, (step + 1.0) / max(1, min(recipe.warmup, recipe.steps)))
    fallen = jnp.clip((step - (recipe.steps - 1.0 - falling)) / falling, 0.0, 1.0)
    return recipe.learning_rate * warm * (1 - (1 - recipe.final) * fallen)


def update(weights: Params, state: State, grads: Params, recipe: Recipe) -> State:
    """Return the next state: p ← p − rate · (direction + λ·p).

    So the decay λ is apart from the gradient (Loshchilov and Hutter 2019). A gradient longer than clip_norm is cut.
    """
    shrink = jnp.minimum(1.0, recipe.clip_norm / (optax.global_norm(grads) + 1e-9))
    rate = learning_rate(recipe, state.step)

    def one(w: Weight, p: Array, g: Array, mean: Array, square: Array) -> tuple[Array, ...]:
        of_weight = muon if muon_updates(w, recipe) else adam
        direction, mean, square = of_weight(w, g * shrink, mean, square, state.step, recipe)
        decay = 0.0 if w.std is None else recipe.weight_decay
        return p - rate * (w.rate * direction + decay * p), mean, square

    new = by_weight(one, weights, state.params, grads, state.mean, state.square)
    return State(state.step + 1, *(by_weight(lambda w, three, i=i: three[i], weights, new) for i in range(3)))


def matrix_shape(w: Weight) -> tuple[int, int, int]:
    """Return (matrices, inputs, outputs) of a weight of layers."""
    first = sum(axis in ("layers", "experts") for axis in w.axes)
    parts = w.shape[:first], w.shape[first : first + w.inputs], w.shape[first + w.inputs :]
    return int(np.prod(parts[0])), int(np.prod(parts[1])), int(np.prod(parts[2]))


def adam(w: Weight, g: Array, mean: Array, square: Array, step: Array, o: Recipe) -> tuple:
    """Return m̂ / (√v̂ + ε), m and v: means of g and g² (Kingma and Ba 2015); m̂ = m/(1 − bⁿ), as they begin at 0."""
    n = step + 1
    mean, square = o.b1 * mean + (1 - o.b1) * g, o.b2 * square + (1 - o.b2) * jnp.square(g)
    return mean / (1 - o.b1**n) / (jnp.sqrt(square / (1 - o.b2**n)) + 1e-8), mean, square


def muon(w: Weight, g: Array, mean: Array, square: Array, step: Array, o: Recipe) -> tuple:
    """Return 0.2·√max(m, n) · U·Vᵀ and M, where U·S·Vᵀ = β·M + (1 − β)·g is a matrix [m, n] (Jordan et al. 2024).

    M ← β·M + (1 − β)·g. All directions of the matrix learn at one speed, also those of small gradients. The factor
    gives the result AdamW's usual size (Liu et al. 2025), so one learning rate serves both.
    """
    mean = o.momentum * mean + (1 - o.momentum) * g
    ahead = o.momentum * mean + (1 - o.momentum) * g
    shape = matrix_shape(w)
    # Plain: each device gathers the matrices and orthogonalises all of them.
    whole = jax.sharding.reshard(ahead, jax.sharding.PartitionSpec()).reshape(shape)
    direction = 0.2 * max(shape[1:]) ** 0.5 * orthogonalized(whole).reshape(w.shape)
    return jax.sharding.reshard(direction, jax.typeof(g).sharding.spec), mean, square


def orthogonalized(x_Lmn: Array) -> Array:
    """Return about U·Vᵀ of each matrix U·S·Vᵀ, by five steps X ← a·X + (b·A + c·A²)·X with A = X·Xᵀ (Newton–Schulz).

    A step maps each singular value s to a·s + b·s³ + c·s⁵. Five bring those from 1/1000 to 1 to between 0.7 and 1.2.
    """
    if x_Lmn.shape[1] > x_Lmn.shape[2]:  # A is computed on the shorter side
        return orthogonalized(x_Lmn.swapaxes(1, 2)).swapaxes(1, 2)
    a, b, c = NEWTON_SCHULZ
    x = x_Lmn / (jnp.sqrt(jnp.sum(jnp.square(x_Lmn), axis=(1, 2), keepdims=True)) + 1e-7)

    def iteration(_: int, x: Array) -> Array:
        gram = x @ x.swapaxes(1, 2)
        return a * x + (b * gram + c * gram @ gram) @ x

    return lax.fori_loop(0, 5, iteration, x)


if __name__ == "__main__":
    matrix = np.random.default_rng(0).normal(size=(1, 64, 32)) * np.logspace(0, -2, 32)
    for name, x in (("before", matrix), ("after", orthogonalized(jnp.asarray(matrix, jnp.float32)))):
        print(f"singular values {name}:", np.linalg.svd(np.asarray(x)[0], compute_uv=False)[::6].round(3))
