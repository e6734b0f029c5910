"""Merge models of one shape into one, tensor by tensor: linear, SLERP, task arithmetic, TIES and DARE.

A tensor is what is stored apart: a matrix of one layer, or of one expert. All is computed in float32 and stored in the first
model's dtype. Task vectors τᵢ = θᵢ − θ of models θᵢ that were trained from the base θ:

- linear (Wortsman et al. 2022, "Model soups"): Σ wᵢ θᵢ / Σ wᵢ
- slerp (Shoemake 1985): sin((1−t)Ω)/sin Ω · θ₀ + sin(tΩ)/sin Ω · θ₁, where Ω is the angle between the two tensors
- task_arithmetic (Ilharco et al. 2023, equation 1): θ + λ Σ wᵢ τᵢ
- ties (Yadav et al. 2023, algorithm 1): of each τᵢ the share `density` of the largest magnitudes stays; of each number the sign
  with the larger sum is elected; θ + λ · the mean, weighted by wᵢ, of those that have this sign
- dare_linear, dare_ties (Yu et al. 2024, equation 3): of each τᵢ a random share `density` stays, divided by `density`; then as
  task_arithmetic or, with the elected signs, as a sum
"""

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jax.sharding import Sharding

from lm.adapt.rebuild import arrays_of, combined
from lm.config import ModelConfig
from lm.errors import UserError
from lm.model.transformer import skeleton
from lm.parallel.mesh import logical_axes, reshard
from lm.progress import shown

