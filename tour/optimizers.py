"""How gradients change weights: AdamW, Muon, the learning rate's schedule and clipping."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from tour.mesh import spec
from tour.model import Params, Weight, by_weight


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
    save_every: int = 100  # steps


class State(NamedTuple):
    """All that a step changes."""

    step: Array
    params: Params
    mean: Params  # of each weight's gradients
    square: Params  # mean of their squares; Muon needs none, and its stay 0


def first_state(params: Params) -> State:
    """Return the state before the first step. The weights are copied, because a step reuses the memory of its input."""
    copy, mean, square = (jax.tree.map(f, params) for f in (jnp.copy, jnp.zeros_like, jnp.zeros_like))
    return State(jnp.zeros((), jnp.int32), copy, mean, square)


def learning_rate(recipe: Recipe, step: Array) -> Array:
    """Return the rate of a step: a linear warm-up, then the peak, then a linear fall (Hu et al. 2024)."""
    falling = max(1, round(recipe.decay * recipe.steps))
    warm = jnp.minimum(1.0, (step + 1.0) / max(1, min(recipe.warmup, recipe.steps)))
    fallen = jnp.clip((step - (recipe.steps - 1.0 - falling)) / falling, 0.0, 1.0)
    return recipe.learning_rate * warm * (1 - (1 - recipe.final) * fallen)


def update(weights: Params, state: State, grads: Params, recipe: Recipe) -> State:
    """Return the next state: p ← p − rate · (direction + λ·p). The decay λ is apart (Loshchilov and Hutter 2019).

    The direction of AdamW is m̂ / (√v̂ + ε) with the means m of g and v of g² (Kingma and Ba 2015), and m̂ = m/(1 − bⁿ)
    at step n, as they begin at 0. That of Muon is M ← β·M + (1 − β)·g, orthogonalized with g ahead: β·M + (1 − β)·g.
    """
    o, n, rate = recipe, state.step + 1, learning_rate(recipe, state.step)
    shrink = jnp.minimum(1.0, o.clip_norm / (optax.global_norm(grads) + 1e-9))  # long gradients are cut to clip_norm

    def one(w: Weight, p: Array, g: Array, mean: Array, square: Array) -> tuple[Array, Array, Array]:
        g = g * shrink
        if o.name == "muon" and w.inputs:  # Muon is for matrices of layers; AdamW updates tables and norms
            mean = o.momentum * mean + (1 - o.momentum) * g
            direction = muon_direction(w, o.momentum * mean + (1 - o.momentum) * g)
        else:
            mean, square = o.b1 * mean + (1 - o.b1) * g, o.b2 * square + (1 - o.b2) * jnp.square(g)
            direction = mean / (1 - o.b1**n) / (jnp.sqrt(square / (1 - o.b2**n)) + 1e-8)
        decay = 0.0 if w.std is None else o.weight_decay  # of norms: none
        return p - rate * (w.rate * direction + decay * p), mean, square

    new = by_weight(one, weights, state.params, grads, state.mean, state.square)
    return State(n, *(by_weight(lambda w, three, i=i: three[i], weights, new) for i in range(3)))


def matrix_shape(w: Weight) -> tuple[int, int, int]:
    """Return (matrices, inputs, outputs) of a weight of layers."""
    first = sum(axis in ("layers", "experts") for axis in w.axes)
    parts = w.shape[:first], w.shape[first : first + w.inputs], w.shape[first + w.inputs :]
    return int(np.prod(parts[0])), int(np.prod(parts[1])), int(np.prod(parts[2]))


def muon_direction(w: Weight, momentum: Array) -> Array:
    """Return 0.2·√max(m, n) · U·Vᵀ of each matrix U·S·Vᵀ [m, n] of a momentum (Jordan et al. 2024).

    All directions of the matrix learn at one speed, also those of small gradients. The factor gives the result AdamW's
    usual size (Liu et al. 2025), so one learning rate serves both.
    """
    shape = matrix_shape(w)
    whole = jax.sharding.reshard(momentum, spec()).reshape(shape)  # each device orthogonalizes all matrices
    return jax.sharding.reshard(0.2 * max(shape[1:]) ** 0.5 * orthogonalized(whole).reshape(w.shape), spec(*w.axes))


def orthogonalized(x_Lmn: Array) -> Array:
    """Return about U·Vᵀ of each matrix U·S·Vᵀ, by five steps X ← a·X + (b·A + c·A²)·X with A = X·Xᵀ (Newton–Schulz).

    A step maps each singular value s to a·s + b·s³ + c·s⁵. Five bring those from 1/1000 to 1 to between 0.7 and 1.2.
    """
    if x_Lmn.shape[1] > x_Lmn.shape[2]:  # A is computed on the shorter side
        return orthogonalized(x_Lmn.swapaxes(1, 2)).swapaxes(1, 2)
    a, b, c = 3.4445, -4.7750, 2.0315  # Jordan et al. 2024
    x = x_Lmn / (jnp.sqrt(jnp.sum(jnp.square(x_Lmn), axis=(1, 2), keepdims=True)) + 1e-7)

    def iteration(_: int, x: Array) -> Array:
        gram = x @ x.swapaxes(1, 2)
        return a * x + (b * gram + c * gram @ gram) @ x

    return lax.fori_loop(0, 5, iteration, x)


if __name__ == "__main__":
    matrix = np.random.default_rng(0).normal(size=(1, 64, 32)) * np.logspace(0, -2, 32)
    for name, x in (("before", matrix), ("after", orthogonalized(jnp.asarray(matrix, jnp.float32)))):
        print(f"singular values {name}:", np.linalg.svd(np.asarray(x)[0], compute_uv=False)[::6].round(3))