OF_A_BASE = ("task_arithmetic", "ties", "dare_linear", "dare_ties")
PARALLEL = 0.9995  # cosine beyond which SLERP is linear, because sin Ω is close to 0


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How models are merged. weights: one for each model. normalize: divide by the sum of weights; None: linear and ties do.

    density: share of a task vector's numbers that stay. scale: λ. t: of slerp, 0 is the first model and 1 the second.
    seed: of the random choice of DARE.
    """

    method: str
    weights: tuple[float, ...]
    density: float = 1.0
    scale: float = 1.0
    t: float = 0.5
    normalize: bool | None = None
    seed: int = 0

    @property
    def is_mean(self) -> bool:
        return self.method in ("linear", "ties") if self.normalize is None else self.normalize


def merge(config: ModelConfig, recipe: Recipe, models: Sequence[nnx.State], base: nnx.State | None = None) -> nnx.State:
    """Return the merged parameters, with the shardings and dtypes of the base, or of the first model.

    models, base: of `config`. Raises: UserError if the recipe does not fit the number of models.
    """
    check(recipe, len(models), base is not None)
    first, *others = map(arrays_of, (models if base is None else (base, *models)))
    merged, axes = {}, _axes(config)
    for name, x in shown(first.items(), "merge", len(first)):
        key = jax.random.fold_in(jax.random.key(recipe.seed), zlib.crc32(name.encode()) & 0x7FFFFFFF)
        tensors = (x, *(other[name] for other in others))
        merged[name] = jax.block_until_ready(_program(recipe, axes[name], x.sharding)(key, *tensors))
    return combined(config, merged)


def check(recipe: Recipe, models: int, has_base: bool) -> None:
    """Raise UserError if the recipe does not fit this number of models."""
    if recipe.method == "slerp" and (models != 2 or has_base):
        raise UserError(f"slerp merges two models, without a base: here are {models}{' and a base' * has_base}")
    if recipe.method in OF_A_BASE and not has_base:
        raise UserError(f"{recipe.method} needs the base from which the models were trained")
    if recipe.method == "linear" and has_base:
        raise UserError("linear takes no base: name it among the models, with a weight of its own")
    if len(recipe.weights) != models:
        raise UserError(f"there are {len(recipe.weights)} weights for {models} models")
    if not all(map(math.isfinite, (*recipe.weights, recipe.density, recipe.scale, recipe.t))):
        raise UserError("weights, density, scale and t must be finite numbers")
    if recipe.is_mean and sum(recipe.weights) == 0:
        raise UserError("the weights add up to 0, and the mean divides by their sum")


def _axes(config: ModelConfig) -> dict[str, tuple[str, ...]]:
    """Return the logical axes of each parameter by dotted name."""
    flat = jax.tree_util.tree_flatten_with_path(skeleton(config)[1], is_leaf=lambda x: isinstance(x, nnx.Variable))[0]
    return dict(zip(arrays_of(skeleton(config)[1]), (logical_axes(x) for _, x in flat), strict=True))


@functools.cache  # tensors of one shape share a program
def _program(recipe: Recipe, axes: tuple[str, ...], sharding: Sharding) -> Callable:
    return jax.jit(functools.partial(_each, recipe, axes), out_shardings=sharding)


def _each(recipe: Recipe, axes: tuple[str, ...], key: Array, *tensors: Array) -> Array:
    """Merge the tensors along the axes of layers and of experts one after another. One layer at a time is whole on a device."""
    if axes[0] == "layers":
        tensors = [reshard(x, None, *axes[1:]) for x in tensors]
        return _along(functools.partial(_each, recipe, axes[1:]), key, tensors)
    merge_tensor = functools.partial(_merged, recipe)
    whole = [reshard(x, *(None for _ in axes)) for x in tensors]
    return reshard(_along(merge_tensor, key, whole) if axes[0] == "expert" else merge_tensor(key, *whole), *axes)


def _along(f: Callable[..., Array], key: Array, tensors: Sequence[Array]) -> Array:
    """Return f(key, *tensors) of each index of the first axis, one after another, with a key for each."""
    return lax.map(lambda x: f(*x), (jax.random.split(key, tensors[0].shape[0]), *tensors))


def _merged(recipe: Recipe, key: Array, *tensors: Array) -> Array:
    values = [x.astype(jnp.float32) for x in tensors]
    if recipe.method == "linear":
        result = sum(w * x for w, x in zip(recipe.weights, values, strict=True))
        result = result / sum(recipe.weights) if recipe.is_mean else result
    elif recipe.method == "slerp":
        result = slerp(*values, recipe.t)
    else:
        base, *others = values
        result = base + recipe.scale * _sum_of_tasks(recipe, key, [x - base for x in others])
    return result.astype(tensors[0].dtype)


def slerp(a: Array, b: Array, t: float) -> Array:
    """Return the tensor at the share t of the way from a to b along the arc between them; linear if they are parallel."""
    norms = jnp.linalg.norm(a.ravel()), jnp.linalg.norm(b.ravel())
    a_unit, b_unit = (x / jnp.where(norm > 1e-8, norm, 1.0) for x, norm in zip((a, b), norms))
    cosine = jnp.clip(jnp.sum(a_unit * b_unit), -1.0, 1.0)
    parallel = jnp.abs(cosine) > PARALLEL
    angle = jnp.arccos(jnp.where(parallel, 0.0, cosine))
    of_a = jnp.where(parallel, 1 - t, jnp.sin((1 - t) * angle) / jnp.sin(angle))
    of_b = jnp.where(parallel, t, jnp.sin(t * angle) / jnp.sin(angle))
    return of_a * a + of_b * b


def _sum_of_tasks(recipe: Recipe, key: Array, tasks: list[Array]) -> Array:
    weights = jnp.array(recipe.weights, jnp.float32)
    if recipe.method == "ties":
        tasks = [largest(x, recipe.density) for x in tasks]
    elif recipe.method.startswith("dare"):
        tasks = [dropped(one, x, recipe.density) for one, x in zip(jax.random.split(key, len(tasks)), tasks)]
    weighted = jnp.stack([w * x for w, x in zip(weights, tasks)])
    if recipe.method.endswith("ties"):
        elected = jnp.where(weighted.sum(0) >= 0, 1.0, -1.0)
        agrees = jnp.sign(weighted) == elected
        total, divisor = jnp.sum(weighted * agrees, 0), jnp.tensordot(weights, agrees.astype(jnp.float32), 1)
    else:
        total, divisor = weighted.sum(0), weights.sum()
    return total / jnp.where(divisor == 0, 1.0, divisor) if recipe.is_mean else total


def largest(x: Array, density: float) -> Array:
    """Return x with zeros but for the share `density` of the largest magnitudes; of equals the earlier.

    A density above 0 keeps at least one.
    """
    if density >= 1:
        return x
    count = max(1, int(density * x.size)) if density > 0 else 0
    keep = jnp.zeros(x.size, bool).at[jnp.argsort(-jnp.abs(x.ravel()))[:count]].set(True)
    return jnp.where(keep.reshape(x.shape), x, 0.0)


def dropped(key: Array, x: Array, density: float) -> Array:
    """Return x with a random share 1 − density of zeros and the rest divided by density: the same mean."""
    return x if density >= 1 else jnp.where(jax.random.bernoulli(key, density, x.shape), x / density, 0.0)
